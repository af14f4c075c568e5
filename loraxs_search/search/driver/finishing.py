"""The work that finishes a search: scores on all validation rows, answers to test rows, adapter files."""

from __future__ import annotations

import math
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np
from ray import ObjectRef

from loraxs_search.errors import StudyError, TaskDataError, TrialDivergedError
from loraxs_search.records import (
    AdapterSize,
    Answers,
    Confirmation,
    Identity,
    Lineage,
    Sample,
    Split,
    Task,
    TrialReport,
    TrialSpec,
)
from loraxs_search.registry import ScoredRows
from loraxs_search.search.hosts.client import HostClient
from loraxs_search.search.hosts.pieces import reason_of
from loraxs_search.studies import StudyFolder, read_reports

_BOTH = ("predictions", "labels")
_PART = 128  # rows; a piece of fewer takes as long, since it puts the adapter on the base


@dataclass(frozen=True)
class Trained:
    """An adapter that has trained all its steps: a trial's, or a refit's.

    Args:
        validation_metrics: Of the report of the step that is kept.
        lineage: The trial that its recipe was cloned from.
    """

    spec: TrialSpec
    folder: StudyFolder
    validation_metrics: Mapping[str, float]
    size: AdapterSize
    lineage: Lineage | None = None

    @property
    def trial_id(self) -> str:
        return self.spec.trial_id

    @property
    def kept_step(self) -> int | None:
        """The step that it is of, where the study keeps the best one."""
        return None if self.folder.keep_rule.keep == "last" else read_reports(self.snapshot())[-1].step

    def snapshot(self) -> bytes:
        """Return the state that is kept: its last one, or the best.

        Raises:
            StudyError: the snapshot is missing.
        """
        snapshot = self.folder.read_kept(self.trial_id)
        if snapshot is None:
            raise StudyError(
                f"A completed trial must have a snapshot, but {self.folder.path} has none of {self.trial_id}."
            )
        return snapshot


@dataclass(frozen=True)
class ValidationPiece:
    """Score an adapter on all validation rows, in the passes that score trials."""

    trained: Trained
    task: Task

    def ask(self, host: HostClient) -> ObjectRef[tuple[TrialReport, bytes]]:
        snapshot = self.trained.snapshot()
        step = read_reports(snapshot)[-1].step  # a trial that is at its step already is scored without training
        return host.advance(self.trained.spec, step, snapshot, self.task.for_candidates)

    def take(self, answer: tuple[TrialReport, bytes]) -> bool:
        self.trained.folder.confirmations().write_validation(self.trained.trial_id, answer[0].metrics)
        return False

    def failed(self, error: Exception) -> None:
        if not isinstance(error, TrialDivergedError):
            raise error
        self.trained.folder.confirmations().write_validation(self.trained.trial_id, {})  # no finite score: a result


@dataclass(frozen=True)
class AnswerPiece:
    """Have some test rows answered by the finalist."""

    trained: Trained
    rows: range
    task: Task

    def ask(self, host: HostClient) -> ObjectRef[Answers]:
        return host.answer(self.trained.spec, self.trained.snapshot(), self.rows, self.task.for_candidates)

    def take(self, answer: Answers) -> bool:
        self.trained.folder.confirmations().write_answers(self.trained.trial_id, self.rows, answer)
        return False

    def failed(self, error: Exception) -> None:
        if not isinstance(error, TrialDivergedError):
            raise error
        no_answers = Answers((), (), math.nan)  # the finalist has no finite score, which is a result
        self.trained.folder.confirmations().write_answers(self.trained.trial_id, self.rows, no_answers)


@dataclass(frozen=True)
class AlonePiece:
    """Have some rows of a split answered by the base alone; once that has failed, the rest is not asked."""

    folder: StudyFolder
    identity: Identity
    task: Task
    split: Split
    rows: range
    shots: int

    def ask(self, host: HostClient) -> ObjectRef[Answers]:
        return host.answer_alone(self.identity, self.split, self.rows, self.shots, self.task.for_candidates)

    def take(self, answer: Answers) -> bool:
        self.folder.confirmations().write_alone_answers(self.shots, self.split, self.rows, answer)
        return False

    def failed(self, error: Exception) -> None:
        """Keep the reason: a baseline stops no search. Worked examples may not fit, which no second try changes."""
        applies = not (self.shots and isinstance(error, TaskDataError))
        self.folder.confirmations().write_alone_failure(self.shots, reason_of(error), applies=applies)


@dataclass(frozen=True)
class AdapterPiece:
    """Have an adapter written out, and give it to `keep`."""

    trained: Trained
    task: Task
    keep: Callable[[Trained, Confirmation], None]

    def ask(self, host: HostClient) -> ObjectRef[Confirmation]:
        return host.confirm(self.trained.spec, self.trained.snapshot(), self.task)

    def take(self, answer: Confirmation) -> bool:
        self.keep(self.trained, answer)
        return False

    def failed(self, error: Exception) -> None:
        raise error


def row_pieces(num_rows: int, done: Sequence[range]) -> list[range]:
    """Return the unanswered rows of a split, in parts that are small enough to show how far the work is."""
    ends = sorted(done, key=lambda rows: rows.start)
    starts = [0, *(rows.stop for rows in ends)]
    stops = [*(rows.start for rows in ends), num_rows]
    gaps = [range(start, stop) for start, stop in zip(starts, stops, strict=True) if start < stop]
    return [part for gap in gaps for part in in_parts(gap, _PART)]


def in_parts(rows: range, size: int) -> list[range]:
    """Return rows in parts of at most `size`."""
    return [rows[start : start + size] for start in range(0, len(rows), size)]


def joined(parts: Sequence[Answers], task: Task) -> tuple[dict[str, float], ScoredRows]:
    """Return the metrics and the rows that consecutive answers make up; not finite where some answers are not."""
    from loraxs_search.tasks.kinds import RowScores, kind_of

    columns = {name: _column(parts, name) for name in ("losses", "counts", "correct", "ended")}
    predictions, labels = ([value for part in parts for value in getattr(part, name)] for name in _BOTH)
    rows = ScoredRows.of(predictions, labels, *(columns[name] for name in ("losses", "counts", "correct")))
    if not all(part.predictions for part in parts):
        return dict.fromkeys((*task.metrics, "loss"), math.nan), rows
    if columns["losses"] is None:  # sums of parts do as well as those of rows
        counts = [len(part.labels) if part.loss_count is None else part.loss_count for part in parts]
        columns |= {"losses": [part.loss for part in parts], "counts": counts}
    arrays: dict[str, Any] = {name: None if values is None else np.asarray(values) for name, values in columns.items()}
    return kind_of(task).measure_scores(RowScores(rows.predictions, **arrays), rows.labels), rows


def samples_of(parts: Sequence[Answers]) -> tuple[Sample, ...]:
    """Return the rows among answers that are for people."""
    return tuple(sample for part in parts for sample in part.samples)


def _column(parts: Sequence[Answers], name: str) -> list[Any] | None:
    """Return a column of all rows; None where some part has none."""
    columns = [getattr(part, name) for part in parts]
    return None if any(column is None for column in columns) else [value for column in columns for value in column]
