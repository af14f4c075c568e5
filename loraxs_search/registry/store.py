"""The registry: one registered model per task, a version per promoted adapter, the alias `champion` on one of them.

Reading creates nothing. One change of a task's champion runs at a time. Each that was killed is finished by the next.
"""

from __future__ import annotations

import contextlib
import hashlib
import itertools
import logging
import math
import tempfile
from collections.abc import Callable, Collection, Hashable, Iterator, Mapping, Sequence
from dataclasses import dataclass, replace
from datetime import UTC, datetime
from pathlib import Path
from typing import TYPE_CHECKING, Any

from loraxs_search.errors import (
    ForeignVersionError,
    IntegrityError,
    LoraxsError,
    RegistryError,
    UnknownTaskError,
    UnknownVersionError,
    unknown_name,
)
from loraxs_search.records.adapter import Manifest
from loraxs_search.records.codec import from_json, to_json
from loraxs_search.records.literals import sign_of
from loraxs_search.records.promotion import Action, Baseline, Candidate, Decision, PromotionRule
from loraxs_search.records.task import Task
from loraxs_search.registry import factor_sets
from loraxs_search.registry.decisions import CHANGE, DECISIONS, USE, Check, TaskRecord
from loraxs_search.registry.finalist import Criterion, SeedStatistics, better_when, choose
from loraxs_search.registry.manifest import MANIFEST, MAX_BYTES, read, verify
from loraxs_search.registry.reads import StoreReader, mlflow_errors
from loraxs_search.registry.versions import (
    CHAMPION,
    DIGEST,
    SHOWN,
    SUMMARY,
    AdapterName,
    RegisteredAdapter,
    TaskSummary,
    fitted,
    read_version,
    register_version,
    remove_version,
)

if TYPE_CHECKING:
    from loraxs_search.registry.evidence import ScoredRows
    from loraxs_search.registry.promotion import Scored, ToleranceReference

    Rescore = Callable[[RegisteredAdapter], Scored]

_logger = logging.getLogger(__name__)
UNTOUCHED_BASE = "base"  # in place of a trial id
_MAX_TRIES = 5
_SHOWN_VERSIONS = 100
_FEW = 8
_NONE: Mapping[str, Any] = {}


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


def comparable(
    champion: RegisteredAdapter,
    finalist: Scored,
    rescore: Rescore | None,
    read_rows: Callable[[RegisteredAdapter], ScoredRows | None],
) -> Scored:
    """Make a champion comparable: scored anew are those of other test rows or another base, without answers, or whose
    texts were read by other rules.

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
            rows = read_rows(champion)
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


class Registry:
    """The adapters registered in the MLflow store at `uri`, and changing who is champion.

    Raises:
        TrackingError: the server does not answer.
        RegistryError: the store cannot be read.
    """

    def __init__(self, uri: str) -> None:
        self.uri = uri
        self.store = StoreReader(uri)

    # ---- reading -----------------------------------------------------------------------------------------------------
    def champion(self, task: str) -> RegisteredAdapter | None:
        """Return the task's champion; None when it has none."""
        return self._find(AdapterName(task))

    def resolve(self, name: str) -> RegisteredAdapter:
        """Return the adapter that `TASK`, `TASK@alias` or `TASK:3` names.

        Raises:
            RegistryError: no such task, alias or version; the message lists those that exist.
        """
        parsed = AdapterName.parse(name)
        if (adapter := self._find(parsed)) is None:
            raise self._unknown(parsed)
        return adapter

    def check_known(self, task: str) -> None:
        """Refuse a task that the registry does not have.

        Raises:
            UnknownTaskError: it has no version, and nothing was ever decided on it.
        """
        name = AdapterName(task)
        if self.store.model(task) is None and isinstance(error := self._unknown(name), UnknownTaskError):
            raise error

    def summaries(self, limit: int | None = None) -> list[TaskSummary]:
        """Return every task with its champion, by name; the first `limit` of them."""
        found = list[TaskSummary]()
        for model in self.store.models(limit):
            aliases = {alias: int(number) for alias, number in model.aliases.items()}
            champion, summary = aliases.get(CHAMPION), TaskSummary(model.name)
            with contextlib.suppress(KeyError, ValueError):
                summary = from_json(TaskSummary, model.tags[SUMMARY])
            if champion is None:
                summary = TaskSummary(model.name)
            elif summary.version != champion:  # the alias was moved by hand
                adapter = self._readable_champion(model.name)
                summary = TaskSummary(model.name)
                if adapter is not None:
                    summary = TaskSummary.of(model.name, adapter.version, adapter.candidate, adapter.decision)
            found.append(replace(summary, aliases=aliases))
        return sorted(found, key=lambda summary: summary.task)

    def states(self, tasks: Collection[str]) -> dict[str, Hashable]:
        """Return, of those tasks that are there, what differs once one of their names may mean another adapter.

        Raises:
            RegistryUnreadableError: there is no registry.
        """
        self.store.check_exists()
        # A list has other people's models too, so that a few tasks are asked for by name.
        listed = self.store.models() if len(tasks) > _FEW else filter(None, map(self.store.model, tasks))
        return {
            model.name: (model.creation_timestamp, model.last_updated_timestamp, frozenset(model.aliases.items()))
            for model in listed
            if model.name in tasks
        }

    def versions(self, task: str) -> list[RegisteredAdapter]:
        """Return the task's adapters, newest first, the last hundred when there are more.

        One whose records cannot be read is left out, with a warning, as are silently those of others.

        Raises:
            UnknownTaskError: there is no such task.
        """
        self.check_known(task)
        model, found = self.store.model(task), list[RegisteredAdapter]()
        for version in () if model is None else itertools.islice(self.store.versions(task), _SHOWN_VERSIONS):
            if DIGEST in version.tags:
                try:
                    found.append(read_version(version, model))
                except RegistryError as error:
                    _logger.warning("version %s of %s is left out: %s", version.version, version.name, error.message)
        return found

    def manifest(self, source: str) -> Manifest:
        """Return the manifest of a version, by its `source`.

        Raises:
            IntegrityError: it is damaged.
        """
        with tempfile.TemporaryDirectory() as folder:
            self.store.fetch_file(source, MANIFEST, Path(folder), MAX_BYTES[".json"])
            return read(Path(folder))

    def manifests(self) -> Iterator[tuple[str, str, Manifest]]:
        """Yield `TASK:3`, the adapter's digest and the manifest of every version of every task.

        Raises:
            RegistryError, IntegrityError: a version's files cannot be read.
        """
        for model in self.store.models():
            for version in self.store.versions(model.name):
                if digest := version.tags.get(DIGEST):
                    yield f"{model.name}:{version.version}", digest, self.manifest(version.source)

    def history(self, task: str) -> list[Decision]:
        """Return every decision on the task, refusals too, oldest first; unreadable decisions are left out.

        One that moved a name and was killed before it was written down is taken from the version it promoted.
        """
        if not self.store.exists:
            return []
        with mlflow_errors(self.uri):
            recorded = TaskRecord(self.store, task).decisions()
        made = self._unrecorded(task, recorded)
        return sorted([*recorded, made.decision], key=lambda each: each.number) if made else recorded

    def uses(self, task: str, test_rows: str) -> list[str]:
        """Return the keys of a task's finalists that are recorded to have answered these test rows."""
        if not self.store.exists:
            return []
        with mlflow_errors(self.uri):
            return list(TaskRecord(self.store, task).tags(f"{USE}{test_rows}.").values())

    def test_predictions(self, adapter: RegisteredAdapter) -> ScoredRows | None:
        """Return an adapter's answers to the test rows it was scored on; None when none were kept.

        Raises:
            IntegrityError: they are not what was registered.
        """
        if adapter.evidence is None:
            return None
        from loraxs_search.registry.evidence import FILE, MAX_ROWS_BYTES, ScoredRows

        with tempfile.TemporaryDirectory() as folder:
            source = f"{adapter.source.rstrip('/')}/evidence"
            content = self.store.fetch_file(source, FILE, Path(folder), MAX_ROWS_BYTES).read_bytes()
        if hashlib.sha256(content).hexdigest() != adapter.evidence:
            raise IntegrityError(f"{FILE} of {adapter.task}:{adapter.version} is not what was registered.")
        return ScoredRows.from_bytes(content)

    # ---- promoting ---------------------------------------------------------------------------------------------------
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

        name, (chosen, why) = AdapterName(task.registered_name).task, choose(rule, task, candidates)
        if chosen is None:
            study = study or ", ".join(sorted({candidate.study for candidate in candidates}))
            champion, metric = self.champion(name), Criterion.of(rule, task).metric
            with self._changing(name) as (check, _):
                decision = self._decision(name, study, metric, champion, "promote", why)
                check()
                self._record(decision)
            return decision, None
        answers, rows, damage = _kept_rows(predictions.get(chosen.trial_id))
        _, of_base, damage_of_base = _kept_rows(predictions.get(UNTOUCHED_BASE))
        first_reasons = (*why, *filter(None, (damage, damage_of_base)), *reasons)
        finalist = Scored(chosen, rows, of_base, baseline_answers)
        test = PromotionTest(rule, task, finalist)
        for _ in range(_MAX_TRIES):
            adapter = self.champion(name)
            scored = None if adapter is None else comparable(adapter, finalist, rescore, self.test_predictions)
            past, version = self.history(name), None if adapter is None else adapter.version
            reference = test.best(past, scored, version)
            is_asked = adapter and finalist.candidate.stored_bytes < adapter.candidate.stored_bytes
            if reference is not None and reference.rows is None and is_asked:
                reference = self._with_rows(reference, name, finalist, rescore)
            test.decide_after(past, scored, seen=seen, reference=reference)  # and remembers p-values
            with self._changing(name) as (check, _):
                past, present = self.history(name), self.champion(name)
                if (present and present.version) != version or reference != test.best(past, scored, version):
                    continue
                decision = test.decide_after(past, scored, seen=seen, reference=reference, forced=forced)
                decision = _numbered(replace(decision, reasons=(*first_reasons, *decision.reasons)), past)
                if not decision.promoted:
                    check()  # else its number is another's by now
                    self._record(decision)
                    return decision, None
                return self._register(folders[chosen.trial_id], chosen, decision, check, answers)
        raise RegistryError(f"The champion of {name} changed {_MAX_TRIES} times meanwhile.", hint="try again")

    def record_use(self, finalist: Candidate) -> None:
        """Record that a finalist has answered its test rows, for whoever promotes from another machine."""
        digest = hashlib.sha256(finalist.key.encode()).hexdigest()[:16]
        with mlflow_errors(self.uri):
            TaskRecord(self.store, finalist.task).write(f"{USE}{finalist.test_fingerprint}.{digest}", finalist.key)

    def _with_rows(
        self, reference: ToleranceReference, task: str, finalist: Scored, rescore: Rescore | None
    ) -> ToleranceReference:
        """Return a reference with its answers to the finalist's test rows, scored anew if they were not kept."""
        try:
            adapter = self.resolve(f"{task}:{reference.version}")
            scored = comparable(adapter, finalist, rescore, self.test_predictions)
        except RegistryError as error:
            return replace(reference, fault=error.message)
        is_here = scored.candidate.test_fingerprint == finalist.candidate.test_fingerprint
        return replace(reference, rows=scored.rows if is_here else None, fault=scored.note)

    def _register(
        self, folder: Path, candidate: Candidate, decision: Decision, check: Check, answers: bytes | None
    ) -> tuple[Decision, int]:
        """Make a folder the champion."""
        from loraxs_search.registry.card import version_page  # numpy, which reading a champion does without

        manifest, task, client = verify(folder), decision.task, self.store.client
        own = manifest.task.registered_name, manifest.study, manifest.trial_id
        if own != (task, candidate.study, decision.winner):
            raise IntegrityError(
                f"{folder} must hold the winner {candidate.study}/{decision.winner} of {task}, "
                f"but its manifest says {manifest.study}/{manifest.trial_id} of {own[0]}."
            )
        number = int(register_version(self.store, folder, manifest, candidate, decision, answers).version)
        client.update_model_version(task, str(number), version_page(manifest, candidate, decision, number))
        factor_sets.publish(self.store, manifest.base_digest, manifest.base_model.id, manifest.factors)
        check()  # registering took a while, and a server has other clients
        client.set_registered_model_alias(task, CHAMPION, str(number))
        made = replace(decision, version=number)
        self._summarise(TaskSummary.of(task, number, candidate, made))
        self._record(made)
        return made, number

    # ---- changing one's mind -----------------------------------------------------------------------------------------
    def rollback(self, task: str, to: int | None = None) -> Decision:
        """Make an earlier version champion again; by default the one before the present champion.

        With `to`, also where the task has no champion. A rollback that was killed is finished by the next call, which
        goes no further than the first one would have.

        Raises:
            RegistryError: there is no such version, or no champion to go back from, or none before it.
        """
        self.check_known(task)
        with self._changing(task) as (check, begun):
            if begun is not None and begun.action == "rollback" and to in (None, begun.version):
                return begun
            champion = self._readable_champion(task) if to is not None else self.resolve(task)
            held = champion.version if champion else None
            number = to if to is not None or held is None else self._previous(task, held)
            target = self.resolve(f"{task}:{number}")
            if target.version == held:
                hint = f"see `loraxs-search show {task}`"
                raise RegistryError(f"{task}:{number} already is the champion.", hint=hint)
            reason = f"from version {held or '-'} back to version {target.version}"
            study, metric = target.candidate.study, target.decision.metric
            decision = self._decision(task, study, metric, champion, "rollback", (reason,), target)
            check()
            return self._make(_Change(decision, target.digest, held), is_new=True)

    def remove(self, name: str, forced: bool = False) -> Decision:
        """Delete one version, named `TASK:3`; a champion, or the best version, only when `forced`.

        A task whose champion is deleted has none.

        Raises:
            RegistryError: no such version, or it is a champion or the best.
        """
        parsed = AdapterName.parse(name)
        if parsed.version is None:
            raise RegistryError(f"`version` must be given to remove one, but got {name!r}.", hint="write TASK:3")
        self.check_known(parsed.task)
        with self._changing(parsed.task) as (check, begun):
            if begun is not None and begun.action == "remove" and begun.version == parsed.version:
                return begun
            target, listed = self.resolve(name), self.versions(parsed.task)
            if target.aliases and not forced:
                first = "promote another study first"
                if any(own.version != target.version for own in listed):
                    first = f"make another one champion with `loraxs-search rollback {parsed.task}`"
                raise RegistryError(
                    f"A version with an alias must not be removed, but {name} is {' and '.join(target.aliases)}.",
                    hint=f"{first}, or add --force",
                )
            metric, rows = target.decision.metric, target.candidate.test_fingerprint
            sign = sign_of(better_when(metric, "maximize"))
            scores = {
                version.version: sign * version.candidate.test_metrics.get(metric, -sign * math.inf)
                for version in listed
                if version.candidate.test_fingerprint == rows
            }
            own = scores.pop(target.version, -math.inf)
            if not forced and all(own > other for other in scores.values()):
                raise RegistryError(
                    f"The best version must not be removed, but {name} has the best test {metric}.",
                    hint="add --force: its files are deleted for good",
                )
            champion = self._readable_champion(parsed.task)
            study, why = target.candidate.study, (f"removed version {target.version}",)
            decision = self._decision(parsed.task, study, metric, champion, "remove", why, target)
            check()
            change = _Change(replace(decision, forced=forced), target.digest, champion.version if champion else None)
            return self._make(change, is_new=True)

    def _make(self, change: _Change, *, is_new: bool = False) -> Decision:
        """Do a change, or what is left to do of one: each step may have been done before."""
        decision, task, record = change.decision, change.decision.task, TaskRecord(self.store, change.decision.task)
        if is_new:
            record.write(CHANGE, to_json(change))
        target = self._find(AdapterName(task, None, decision.version))
        if decision.action == "rollback" and target is not None:
            self.store.client.set_registered_model_alias(task, CHAMPION, str(target.version))
            self._summarise(TaskSummary.of(task, target.version, target.candidate, decision))
        elif decision.action == "remove":
            remove_version(self.store, task, change.digest, target)
            if decision.version == change.champion:
                self._summarise(TaskSummary(task))
        if (decision.number, decision.at) not in {(each.number, each.at) for each in record.decisions()}:
            self._record(decision)
        record.delete(CHANGE)
        return decision

    @contextlib.contextmanager
    def _changing(self, task: str) -> Iterator[tuple[Check, Decision | None]]:
        """Wait until no other change of the task runs, and finish what killed processes have begun.

        Yields what raises once the lock is lost, and the rollback or removal that was finished.
        """
        record, finished = TaskRecord(self.store, task), None
        with mlflow_errors(self.uri), record.locked() as check:
            if (begun := record.tags(CHANGE).get(CHANGE)) is not None:
                check()
                change, may_finish = None, False
                with contextlib.suppress(ValueError):  # pydantic's ValidationError is one
                    change, may_finish = from_json(_Change, begun), True
                if change is not None and change.decision.action == "rollback":  # unless others changed it since
                    champion = self._readable_champion(task)
                    target = self._find(AdapterName(task, None, change.decision.version))
                    is_there = target is not None and target.digest == change.digest
                    known = (change.champion, change.decision.version)
                    may_finish = is_there and (champion.version if champion else None) in known
                if change is not None and may_finish:
                    finished = self._make(change)
                else:
                    _logger.warning("a change of the champion of %s was cut short, and cannot be finished", task)
                    record.delete(CHANGE)
            if (adapter := self._unrecorded(task, record.decisions())) is not None:
                check()  # once the alias moves on, nothing tells of this promotion
                self._summarise(TaskSummary.of(task, adapter.version, adapter.candidate, adapter.decision))
                self._record(adapter.decision)
            yield check, finished

    def _decision(
        self,
        task: str,
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
            task=task,
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
        return _numbered(decision, self.history(task))

    def _previous(self, task: str, champion: int) -> int:
        """Return who was champion before; whom a rollback has left behind is not it."""
        known = {version.version for version in self.versions(task)}
        reigns: list[int] = []
        for decision in self.history(task):
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
            is_there = number in known or self._find(AdapterName(task, None, number)) is not None
            if number != champion and is_there:
                return number
        have = ", ".join(f"{task}:{number}" for number in sorted(known))
        raise RegistryError(
            f"{task}:{champion} must have a champion before it, but it has none. There are: {have}.",
            hint=f"name one: `loraxs-search rollback {task} --to N`" if known - {champion} else "promote another study",
        )

    # ---- below -------------------------------------------------------------------------------------------------------
    def _record(self, decision: Decision) -> None:
        name = f"{DECISIONS}n{decision.number:09d}.{datetime.now(UTC):%Y%m%dT%H%M%S.%fZ}"
        TaskRecord(self.store, decision.task).write(name, fitted(decision))

    def _summarise(self, summary: TaskSummary) -> None:
        self.store.client.set_registered_model_tag(summary.task, SUMMARY, to_json(summary))
        shown = "none"
        if summary.version is not None:
            mean, score = summary.mean, "-" if summary.score is None else f"{summary.score:.4f}"
            seeds = "" if mean is None else f" ({SeedStatistics(mean, summary.spread, 0)} over seeds)"
            size = "" if summary.stored_bytes is None else f", {summary.stored_bytes:,} bytes"
            shown = f"version {summary.version}, {summary.metric} {score}{seeds}{size}"
        self.store.client.set_registered_model_tag(summary.task, SHOWN, shown)

    def _find(self, name: AdapterName) -> RegisteredAdapter | None:
        """Return the adapter of a name; None if there is none."""
        model = self.store.model(name.task)
        number = name.version if model is None or name.alias is None else model.aliases.get(name.alias)
        if model is None or number is None:
            return None
        latest = (version for version in model.latest_versions if int(version.version) == int(number))
        version = next(latest, None) or self.store.version(name.task, int(number))
        return None if version is None else read_version(version, model)

    def _readable_champion(self, task: str) -> RegisteredAdapter | None:
        """Return the champion; None, with a warning, where the alias is on a version that something else registered."""
        try:
            return self.champion(task)
        except ForeignVersionError as error:
            _logger.warning("the champion of %s cannot be read: %s", task, error.message)
            return None

    def _unrecorded(self, task: str, recorded: Sequence[Decision]) -> RegisteredAdapter | None:
        """Return the champion whose promoter was cut off after it moved the alias and before it recorded its decision.

        It has that decision. None where the decision is recorded, or the alias was moved by hand.
        """
        model = self.store.model(task)
        champion = None if model is None else model.aliases.get(CHAMPION)
        last = next((decision.version for decision in reversed(recorded) if decision.promoted), None)
        if champion is None or int(champion) == last:
            return None
        try:
            adapter = self.resolve(f"{task}:{champion}")
        except ForeignVersionError:  # nobody's promotion
            return None
        decision = replace(adapter.decision, version=adapter.version)
        is_recorded = (decision.number, decision.at) in {(each.number, each.at) for each in recorded}
        return None if is_recorded else replace(adapter, decision=decision)

    def _unknown(self, name: AdapterName) -> RegistryError:
        """Return the error that says what there is instead."""
        place, model = self.uri, self.store.model(name.task)
        if model is None and not self.history(name.task):
            known = self.store.near(name.task)
            way = "`loraxs-search launch SPACE` searches for one, and `loraxs-search promote STUDY` registers it"
            hint = "`loraxs-search ls` has every task" if known else way
            return UnknownTaskError(f"{unknown_name('task', name.task, known)} Registry: {place}.", hint=hint)
        if model is None or name.alias == CHAMPION:
            return UnknownVersionError(
                f"Task {name.task} has no champion: none was promoted, or it was removed. Registry: {place}.",
                hint=f"see `loraxs-search history {name.task}` for why, or run `loraxs-search promote STUDY`",
            )
        listed = itertools.islice(self.store.versions(name.task), _SHOWN_VERSIONS)
        have = [f"{name.task}@{alias}" for alias in sorted(model.aliases)]
        have += [f"{name.task}:{number}" for number in sorted(int(version.version) for version in listed)]
        return UnknownVersionError(
            f"{unknown_name('adapter', str(name), have)} Registry: {place}.",
            hint=f"`loraxs-search show {name.task}` has every version, with its base",
        )


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
