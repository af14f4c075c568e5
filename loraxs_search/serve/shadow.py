"""Shadows: a challenger answers the rows of a champion's requests too, only for a log.

Clients get the champion's answers. The challenger's rows take their share of the passes; while too many rows wait, they
are left out.
"""

from __future__ import annotations

import asyncio
import json
import logging
from collections.abc import Sequence
from dataclasses import dataclass
from datetime import UTC, datetime
from typing import Any

from loraxs_search.errors import UsageError
from loraxs_search.home import ensure_dir, file_lock, lock_beside
from loraxs_search.log.event_log import AppendLog
from loraxs_search.records import Prediction
from loraxs_search.registry.shadow_log import shadow_log_path
from loraxs_search.serve.engine import Job, QueueFullError, ServingEngine
from loraxs_search.serve.requests import Answered, rows_job
from loraxs_search.serve.served_models import ServedAdapter, ServedModels

log = logging.getLogger(__name__)

_SHARE = 0.5  # of the queue that rows of shadows may fill: clients have the other half


@dataclass(frozen=True)
class _Shadow:
    challenger: ServedAdapter
    log: AppendLog


class Shadows:
    """Challengers by task, and what they answered: a JSON object a row, in `shadow/TASK.jsonl` of the state folder.

    Args:
        given: `TASK=STUDY/TRIAL`, or `TASK=FOLDER` as `./FOLDER`, of any number of tasks.
    Raises:
        UsageError: an entry is not of that form, the task is not served, or its challenger answers another task.
        StudyError, IntegrityError, BaseModelError: the challenger cannot be loaded.
    """

    def __init__(self, given: Sequence[str], models: ServedModels) -> None:
        self.num_agreed = self.num_differed = self.num_lost = 0  # rows; lost ones were not computed or not written
        self._models = models
        self._shadows: dict[str, _Shadow] = {}  # by the name of their champion
        self._noting = set[asyncio.Future[None]]()
        for entry in given:
            task, equals, name = entry.partition("=")
            if not equals or not name:
                raise UsageError(f"`--shadow` must be TASK=STUDY/TRIAL, but got {entry!r}.")
            champion, challenger = models.look_up(task), models.load_kept(task, name)
            if _question(champion) != _question(challenger):
                columns, labels = champion.kind.question_columns, champion.manifest.task.labels
                raise UsageError(
                    f"A shadow must have the kind, the columns and the labels of its champion, but {name} is of task"
                    f" {challenger.manifest.task.name}, and {task} reads {', '.join(columns)} for {', '.join(labels)}."
                )
            path = shadow_log_path(champion.manifest.task.registered_name)
            ensure_dir(path.parent)
            self._shadows[task] = _Shadow(challenger, AppendLog(path))

    def follow(self, engine: ServingEngine, jobs: Sequence[Job]) -> None:
        """Have the challengers of a champion answer the same rows, after those that clients wait for.

        The champion may have been asked by any of its names.
        """
        for name, shadow in self._shadows.items():
            champion = self._models.find(name)
            if champion is not None and champion.digest == jobs[0].digest:
                self._answer_too(engine, shadow, jobs)

    def _answer_too(self, engine: ServingEngine, shadow: _Shadow, jobs: Sequence[Job]) -> None:
        pairs = [(job, rows_job(shadow.challenger, job.rows)) for job in jobs if job.rows is not None]
        num_rows = sum(job.num_rows for job, _ in pairs)
        if any(_question(job.adapter) != _question(shadow.challenger) for job, _ in pairs):  # the champion has moved
            self.num_lost += num_rows
            return
        try:
            engine.submit([other for _, other in pairs], share=_SHARE)
        except QueueFullError:
            self.num_lost += num_rows
            return
        noting = asyncio.ensure_future(self._note(shadow, pairs))
        self._noting.add(noting)
        noting.add_done_callback(self._noting.discard)

    async def close(self) -> None:
        """Write down what is left."""
        await asyncio.gather(*self._noting)

    async def _note(self, shadow: _Shadow, pairs: Sequence[tuple[Job, Job]]) -> None:
        """Wait for both answers and write them down; whatever fails is counted and said, and disturbs nobody."""
        for job, other in pairs:
            assert job.adapter is not None and job.rows is not None  # as `follow` has seen
            try:
                answers: list[Answered] = await asyncio.gather(job.result, other.result)
                champion, challenger = (answer.predictions for answer in answers)
                lines = [
                    _line(shadow, job.adapter, job.rows.columns, row, one, two)
                    for row, one, two in zip(job.rows.rows, champion, challenger, strict=True)
                ]
                await asyncio.to_thread(_append, shadow.log, lines)
            except (Exception, asyncio.CancelledError) as error:  # noqa: BLE001  # the answer has been given
                self.num_lost += job.num_rows
                log.warning("%d rows of the shadow of %s are lost: %s", job.num_rows, job.adapter.task, error)
            else:
                agree = [_agree(*both) for both in zip(champion, challenger, strict=True)]
                self.num_agreed += agree.count(True)
                self.num_differed += agree.count(False)


def _question(adapter: ServedAdapter | None) -> object:
    """Return what an adapter is asked, and answers: the same for those whose answers may be compared."""
    if adapter is None:
        return None
    task = adapter.manifest.task
    return task.kind, tuple(task.labels), tuple(adapter.kind.question_columns)


def _agree(champion: Prediction, challenger: Prediction) -> bool | None:
    """Return whether two answers are the same; of numbers, which hardly ever are, None."""
    return None if champion.label is None else champion.label == challenger.label


def _line(
    shadow: _Shadow,
    adapter: ServedAdapter,
    columns: Sequence[str],
    row: Sequence[Any],
    champion: Prediction,
    challenger: Prediction,
) -> str:
    answers = {
        "champion": champion.score if champion.label is None else champion.label,
        "champion_score": champion.score,
        "challenger": challenger.score if challenger.label is None else challenger.label,
        "challenger_score": challenger.score,
        "agree": _agree(champion, challenger),
    }
    names = {"champion_digest": adapter.digest, "challenger_digest": shadow.challenger.digest}
    shadow_of = answers | names | {"at": datetime.now(UTC).isoformat()}
    found = dict(zip(columns, row, strict=True)) | {f"shadow_{name}": value for name, value in shadow_of.items()}
    return json.dumps(found, ensure_ascii=False) + "\n"


def _append(to: AppendLog, lines: Sequence[str]) -> None:
    """Write lines behind the last whole one; threads and servers take turns."""
    with file_lock(lock_beside(to.path)):
        size = to.path.stat().st_size if to.path.exists() else 0
        if size < to.end:  # rotated: `append` would fill up to the old end with NUL bytes
            to.end = 0
        to.skip()  # what others have written
        to.append("".join(lines).encode())
