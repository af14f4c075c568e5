"""Changing who is champion of a task: a promotion, a rollback, a removal.

One change of a task's champion runs at a time. Each that was killed is finished by the next. What was decided, who has
answered the test rows, and who may change the champion now are tags of the task's run in an experiment of their own: a
task is a registered model from its first version on, and that is read whole whenever a champion is looked up.
"""

from __future__ import annotations

import contextlib
import hashlib
import json
import logging
import math
import os
import random
import socket
import tempfile
import time
import uuid
from collections.abc import Callable, Iterator, Mapping, Sequence
from dataclasses import dataclass, replace
from datetime import UTC, datetime
from pathlib import Path
from typing import TYPE_CHECKING, Any

from loraxs_search.errors import IntegrityError, LoraxsError, RegistryError
from loraxs_search.home import disk_faults, file_lock
from loraxs_search.manifest import ADAPTER_FORMAT, MLFLOW_FILES, MLMODEL, Manifest, folder_digest, verify
from loraxs_search.mlflow_uri import artifact_root, ensure_experiment, sqlite_path
from loraxs_search.records.codec import from_json, to_json
from loraxs_search.records.search import Action, Baseline, Candidate, Decision, PromotionRule
from loraxs_search.records.task import Task
from loraxs_search.registry import factor_sets
from loraxs_search.registry.finalist import Criterion, choose, seed_statistics
from loraxs_search.registry.store import (
    ADAPTER,
    CHAMPION,
    DECISIONS,
    DECISIONS_EXPERIMENT,
    DIGEST,
    EVIDENCE,
    FORMAT,
    KIND,
    RECORDS,
    TASK,
    USE,
    AdapterName,
    RegisteredAdapter,
    Registry,
)
from loraxs_search.versions import installed

if TYPE_CHECKING:
    from mlflow import MlflowClient

    from loraxs_search.registry.evidence import ScoredRows
    from loraxs_search.registry.promotion import Scored, ToleranceReference

    Rescore = Callable[[RegisteredAdapter], Scored]

Check = Callable[[], None]

UNTOUCHED_BASE = "base"  # in place of a trial id
SHOWN = "loraxs.champion"  # a tag of a task's model, in sight: its champion
_MODEL_ID, _MODEL_VERSIONS = "loraxs.model_id", "mlflow.modelVersions"  # tags of a version, and of a logged model
MAX_TAG = 5000  # characters that a tag may have in MLflow's tables
CHANGE = "mlflow.loraxs.change"  # a rollback or a removal that has begun and is not recorded yet
LEASE = "mlflow.loraxs.lease"
TTL_S = 120.0  # longer than registering an adapter takes: a lease that stands still for so long is taken over
WAIT_S = 180.0  # for whoever changes a champion, before this one gives up
_SETTLE_S = (0.3, 0.6)  # longer than a promoter takes from reading that the lease is free to writing its own
_POLL_S = (0.1, 0.4)
_MAX_TRIES = 5
_PAGE_REASONS = 8  # the last ones say what was decided
_NONE: Mapping[str, Any] = {}
_logger = logging.getLogger(__name__)


@dataclass(frozen=True)
class _Change:
    """A rollback or a removal that has begun. Whoever next changes the task's champion finishes it.

    Args:
        decision: What is recorded of it at its end.
        digest: Content address of the version's folder: a number may be given again.
        champion: The version that was champion before; None if there was none.
    """

    decision: Decision
    digest: str
    champion: int | None = None


class Promoter:
    """Whoever changes the champion of a task in the MLflow store at `uri`.

    Raises:
        TrackingError: the server does not answer.
        RegistryError: the store cannot be read, or refuses.
    """

    def __init__(self, uri: str, task: str) -> None:
        self.registry, self.task = Registry(uri), AdapterName(task).task

    def promote(  # noqa: PLR0913  # each but the first ones is a keyword
        self,
        rule: PromotionRule,
        task: Task,
        candidates: Sequence[Candidate],
        folders: Mapping[str, Path],
        forced: bool = False,
        predictions: Mapping[str, Path] = _NONE,
        rescore: Rescore | None = None,
        *,
        study: str = "",
        baseline_answers: Mapping[str, Baseline] = _NONE,
        seen: Sequence[str] = (),
        reasons: tuple[str, ...] = (),
    ) -> tuple[Decision, int | None]:
        """Choose the finalist among `candidates`, decide between it and the champion, and act on it.

        Answers are compared before the lock, which may take minutes; under it the champion is read again.

        Args:
            folders: Trial id to sealed adapter folder.
            predictions: Trial id to the file of its answers to the test rows; under `UNTOUCHED_BASE` those of the base
                without an adapter.
            rescore: Scores a champion anew on these test rows where it has no answers to them, or stands on another
                base.
            study: Whose candidates they are, for the record where there are none.
            baseline_answers: Of the study's baselines to the test rows, by name.
            seen: Keys of other finalists that have answered the test rows: each counts as a comparison on them.
            reasons: What the decision is to say first: that its rule is another than the study's.
        Returns:
            The decision, and the version it made champion.
        """
        from loraxs_search.registry.promotion import PromotionTest, Scored  # numpy

        registry, (chosen, why) = self.registry, choose(rule, task, candidates)
        if chosen is None:
            study = study or ", ".join(sorted({candidate.study for candidate in candidates}))
            champion, metric = registry.champion(self.task), Criterion.of(rule, task).metric
            with self._changing() as (check, _):
                decision = self._decision(study, metric, champion, "promote", why)
                check()
                self._record(decision)
            return decision, None
        answers, rows, damage = _kept_rows(predictions.get(chosen.trial_id))
        _, of_base, damage_of_base = _kept_rows(predictions.get(UNTOUCHED_BASE))
        first_reasons = (*why, *filter(None, (damage, damage_of_base)), *reasons)
        finalist = Scored(chosen, rows, of_base, baseline_answers)
        test = PromotionTest(rule, task, finalist)
        for _ in range(_MAX_TRIES):
            adapter, past = registry.champion(self.task), registry.history(self.task)
            scored = None if adapter is None else self._comparable(adapter, finalist, rescore)
            version = None if adapter is None else adapter.version
            reference = test.reference(past, scored, version)
            if reference is not None and adapter and chosen.stored_bytes < adapter.candidate.stored_bytes:
                reference = self._with_rows(reference, finalist, rescore)
            test.decide(scored, past, seen=seen, reference=reference)  # and remembers p-values
            with self._changing() as (check, _):
                past, present = registry.history(self.task), registry.champion(self.task)
                is_same = (present and present.version) == version
                if not is_same or reference != test.reference(past, scored, version):
                    continue
                decision = test.decide(scored, past, seen=seen, reference=reference, forced=forced)
                decision = _numbered(replace(decision, reasons=(*first_reasons, *decision.reasons)), past)
                if not decision.promoted:
                    check()  # else its number is another's by now
                    self._record(decision)
                    return decision, None
                return self._register(folders[chosen.trial_id], chosen, decision, check, answers)
        raise RegistryError(f"The champion of {self.task} changed {_MAX_TRIES} times meanwhile.", hint="try again")

    def record_use(self, finalist: Candidate) -> None:
        """Record that a finalist has answered its test rows, for whoever promotes from another machine."""
        digest = hashlib.sha256(finalist.key.encode()).hexdigest()[:16]
        with self.registry.errors():
            self._write(f"{USE}{finalist.test_fingerprint}.{digest}", finalist.key)

    def _comparable(self, champion: RegisteredAdapter, finalist: Scored, rescore: Rescore | None) -> Scored:
        """Make a champion comparable: scored anew are those of other test rows or another base, without answers, or
        whose texts were read by other rules.

        Where it cannot be, its recorded scores serve if they are on the same rows; otherwise it stays as it is, and the
        rule says that it is not comparable.
        """
        from loraxs_search.registry.promotion import Scored  # numpy

        recorded, own, name = champion.candidate, finalist.candidate, f"{champion.task}:{champion.version}"
        if recorded.key == own.key:
            return Scored(recorded)
        rows, reason = None, "has no answers to these test rows"
        if recorded.test_fingerprint == own.test_fingerprint:
            try:
                rows = self.registry.test_predictions(champion)
            except LoraxsError as error:  # damaged or gone
                reason = f"has no whole answers to these test rows ({error.message})"
        if rows is not None:
            reason = "is of another base" if recorded.base_digest != own.base_digest else ""
            if finalist.rows is not None and not rows.read_alike(finalist.rows):
                reason = "has answers that were read by other rules"
        if not reason:
            return Scored(recorded, rows)
        try:
            if rescore is None:
                raise LoraxsError("nobody here can score it")
            anew = rescore(champion)
        except LoraxsError as error:
            note = f"the champion {name} {reason} and could not be scored anew: {error.message}"
            return Scored(recorded, rows, note=note)
        return replace(anew, note=f"the champion {name} {reason}: it was scored anew")

    def _with_rows(
        self, reference: ToleranceReference, finalist: Scored, rescore: Rescore | None
    ) -> ToleranceReference:
        """Return a reference with its answers to the finalist's test rows, scored anew if they were not kept."""
        try:
            adapter = self.registry.resolve(f"{self.task}:{reference.version}")
            scored = self._comparable(adapter, finalist, rescore)
        except RegistryError as error:
            return replace(reference, fault=error.message)
        is_here = scored.candidate.test_fingerprint == finalist.candidate.test_fingerprint
        return replace(reference, rows=scored.rows if is_here else None, fault=scored.note)

    def _register(
        self, folder: Path, candidate: Candidate, decision: Decision, check: Check, answers: bytes | None
    ) -> tuple[Decision, int]:
        """Make a folder the champion: the version that holds it, its records, its answers, what MLflow loads.

        It is registered unless there is a version with its digest. Records come first: no version lacks them, whenever
        this is killed. Its tags are what people look for in the UI.

        Args:
            answers: The file of its answers to the test rows; None if there is none.
        """
        from mlflow.exceptions import MlflowException

        from loraxs_search.registry.evidence import FILE  # numpy

        registry, client, task = self.registry, self.registry.client, self.task
        manifest = verify(folder)
        own = manifest.task.registered_name, manifest.study, manifest.trial_id
        if own != (task, candidate.study, decision.winner):
            raise IntegrityError(
                f"{folder} must hold the winner {candidate.study}/{decision.winner} of {task}, "
                f"but its manifest says {manifest.study}/{manifest.trial_id} of {own[0]}."
            )
        if registry.model(task) is None:
            try:
                client.create_registered_model(task, tags={KIND: ADAPTER})
            except MlflowException:
                if registry.model(task) is None:  # else MLflow's client has sent it twice
                    raise
        digest = folder_digest(folder)
        for key, value in zip(RECORDS, (_fitted_candidate(candidate), _fitted(decision)), strict=True):
            client.set_registered_model_tag(task, key.format(digest[:32]), value)
        tags = {f"test.{name}": f"{value:.6g}" for name, value in candidate.test_metrics.items()}
        tags |= {f"validation.{name}": f"{value:.6g}" for name, value in candidate.validation_metrics.items()}
        tags |= {
            "loraxs.study": candidate.study,
            "trial_id": candidate.trial_id,
            "stored_bytes": str(candidate.stored_bytes),
            "loraxs.base_model": manifest.base_model.id,
            DIGEST: digest,
            FORMAT: str(ADAPTER_FORMAT),
        }
        version = self._with_digest(digest)
        if version is None:
            version = _create_version(client, registry.uri, folder, manifest, tags)
        else:
            for key, value in tags.items():
                client.set_model_version_tag(task, version.version, key, value)
        if answers is not None and version.tags.get(EVIDENCE) != (evidence := hashlib.sha256(answers).hexdigest()):
            with tempfile.TemporaryDirectory() as place:
                (Path(place) / "evidence").mkdir()
                (Path(place) / "evidence" / FILE).write_bytes(answers)
                client.log_model_artifacts(version.tags[_MODEL_ID], place)
            client.set_model_version_tag(task, version.version, EVIDENCE, evidence)
        if MLMODEL not in registry.list_files(version.source):
            _add_mlflow_model(client, version, manifest)
        number = int(version.version)
        page = [
            _headline(number, candidate, decision.metric),
            "Why it was promoted:\n\n" + "\n".join(f"- {reason}" for reason in decision.reasons[-_PAGE_REASONS:]),
            f"`loraxs-search pull {task}:{number}` fetches it. Its README.md, among the files, is the model card.",
        ]
        client.update_model_version(task, str(number), "\n\n".join(page)[:MAX_TAG])
        factor_sets.publish(registry, manifest.base_digest, manifest.base_model.id, manifest.factors)
        check()  # registering took a while, and a server has other clients
        client.set_registered_model_alias(task, CHAMPION, str(number))
        made = replace(decision, version=number)
        self._show(_headline(number, candidate, made.metric))
        self._record(made)
        return made, number

    # ---- changing one's mind -----------------------------------------------------------------------------------------
    def rollback(self, to: int | None = None) -> Decision:
        """Make an earlier version champion again; by default the one before the present champion.

        With `to`, also where the task has no champion. A rollback that was killed is finished by the next call, which
        goes no further than the first one would have.

        Raises:
            RegistryError: there is no such version, or no champion to go back from, or none before it.
        """
        registry, task = self.registry, self.task
        registry.check_known(task)
        with self._changing() as (check, begun):
            if begun is not None and begun.action == "rollback" and to in (None, begun.version):
                return begun
            champion = registry.readable_champion(task) if to is not None else registry.resolve(task)
            held = champion.version if champion else None
            number = to if to is not None or held is None else self._previous(held)
            target = registry.resolve(f"{task}:{number}")
            if target.version == held:
                hint = f"see `loraxs-search show {task}`"
                raise RegistryError(f"{task}:{number} already is the champion.", hint=hint)
            reason = f"from version {held or '-'} back to version {target.version}"
            study, metric = target.candidate.study, target.decision.metric
            decision = self._decision(study, metric, champion, "rollback", (reason,), target)
            check()
            return self._make(_Change(decision, target.digest, held))

    def remove(self, version: int, forced: bool = False) -> Decision:
        """Delete one version; one with an alias only when `forced`. A task whose champion is deleted has none.

        Raises:
            RegistryError: no such version, or it has an alias.
        """
        registry, name = self.registry, f"{self.task}:{version}"
        registry.check_known(self.task)
        with self._changing() as (check, begun):
            if begun is not None and begun.action == "remove" and begun.version == version:
                return begun
            target = registry.resolve(name)
            if target.aliases and not forced:
                raise RegistryError(
                    f"A version with an alias must not be removed, but {name} is {' and '.join(target.aliases)}.",
                    hint=f"first make another one champion, with `loraxs-search rollback {self.task}` or `promote`, or "
                    "add --force",
                )
            champion, why = registry.readable_champion(self.task), (f"removed version {version}",)
            study, metric = target.candidate.study, target.decision.metric
            decision = self._decision(study, metric, champion, "remove", why, target)
            check()
            change = _Change(replace(decision, forced=forced), target.digest, champion.version if champion else None)
            return self._make(change)

    def _make(self, change: _Change) -> Decision:
        """Do a change, or what is left to do of one: each step may have been done before."""
        decision, registry, client = change.decision, self.registry, self.registry.client
        self._write(CHANGE, to_json(change))
        target = registry.find(AdapterName(self.task, None, decision.version))
        if decision.action == "rollback" and target is not None:
            client.set_registered_model_alias(self.task, CHAMPION, str(target.version))
            self._show(_headline(target.version, target.candidate, decision.metric))
        elif decision.action == "remove":
            if target is not None and target.digest == change.digest:  # else another has its number now
                for alias in target.aliases:
                    client.delete_registered_model_alias(self.task, alias)
                client.delete_model_version(self.task, str(target.version))
            model = registry.model(self.task)
            # MLflow's client repeats a call that a slow server did not answer: two versions may have one folder.
            if model is not None and self._with_digest(change.digest) is None:
                for tag in {tag.format(change.digest[:32]) for tag in RECORDS} & model.tags.keys():
                    client.delete_registered_model_tag(self.task, tag)
            if decision.version == change.champion:
                self._show("none")
        if (decision.number, decision.at) not in {(it.number, it.at) for it in registry.decisions(self.task)}:
            self._record(decision)
        self._delete(CHANGE)
        return decision

    @contextlib.contextmanager
    def _changing(self) -> Iterator[tuple[Check, Decision | None]]:
        """Wait until no other change of the task runs, and finish what killed processes have begun.

        Yields what raises once the lock is lost, and the rollback or removal that was finished.
        """
        registry, task, finished = self.registry, self.task, None
        with registry.errors(), self.locked() as check:
            if (begun := registry.task_tags(task, CHANGE).get(CHANGE)) is not None:
                check()
                change = None
                with contextlib.suppress(ValueError):  # pydantic's ValidationError is one
                    change = from_json(_Change, begun)
                if change is not None and change.decision.action == "rollback":  # unless others changed it since
                    champion = registry.readable_champion(task)
                    target = registry.find(AdapterName(task, None, change.decision.version))
                    is_there = target is not None and target.digest == change.digest
                    if not is_there or (champion and champion.version) not in (
                        change.champion,
                        change.decision.version,
                    ):
                        change = None
                if change is not None:
                    finished = self._make(change)
                else:
                    _logger.warning("a change of the champion of %s was cut short, and cannot be finished", task)
                    self._delete(CHANGE)
            if (adapter := registry.unrecorded(task, registry.decisions(task))) is not None:
                check()  # once the alias moves on, nothing tells of this promotion
                self._show(_headline(adapter.version, adapter.candidate, adapter.decision.metric))
                self._record(adapter.decision)
            yield check, finished

    def _decision(
        self,
        study: str,
        metric: str,
        champion: RegisteredAdapter | None,
        action: Action,
        reasons: tuple[str, ...],
        target: RegisteredAdapter | None = None,
    ) -> Decision:
        """Return a decision that the rule has no part in, with its number.

        Args:
            target: The version that it is on.
        """
        before, of = (None if it is None else it.candidate for it in (champion, target))
        decision = Decision(
            task=self.task,
            study=study,
            promoted=action == "rollback",
            winner=of.trial_id if of else None,
            winner_metric=of.test_metrics.get(metric) if of else None,
            champion_metric=before.test_metrics.get(metric) if before else None,
            metric=metric,
            reasons=reasons,
            champion=before.name if before else None,
            action=action,
            version=target.version if target else None,
        )
        return _numbered(decision, self.registry.history(self.task))

    def _previous(self, champion: int) -> int:
        """Return who was champion before; whom a rollback has left behind is not it."""
        registry, task = self.registry, self.task
        known = {version.version for version in registry.versions(task)}
        reigns: list[int] = []
        for decision in registry.history(task):
            number = decision.version
            if not decision.promoted or number is None:
                continue
            if decision.action == "rollback" and number in reigns:
                while reigns.pop() != number:
                    pass
            reigns.append(number)
        if champion in reigns:
            while reigns.pop() != champion:
                pass
        else:
            reigns = sorted(number for number in known if number < champion)
        for number in reversed(reigns):  # `known` are the last hundred
            is_there = number in known or registry.find(AdapterName(task, None, number)) is not None
            if number != champion and is_there:
                return number
        have = ", ".join(f"{task}:{number}" for number in sorted(known))
        raise RegistryError(
            f"{task}:{champion} must have a champion before it, but it has none. There are: {have}.",
            hint=f"name one: `loraxs-search rollback {task} --to N`" if known - {champion} else "promote another study",
        )

    # ---- tags --------------------------------------------------------------------------------------------------------
    def _record(self, decision: Decision) -> None:
        self._write(f"{DECISIONS}n{decision.number:09d}.{datetime.now(UTC):%Y%m%dT%H%M%S.%fZ}", _fitted(decision))

    def _show(self, champion: str) -> None:
        """Say in MLflow's list of models who is champion."""
        self.registry.client.set_registered_model_tag(self.task, SHOWN, champion)

    def _with_digest(self, digest: str) -> Any | None:
        """Return MLflow's version of the task that holds the folder of this content address; None if there is none."""
        only = f"name = '{self.task}' and tags.`{DIGEST}` = '{digest}'"
        return next(iter(self.registry.client.search_model_versions(only, max_results=1)), None)

    def _write(self, name: str, text: str) -> None:
        """Set a tag of the task's run, which the first one makes."""
        client = self.registry.client
        if not (runs := self.registry.task_runs(self.task)):
            note = "A run for each task: what `loraxs-search promote` has decided, and who has answered its test rows."
            experiment = ensure_experiment(client, self.registry.uri, DECISIONS_EXPERIMENT, note)
            made = client.create_run(experiment, tags={TASK: self.task}, run_name=self.task)
            client.set_terminated(made.info.run_id)
            runs = self.registry.task_runs(self.task)
        client.set_tag(runs[0].info.run_id, name, text)

    def _delete(self, name: str) -> None:
        for run in self.registry.task_runs(self.task):
            if name in run.data.tags:
                self.registry.client.delete_tag(run.info.run_id, name)

    # ---- one promoter at a time --------------------------------------------------------------------------------------
    @contextlib.contextmanager
    def locked(self, wait_s: float | None = None) -> Iterator[Check]:
        """Hold the task's lock: aliases have no compare-and-swap. Yields what raises once the lock is lost.

        An embedded store has a file beside it, which the system frees when its holder dies, a server a lease: of
        several runs that a task may have, the one with the lowest id has it.

        Raises:
            RegistryError: another promoter holds the lock for longer than `wait_s`, by default `WAIT_S`.
        """
        database, wait_s = sqlite_path(self.registry.uri), WAIT_S if wait_s is None else wait_s
        if database is None:
            from mlflow.exceptions import MlflowException

            owner = f"{socket.gethostname()}:{os.getpid()}:{uuid.uuid4().hex[:12]}"

            def renew() -> None:
                if (holder := _owner(self._lease())) != owner:
                    raise RegistryError(
                        f"The lease on {self.task} must be held to change its champion, but {holder or 'nobody'} holds"
                        " it.",
                        hint="promoting took too long and another process took over: decide again",
                    )
                self._write(LEASE, f"{owner} {time.time()}")

            self._acquire(owner, wait_s)
            try:
                yield renew
            finally:
                with contextlib.suppress(MlflowException):  # a server that is away by now lets it run out
                    if _owner(self._lease()) == owner:
                        self._delete(LEASE)
            return
        from filelock import Timeout  # late, as in `file_lock`

        path = database.with_name(f"{database.name}.promote.lock")
        with disk_faults(path):
            try:
                held = file_lock(path).acquire(timeout=wait_s)
            except Timeout as error:
                raise RegistryError(
                    f"{path} must be free to change a champion, but another process has held it for {wait_s:.0f} s.",
                    hint=f"try again; a process that is suspended keeps it, and `fuser {path}` names who has it open",
                ) from error
            with held:
                yield lambda: None

    def _acquire(self, owner: str, wait_s: float) -> None:
        """Wait for the lease.

        Whoever finds it free, or sees it stand still for `TTL_S`, writes its name, waits a moment, and holds it if its
        name still stands there: of two that wrote, the last one. Clocks of two machines are never compared. Not proof
        against a promoter that sleeps between reading and writing for longer than that moment: so it is renewed right
        before the champion moves, which raises unless it is still held.
        """
        from mlflow.exceptions import MlflowException

        began, seen = time.monotonic(), self._lease()
        seen_at = began
        while True:
            if not seen or time.monotonic() - seen_at >= TTL_S:
                try:
                    self._write(LEASE, f"{owner} {time.time()}")
                except MlflowException:
                    # Of two that insert the tag at once, the server's database refuses one: the other's stands there.
                    if not self._lease():
                        raise
                time.sleep(random.uniform(*_SETTLE_S))
                if _owner(self._lease()) == owner:
                    return
            time.sleep(random.uniform(*_POLL_S))
            if (lease := self._lease()) != seen:
                seen, seen_at = lease, time.monotonic()
            if time.monotonic() - began > wait_s:
                raise RegistryError(
                    f"The lease on {self.task} must be free to change its champion, but"
                    f" {_owner(seen) or 'another promoter'} holds it.",
                    hint="try again; a promoter that died loses it within two minutes",
                )

    def _lease(self) -> str:
        """Return the lease as it stands; empty if nobody has it."""
        runs = self.registry.task_runs(self.task)
        return str(runs[0].data.tags.get(LEASE, "")) if runs else ""


def _owner(lease: str) -> str:
    """Return who holds a lease, which has the time of its last renewal behind it; empty if nobody does."""
    return lease.rpartition(" ")[0]


def _headline(version: int, candidate: Candidate, metric: str) -> str:
    """Return how good and how big a version is, as MLflow's pages show it."""
    over_seeds, score = seed_statistics(candidate).get(metric), candidate.test_metrics.get(metric)
    scored = f"{metric} -" if score is None else f"{metric} {score:.4f}"
    seeds = f" ({over_seeds} over seeds)" if over_seeds else ""
    return f"version {version}, {scored}{seeds}, {candidate.stored_bytes:,} bytes"


def _kept_rows(file: Path | None) -> tuple[bytes | None, ScoredRows | None, str]:
    """Return a file of answers as bytes and as rows, and what is wrong with it; a damaged one counts as missing."""
    if file is None:
        return None, None, ""
    from loraxs_search.registry.evidence import ScoredRows

    content = file.read_bytes()
    try:
        return content, ScoredRows.from_bytes(content), ""
    except IntegrityError as error:
        return None, None, f"{file} is damaged and counts as missing: {error.message}"


def _numbered(decision: Decision, past: Sequence[Decision]) -> Decision:
    """Return a decision that is made now, with its number. Clocks of promoters differ; they take turns."""
    at = datetime.now(UTC).isoformat(timespec="milliseconds")
    return replace(decision, at=at, number=1 + max((known.number for known in past), default=0))


# ---- records that fit into a tag -------------------------------------------------------------------------------------
def _fitted(decision: Decision) -> str:
    """Return the decision as JSON short enough for a tag, the last reasons kept: they say what was decided.

    Of many slices, those that lose most are kept.
    """
    text, short = to_json(decision), decision
    while len(text) > MAX_TAG and short.slices:
        least = min(short.slices, key=lambda each: -math.inf if each.loss is None else each.loss)
        short = replace(short, slices=tuple(each for each in short.slices if each is not least))
        text = to_json(short)
    while len(text) > MAX_TAG and (short.reasons or short.seen):
        short = replace(short, reasons=short.reasons[1:], seen=short.seen if short.reasons else short.seen[:-20])
        left_out = f"({len(decision.reasons) - len(short.reasons)} more reasons)"
        text = to_json(replace(short, reasons=(left_out, *short.reasons)))
    return text


def _fitted_candidate(candidate: Candidate) -> str:
    """Return the candidate as JSON short enough for a tag: its own scores whole, what is beside them shortened."""
    text, limit = to_json(candidate), MAX_TAG
    while len(text) > MAX_TAG and limit > 1:
        limit //= 2
        baselines = (
            replace(
                each,
                answer=each.answer[:limit] if isinstance(each.answer, str) else each.answer,
                failed=each.failed[:limit],
            )
            for each in candidate.baselines
        )
        refits = (
            replace(
                each,
                validation_metrics={name: float(f"{x:.6g}") for name, x in each.validation_metrics.items()},
                failed=each.failed[:limit],
            )
            for each in candidate.refits[: max(1, limit // 25)]
        )
        earlier = candidate.earlier_finalists[: limit // 25]
        short = replace(candidate, baselines=tuple(baselines), refits=tuple(refits), earlier_finalists=earlier)
        text = to_json(short)
    return text


# ---- a version as MLflow has it --------------------------------------------------------------------------------------
def _create_version(client: MlflowClient, uri: str, folder: Path, manifest: Manifest, tags: Mapping[str, str]) -> Any:
    """Register a folder, as the model that the search has logged, else as one that is logged now."""
    task = manifest.task.registered_name
    experiments = [experiment.experiment_id for experiment in client.search_experiments()]
    logged = client.search_logged_models(experiments, f"tags.`{DIGEST}` = '{tags[DIGEST]}'")
    model = next((each for each in logged if str(each.status) == "READY"), None)  # that the search has logged
    if model is None:
        note = "Adapters that were promoted here and trained elsewhere: their runs are in another store."
        model = client.create_logged_model(
            ensure_experiment(client, uri, "loraxs-search adapters", note),
            name=f"{task}-{manifest.trial_id}".replace(".", "-"),
            tags={"loraxs.study": manifest.study, "trial_id": manifest.trial_id, DIGEST: tags[DIGEST]},
            model_type="LORAXS",
        )
        client.log_model_artifacts(model.model_id, str(folder))
        model = client.finalize_logged_model(model.model_id, "READY")
    is_embedded = artifact_root(uri) is not None
    made = client.create_model_version(
        task,
        # Not models:/ID: the embedded store would look that up in the process-wide default store, which is another.
        source=model.artifact_location,
        run_id=model.source_run_id or None,  # a server with accounts forbids an empty one
        tags={**tags, _MODEL_ID: model.model_id},
        # A server wants to know whose the artifacts are; the embedded store would again look elsewhere.
        model_id=None if is_embedded else model.model_id,
    )
    if is_embedded:  # a server notes the version on the logged model by itself: the UI then links the two
        listed = [*json.loads(model.tags.get(_MODEL_VERSIONS, "[]")), {"name": task, "version": int(made.version)}]
        client.set_logged_model_tags(model.model_id, {_MODEL_VERSIONS: json.dumps(listed)})
    return made


# ---- what MLflow loads and serves ------------------------------------------------------------------------------------
_LOADER, _FLAVOR = "loraxs_search.mlflow_flavor", "loraxs_search"  # every `MLmodel` out there has these names
# Without this package: no index has it, and whoever took its name there would have their code run.
_PINNED = ("torch", "transformers", "peft", "mlflow", "numpy", "pandas", "safetensors", "tokenizers")


def _add_mlflow_model(client: MlflowClient, version: Any, manifest: Manifest) -> None:
    """Lay an `MLmodel` and its companions beside a version's adapter.

    `MLmodel` names the loader, and nothing is pickled. The adapter's own files stay as they are, and `pull` fetches
    none of these.
    """
    from mlflow import pyfunc
    from mlflow.models import Model, ModelSignature
    from mlflow.types.schema import AnyType, ColSpec, Schema

    from loraxs_search.tasks.kinds import kind_of

    kind, model_id = kind_of(manifest.task), version.tags[_MODEL_ID]
    types: dict[str, AnyType | str] = {
        "label": "string",
        "score": "double",
        "probabilities": AnyType(),
        "expected": "double",
        "entities": AnyType(),
    }
    model = Model(run_id=version.run_id or None, model_id=model_id)
    model.add_flavor(
        _FLAVOR,
        task=manifest.task.registered_name,
        kind=manifest.task.kind,
        method=manifest.hyperparameters.method,
        base_model=manifest.base_model.id,
        digest=version.tags[DIGEST],
    )
    with tempfile.TemporaryDirectory() as folder:
        made = Path(folder) / "model"
        pyfunc.save_model(
            str(made),
            loader_module=_LOADER,
            mlflow_model=model,
            signature=ModelSignature(
                Schema([ColSpec("string", name) for name in kind.question_columns]),
                Schema([ColSpec(own, name, required=False) for name, own in types.items()]),
            ),
            input_example=[dict(zip(kind.question_columns, kind.example, strict=True))],
            # Without local labels, as in 2.9.1+cpu: package indexes do not have those.
            pip_requirements=[f"{name}=={version.partition('+')[0]}" for name, version in installed(_PINNED).items()],
            model_config={"device": "cpu"},
        )
        model.model_size_bytes = manifest.size.stored_bytes  # MLflow has measured these files instead
        model.save(str(made / MLMODEL))
        for path in made.iterdir():
            if path.name not in MLFLOW_FILES:  # MLflow adds what it finds in the working directory, such as uv.lock
                path.unlink()
        last = (made / MLMODEL).rename(Path(folder) / MLMODEL)
        client.log_model_artifacts(model_id, str(made))
        client.log_model_artifact(model_id, str(last))  # once it is there, the others are
