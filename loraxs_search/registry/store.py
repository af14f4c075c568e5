"""The registry: one registered model per task, a version per promoted adapter, the alias `champion` on one of them."""

from __future__ import annotations

import contextlib
import hashlib
import math
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import replace
from datetime import UTC, datetime
from pathlib import Path
from typing import TYPE_CHECKING, Any

from loraxs_search.errors import IntegrityError, RegistryError
from loraxs_search.mlflow_uri import sqlite_path
from loraxs_search.records import Candidate, Decision, PromotionRule, Task, to_json
from loraxs_search.registry import _decisions, _promotion_lock, _signing, _versions, factor_sets
from loraxs_search.registry._client import speaking
from loraxs_search.registry.adapters import RegisteredAdapter, record_tags, version_tags
from loraxs_search.registry.comparison import Beside, ComparedChampion, Comparison, Rescore, Rescored, comparable
from loraxs_search.registry.criterion import Criterion, better_when
from loraxs_search.registry.finalist import Choice, choose, identity, key
from loraxs_search.registry.manifest import folder_digest, verify
from loraxs_search.registry.names import CHAMPION, AdapterName, base_alias, check_task, parse_name
from loraxs_search.registry.pages import task_page, version_page
from loraxs_search.registry.promotion import Scored
from loraxs_search.registry.reader import RegistryReader
from loraxs_search.registry.summary import SHOWN, TaskSummary, shown, summarise
from loraxs_search.registry.tags import PAGE, SUMMARY

if TYPE_CHECKING:
    from loraxs_search.registry.test_predictions import ScoredRows

__all__ = ["BASE_ALONE", "Beside", "RegisteredAdapter", "Registry", "Rescored"]

BASE_ALONE = "base"  # in place of a trial id
_MAX_TRIES = 5
_NO_PREDICTIONS: Mapping[str, Path] = {}
_NOTHING = Beside()


class Registry(RegistryReader):
    """The adapters registered in the MLflow store at `uri`, and changing who is champion.

    One promotion of a task runs at a time: under a file lock on an embedded store, under a lease on a server; and the
    champion is read again before it is replaced.
    """

    # ---- deciding ----------------------------------------------------------------------------------------------------
    def promote(
        self,
        rule: PromotionRule,
        task: Task,
        candidates: Sequence[Candidate],
        folders: Mapping[str, Path],
        forced: bool = False,
        predictions: Mapping[str, Path] = _NO_PREDICTIONS,
        rescore: Rescore | None = None,
        beside: Beside = _NOTHING,
    ) -> tuple[Decision, int | None]:
        """Choose the finalist among `candidates`, decide between it and the champion, and act on it.

        Nobody else promotes meanwhile.

        Args:
            folders: Trial id to sealed adapter folder.
            predictions: Trial id to the file of its answers to the test rows; under `BASE_ALONE` those of the base
                without an adapter.
            rescore: Scores a champion anew where it has no answers to these test rows, or stands on another base.
            beside: What else is known of the study and of the test rows.
        Returns:
            The decision, and the version it made champion.
        """
        choice = choose(rule, task, candidates)
        if choice.finalist is None:
            decision = self._refusal(
                rule, task, beside.study or ", ".join(sorted({c.study for c in candidates})), choice
            )
            with self._locked(task.name) as check:
                decision = replace(decision, number=_next(self.latest_decisions(task.name)))
                check()
                self._record(decision)
            return decision, None
        file = predictions.get(choice.finalist.trial_id)
        answers = file.read_bytes() if file is not None else None
        alone = predictions.get(BASE_ALONE)
        of_base = alone.read_bytes() if alone is not None else None
        finalist = Scored(choice.finalist, _read_predictions(answers), _read_predictions(of_base), beside.answers)
        for _ in range(_MAX_TRIES):
            champions = self._champions(task.name, finalist, rescore)  # may take minutes: before the lock
            with self._locked(task.name) as check:
                if self._moved(task.name, champions):
                    continue
                past = self.latest_decisions(task.name)
                comparison = Comparison(rule, task, finalist, forced, past, beside.seen)
                decision = comparison.decide({alias: one for alias, one in champions.items() if one is not None})
                reasons = (*choice.reasons, *decision.reasons)
                decision = replace(decision, reasons=reasons, at=_now(), number=_next(past))
                if not decision.promoted:
                    check()  # else its number is another's by now
                    self._sign_present(champions, finalist.candidate, folders)
                    self._record(decision)
                    return decision, None
                folder = folders[finalist.candidate.trial_id]
                return self._register(folder, finalist.candidate, decision, check, answers)
        raise RegistryError(f"The champion of {task.name} changed {_MAX_TRIES} times meanwhile.", hint="try again")

    def _register(
        self,
        folder: Path,
        candidate: Candidate,
        decision: Decision,
        check: _promotion_lock.Check,
        answers: bytes | None,
    ) -> tuple[Decision, int]:
        manifest = verify(folder)
        if (manifest.task.name, manifest.study, manifest.trial_id) != (decision.task, candidate.study, decision.winner):
            raise IntegrityError(
                f"{folder} must hold the winner {candidate.study}/{decision.winner} of {decision.task}, "
                f"but its manifest says {manifest.study}/{manifest.trial_id} of {manifest.task.name}."
            )
        task, digest, client = check_task(decision.task), folder_digest(folder), self._client
        aliases = decision.aliases or (CHAMPION,)
        with speaking(self.uri):
            # Records come first: no version lacks them, whenever this is killed.
            _versions.ensure_model(client, task)
            for key, value in record_tags(candidate, replace(decision, aliases=aliases), digest).items():
                client.set_registered_model_tag(task, key, value)
            tags = version_tags(manifest, candidate, digest)
            version = _versions.register(client, self.uri, task, folder, manifest, tags)
            page = version_page(manifest, candidate, decision, version)
            client.update_model_version(task, str(version), page)
            if answers is not None:
                from loraxs_search.registry.test_predictions import FILE

                _versions.add_test_predictions(client, task, version, FILE, answers)
            factor_sets.publish(client, self.uri, manifest.base_digest, manifest.base_model.id, manifest.factors)
            check()  # registering took a while, and a server has other clients
            self._move(task, aliases, version, digest)
        made = replace(decision, aliases=aliases, version=version)
        if CHAMPION in aliases:
            self._summarise(summarise(task, version, candidate, made))
        self._record(made)
        return made, version

    # ---- changing your mind ------------------------------------------------------------------------------------------
    def rollback(self, task: str, to: int | None = None) -> Decision:
        """Make an earlier version champion again; by default the one before the present champion.

        With `to`, also where the task has no champion.

        Where the team signs, only what it has signed before is signed anew; the present champion too, where its
        signature is an older version's.

        Raises:
            RegistryError: there is no such version, or no champion to go back from, or none before it.
            IntegrityError: the team has never signed that version.
        """
        with self._locked(check_task(task)) as check:
            champion = self.champion(task) if to is not None else self.resolve(task)
            held = champion.version if champion else None
            number = to if to is not None or held is None else self._previous(task, held)
            target = self.resolve(f"{task}:{number}")
            _signing.check_vouched_for(target)
            if champion is not None and target.version == held and _signing.is_signed(champion, CHAMPION):
                raise RegistryError(
                    f"{task}:{number} already is the champion.", hint=f"see `loraxs-search show {task}`"
                )
            own = base_alias(target.candidate.base_model)
            of_base = self.champion(task, own) if own != CHAMPION else None
            leads_base = (of_base.version if of_base else None) == held
            aliases = tuple(dict.fromkeys((CHAMPION, own) if leads_base else (CHAMPION,)))
            decision = self._decision_on(target, champion, "rollback", aliases)
            check()
            with speaking(self.uri):
                self._move(task, aliases, target.version, target.digest)
            self._summarise(summarise(task, target.version, target.candidate, decision))
            self._record(decision)
            return decision

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
            target = self.resolve(name)
            champion = self.champion(parsed.task)
            if target.aliases and not forced:
                other = f"make another one champion with `loraxs-search rollback {parsed.task}`, or add --force"
                raise RegistryError(
                    f"A champion must not be removed, but {name} is {' and '.join(target.aliases)}.",
                    hint=other if CHAMPION in target.aliases else "add --force: its base has no champion then",
                )
            if not forced and self._is_best(target):
                raise RegistryError(
                    f"The best version must not be removed, but {name} has the best test {target.decision.metric}.",
                    hint="add --force: its files are deleted for good",
                )
            decision = replace(self._decision_on(target, champion, "remove", target.aliases), forced=forced)
            check()
            with speaking(self.uri):
                for alias in target.aliases:
                    self._client.delete_registered_model_alias(parsed.task, alias)
                self._client.delete_model_version(parsed.task, str(target.version))
                self._forget(target)
            if CHAMPION in target.aliases:
                self._summarise(TaskSummary(parsed.task))
            self._record(decision)
            return decision

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

    def _decision_on(
        self, target: RegisteredAdapter, champion: RegisteredAdapter | None, action: Any, aliases: tuple[str, ...]
    ) -> Decision:
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
            aliases=aliases,
            version=target.version,
            at=_now(),
            number=_next(self.latest_decisions(target.task)),
        )

    def _previous(self, task: str, champion: int) -> int:
        """Return who was champion before; whom a rollback has left behind is not it."""
        known = {version.version for version in self.versions(task)}
        reigns: list[int] = []
        for decision in self.latest_decisions(task):
            number = decision.version
            if not decision.promoted or CHAMPION not in decision.aliases or number is None:
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
            hint=f"name one: `loraxs-search rollback {task} --to N`",
        )

    # ---- below -------------------------------------------------------------------------------------------------------
    def _champions(self, task: str, finalist: Scored, rescore: Rescore | None) -> dict[str, ComparedChampion | None]:
        """Return the champions that a finalist is compared with: the task's, and that of its base."""
        by_version: dict[int, ComparedChampion] = {}
        by_alias: dict[str, ComparedChampion | None] = {}
        for alias in dict.fromkeys((CHAMPION, base_alias(finalist.candidate.base_model))):
            champion = self.champion(task, alias)
            if champion is not None and champion.version not in by_version:
                by_version[champion.version] = comparable(champion, finalist, rescore, self.test_predictions)
            by_alias[alias] = by_version[champion.version] if champion is not None else None
        return by_alias

    def _sign_present(
        self, champions: Mapping[str, ComparedChampion | None], finalist: Candidate, folders: Mapping[str, Path]
    ) -> None:
        own = {
            alias: compared.adapter
            for alias, compared in champions.items()
            if compared is not None and key(compared.adapter.candidate) == key(finalist)
        }
        with speaking(self.uri):
            _signing.sign_present(self._client, self.uri, own, folders)

    def _moved(self, task: str, champions: Mapping[str, ComparedChampion | None]) -> bool:
        """Whether a champion is another one by now than when it was compared."""
        for alias, compared in champions.items():
            now = self.champion(task, alias)
            if (now.version if now else None) != (compared.adapter.version if compared else None):
                return True
        return False

    def _refusal(self, rule: PromotionRule, task: Task, study: str, choice: Choice) -> Decision:
        """Return the decision on a study none of whose candidates may be promoted."""
        champion, metric = self.champion(task.name), Criterion.of(rule, task).metric
        return Decision(
            task=task.name,
            study=study,
            promoted=False,
            winner=None,
            winner_metric=None,
            champion_metric=champion.candidate.test_metrics.get(metric) if champion else None,
            metric=metric,
            reasons=choice.reasons,
            champion=identity(champion.candidate) if champion else None,
            at=_now(),
        )

    def _record(self, decision: Decision) -> None:
        with speaking(self.uri):
            _versions.ensure_model(self._client, check_task(decision.task))
            _decisions.write(self._client, self.uri, decision)
            self._describe(decision.task)

    def _describe(self, task: str) -> None:
        """Describe a task's registered model, unless somebody has written a description of their own."""
        model = self._known_model(task)
        present = model.description or ""
        if present and model.tags.get(PAGE) != _digest(present):
            return
        page = task_page(task, self.champion(task), self.latest_decisions(task))
        self._client.set_registered_model_tag(task, PAGE, _digest(page))
        self._client.update_registered_model(task, page)

    def _move(self, task: str, aliases: Sequence[str], version: int, digest: str) -> None:
        """Have aliases mean a version, signed where the team signs."""
        number = _signing.sign_aliases(self._client, self.uri, task, aliases, version, digest)
        for alias in reversed(aliases):  # `champion` last: killed in between, the same call does it again
            self._client.set_registered_model_alias(task, alias, str(version))
        _signing.accept(self.uri, task, aliases, number)

    def _forget(self, removed: RegisteredAdapter) -> None:
        """Drop the records of a version that is no more."""
        tags = self._known_model(removed.task).tags
        for tag in record_tags(removed.candidate, removed.decision, removed.digest):
            if tag in tags:
                self._client.delete_registered_model_tag(removed.task, tag)

    def _summarise(self, summary: TaskSummary) -> None:
        with speaking(self.uri):
            self._client.set_registered_model_tag(summary.task, SUMMARY, to_json(summary))
            self._client.set_registered_model_tag(summary.task, SHOWN, shown(summary))

    @contextlib.contextmanager
    def _locked(self, task: str) -> Iterator[_promotion_lock.Check]:
        """Wait until no other promotion of the task runs; yields what raises once the lock is lost."""
        database = sqlite_path(self.uri)
        if database is not None:
            self._client  # noqa: B018  # refuses a store that is not there before a lock is made beside it
            with _promotion_lock.file_promotion_lock(database) as check:
                yield check
            return
        with speaking(self.uri):
            _versions.ensure_model(self._client, check_task(task))
        with speaking(self.uri), _promotion_lock.lease_promotion_lock(self._client, task) as check:
            yield check


def _read_predictions(content: bytes | None) -> ScoredRows | None:
    if content is None:
        return None
    from loraxs_search.registry.test_predictions import ScoredRows

    return ScoredRows.from_bytes(content)


def _next(past: Sequence[Decision]) -> int:
    """Return the number of the next decision. Promoters' clocks differ; they take turns, so the count does not."""
    return 1 + max((decision.number for decision in past), default=0)


def _last(numbers: Sequence[int], number: int) -> int:
    """Return the last place of a number."""
    return len(numbers) - 1 - numbers[::-1].index(number)


def _digest(text: str) -> str:
    return hashlib.sha256(text.encode()).hexdigest()


def _now() -> str:
    return datetime.now(UTC).isoformat(timespec="milliseconds")
