"""Changing which version a task's names mean: rollback, removal, and what every change has in common."""

from __future__ import annotations

import contextlib
import hashlib
import logging
import math
from collections.abc import Iterator, Sequence
from dataclasses import dataclass, replace
from datetime import UTC, datetime
from typing import Any

from loraxs_search.errors import ForeignVersionError, RegistryError
from loraxs_search.mlflow_uri import sqlite_path
from loraxs_search.records import Decision, from_json, to_json
from loraxs_search.registry import _decisions, _versions
from loraxs_search.registry._mlflow import speaking
from loraxs_search.registry._versions import CHANGE, RegisteredAdapter, adapter_tag
from loraxs_search.registry.finalist import better_when, identity
from loraxs_search.registry.names import CHAMPION, AdapterName, check_task, parse_name
from loraxs_search.registry.pages import SHOWN, TaskSummary, shown, summarise, task_page
from loraxs_search.registry.promotion_lock import Check, file_promotion_lock, lease_promotion_lock
from loraxs_search.registry.reader import RegistryReader

_logger = logging.getLogger(__name__)


@dataclass(frozen=True)
class Change:
    """A rollback or a removal that has begun. Whoever next changes the task's champion finishes it.

    Args:
        decision: What is recorded of it at its end.
        digest: Content address of the version's folder: a number may be given again.
        champion: The version that was champion before; None if there was none.
    """

    decision: Decision
    digest: str
    champion: int | None = None


class ChangingRegistry(RegistryReader):
    """Changes the champions of the MLflow store at `uri`.

    One change of a task's champion runs at a time: under a file lock on an embedded store, under a lease on a server.
    """

    def rollback(self, task: str, to: int | None = None) -> Decision:
        """Make an earlier version champion again; by default the one before the present champion.

        With `to`, also where the task has no champion. A rollback that was killed is finished by the next call, which
        goes no further than the first one would have.

        Raises:
            RegistryError: there is no such version, or no champion to go back from, or none before it.
        """
        with self._locked(check_task(task)) as check:
            begun = self._finish_begun(task, check)
            if begun is not None and begun.action == "rollback" and to in (None, begun.version):
                return begun
            champion = self._readable_champion(task) if to is not None else self.resolve(task)
            held = champion.version if champion else None
            number = to if to is not None or held is None else self._previous(task, held)
            target = self.resolve(f"{task}:{number}")
            if champion is not None and target.version == held:
                raise RegistryError(
                    f"{task}:{number} already is the champion.", hint=f"see `loraxs-search show {task}`"
                )
            decision = self._decision_on(target, champion, "rollback")
            check()
            return self._carry_out(Change(decision, target.digest, held))

    def remove(self, name: str, forced: bool = False) -> Decision:
        """Delete one version, named `TASK:3`; a champion, or the best version, only when `forced`.

        A task whose champion is deleted has none.

        Raises:
            RegistryError: no such version, or it is a champion or the best.
        """
        parsed = parse_name(name)
        if parsed.version is None:
            raise RegistryError(f"`version` must be given to remove one, but got {name!r}.", hint="write TASK:3")
        with self._locked(parsed.task) as check:
            begun = self._finish_begun(parsed.task, check)
            if begun is not None and begun.action == "remove" and begun.version == parsed.version:
                return begun
            target = self.resolve(name)
            champion = self._readable_champion(parsed.task)
            if target.aliases and not forced:
                first = "promote another study first"
                if any(own.version != target.version for own in self.versions(parsed.task)):
                    first = f"make another one champion with `loraxs-search rollback {parsed.task}`"
                raise RegistryError(
                    f"A version with an alias must not be removed, but {name} is {' and '.join(target.aliases)}.",
                    hint=f"{first}, or add --force",
                )
            if not forced and self._is_best(target):
                raise RegistryError(
                    f"The best version must not be removed, but {name} has the best test {target.decision.metric}.",
                    hint="add --force: its files are deleted for good",
                )
            decision = replace(self._decision_on(target, champion, "remove"), forced=forced)
            check()
            return self._carry_out(Change(decision, target.digest, champion.version if champion else None))

    def _carry_out(self, change: Change) -> Decision:
        """Do a change of which its tag tells until it is recorded, and return its decision."""
        task = change.decision.task
        with speaking(self.uri):
            self._client.set_registered_model_tag(task, CHANGE, to_json(change))
        return self._finish(change)

    def _finish_begun(self, task: str, check: Check) -> Decision | None:
        """Finish what killed processes have begun; return the rollback or removal among it, None if there is none."""
        finished = self._finish_change(task, check)
        self._finish_promotion(task, check)
        return finished

    def _finish_promotion(self, task: str, check: Check) -> None:
        """Record a promotion that was cut off after the alias was moved: once it moves on, nothing tells of it."""
        if (model := self._model(task)) is None:
            return
        if (adapter := self._unrecorded(model, _decisions.latest(model.tags, task))) is not None:
            check()
            self._summarise(summarise(task, adapter.version, adapter.candidate, adapter.decision))
            self._record(adapter.decision)

    def _finish_change(self, task: str, check: Check) -> Decision | None:
        """Finish the change during which a process was killed, and return its decision; None if there is none.

        One after which the champion was changed by other means is dropped.
        """
        model = self._model(task)
        text = model.tags.get(CHANGE) if model is not None else None
        if text is None:
            return None
        check()
        try:
            change = from_json(Change, text)
        except ValueError:  # pydantic's ValidationError is one
            change = None
        if change is not None and self._may_finish(change):
            return self._finish(change)
        _logger.warning("a change of the champion of %s was cut short, and cannot be finished any more", task)
        with speaking(self.uri):
            self._client.delete_registered_model_tag(task, CHANGE)
        return None

    def _may_finish(self, change: Change) -> bool:
        decision = change.decision
        if decision.action != "rollback":
            return True
        champion = self._readable_champion(decision.task)
        target = self._find(AdapterName(decision.task, None, decision.version))
        if target is None or target.digest != change.digest:
            return False
        return (champion.version if champion else None) in (change.champion, decision.version)

    def _finish(self, change: Change) -> Decision:
        """Do what is left to do of a change: each step may have been done before."""
        decision, task = change.decision, change.decision.task
        target = self._find(AdapterName(task, None, decision.version))
        if decision.action == "rollback" and target is not None:
            with speaking(self.uri):
                self._client.set_registered_model_alias(task, CHAMPION, str(target.version))
            self._summarise(summarise(task, target.version, target.candidate, decision))
        elif decision.action == "remove":
            self._delete(change, target)
        if (decision.number, decision.at) not in {(one.number, one.at) for one in self.latest_decisions(task)}:
            self._record(decision)
        with speaking(self.uri):
            self._client.delete_registered_model_tag(task, CHANGE)
        return decision

    def _delete(self, change: Change, target: RegisteredAdapter | None) -> None:
        """Delete a version, its names and its records."""
        task, model = change.decision.task, self._known_model(change.decision.task)
        with speaking(self.uri):
            if target is not None and target.digest == change.digest:
                for alias in target.aliases:
                    self._client.delete_registered_model_alias(task, alias)
                self._client.delete_model_version(task, str(target.version))
            # MLflow's client repeats a call that a slow server did not answer: two versions may have one folder.
            if _versions.with_digest(self._client, task, change.digest) is None:
                for tag in (adapter_tag(change.digest, kind) for kind in (_versions.CANDIDATE, _versions.DECISION)):
                    if tag in model.tags:
                        self._client.delete_registered_model_tag(task, tag)
        if change.decision.version == change.champion:
            self._summarise(TaskSummary(task))

    def _readable_champion(self, task: str) -> RegisteredAdapter | None:
        """Return the champion; None, with a warning, where the alias is on a version that something else registered."""
        try:
            return self.champion(task)
        except ForeignVersionError as error:
            _logger.warning("the champion of %s cannot be read: %s", task, error.message)
            return None

    def _is_best(self, target: RegisteredAdapter) -> bool:
        """Whether no other version scores as well on the same test rows, by the metric that promoted this one."""
        metric, rows = target.decision.metric, target.candidate.test_fingerprint
        sign = 1.0 if better_when(metric, "maximize") == "maximize" else -1.0
        scores = {
            version.version: sign * version.candidate.test_metrics.get(metric, -sign * math.inf)
            for version in self.versions(target.task)
            if version.candidate.test_fingerprint == rows
        }
        own = scores.pop(target.version, -math.inf)
        return all(own > other for other in scores.values())

    def _decision_on(self, target: RegisteredAdapter, champion: RegisteredAdapter | None, action: Any) -> Decision:
        metric, before = target.decision.metric, champion.candidate if champion else None
        reason = {"rollback": f"from version {champion.version if champion else '-'} back to", "remove": "removed"}[
            action
        ]
        return Decision(
            task=target.task,
            study=target.candidate.study,
            promoted=action == "rollback",
            winner=target.candidate.trial_id,
            winner_metric=target.candidate.test_metrics.get(metric),
            champion_metric=before.test_metrics.get(metric) if before else None,
            metric=metric,
            reasons=(f"{reason} version {target.version}",),
            champion=identity(before) if before else None,
            action=action,
            version=target.version,
            at=now(),
            number=_decisions.next_number(self.latest_decisions(target.task)),
        )

    def _previous(self, task: str, champion: int) -> int:
        """Return who was champion before; whom a rollback has left behind is not it."""
        known = {version.version for version in self.versions(task)}
        reigns: list[int] = []
        for decision in self.latest_decisions(task):
            number = decision.version
            if not decision.promoted or number is None:
                continue
            if decision.action == "rollback" and number in reigns:
                del reigns[_last(reigns, number) :]
            reigns.append(number)
        before = reigns[: _last(reigns, champion)] if champion in reigns else sorted(n for n in known if n < champion)
        for number in reversed(before):  # `known` are the last hundred
            if number == champion:
                continue
            if number in known or self._find(AdapterName(task, None, number)) is not None:
                return number
        have = ", ".join(f"{task}:{number}" for number in sorted(known))
        raise RegistryError(
            f"{task}:{champion} must have a champion before it, but it has none. There are: {have}.",
            hint=f"name one: `loraxs-search rollback {task} --to N`" if known - {champion} else "promote another study",
        )

    # ---- below -------------------------------------------------------------------------------------------------------
    def _record(self, decision: Decision) -> None:
        with speaking(self.uri):
            _versions.ensure_model(self._client, check_task(decision.task))
            _decisions.write(self._client, self.uri, decision)
            self._describe(decision.task)

    def _describe(self, task: str) -> None:
        """Describe a task's registered model, unless a user has written their own description."""
        model = self._known_model(task)
        present = model.description or ""
        if present and model.tags.get(_versions.PAGE) != _digest(present):
            return
        page = task_page(task, self._readable_champion(task), self.latest_decisions(task))
        self._client.set_registered_model_tag(task, _versions.PAGE, _digest(page))
        self._client.update_registered_model(task, page)

    def _summarise(self, summary: TaskSummary) -> None:
        with speaking(self.uri):
            self._client.set_registered_model_tag(summary.task, _versions.SUMMARY, to_json(summary))
            self._client.set_registered_model_tag(summary.task, SHOWN, shown(summary))

    @contextlib.contextmanager
    def _locked(self, task: str, *, creates: bool = False) -> Iterator[Check]:
        """Wait until no other promotion of the task runs; yields what raises once the lock is lost.

        Args:
            creates: Make the task where a server lacks it: its lock is one of its tags.
        Raises:
            UnknownTaskError: a server lacks the task, and it may not be made.
        """
        database = sqlite_path(self.uri)
        if database is not None:
            self._client  # noqa: B018  # refuses a store that is not there before a lock is made beside it
            with file_promotion_lock(database) as check:
                yield check
            return
        if creates:
            with speaking(self.uri):
                _versions.ensure_model(self._client, check_task(task))
        else:
            self.check_known(task)
        with speaking(self.uri), lease_promotion_lock(self._client, task) as check:
            yield check


def _last(numbers: Sequence[int], number: int) -> int:
    """Return the last place of a number."""
    return len(numbers) - 1 - numbers[::-1].index(number)


def _digest(text: str) -> str:
    return hashlib.sha256(text.encode()).hexdigest()


def now() -> str:
    return datetime.now(UTC).isoformat(timespec="milliseconds")
