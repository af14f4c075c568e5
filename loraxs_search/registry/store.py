"""The registry: one registered model per task, a version per promoted adapter, the alias `champion` on one of them."""

from __future__ import annotations

import contextlib
import hashlib
import itertools
import tempfile
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import replace
from datetime import UTC, datetime
from pathlib import Path
from typing import TYPE_CHECKING, Any

from loraxs_search.errors import IntegrityError, RegistryError, unknown_name
from loraxs_search.mlflow_uri import redact, sqlite_path
from loraxs_search.records import Candidate, Decision, PromotionRule, Task, from_json, to_json
from loraxs_search.registry import _rest, _turns, _versions, factor_sets
from loraxs_search.registry._client import connect, exists, is_denied, is_missing, speaking
from loraxs_search.registry.adapters import RegisteredAdapter, fitted, read_version, version_tags
from loraxs_search.registry.contest import Contest, Opponent, Rescore, Rescored, opponent
from loraxs_search.registry.manifest import folder_digest, verify
from loraxs_search.registry.names import CHAMPION, AdapterName, base_alias, check_task, parse_name
from loraxs_search.registry.promotion import identity
from loraxs_search.registry.signature import sign
from loraxs_search.registry.summary import TAG as SUMMARY
from loraxs_search.registry.summary import TaskSummary, summarise

if TYPE_CHECKING:
    from mlflow import MlflowClient

    from loraxs_search.registry.rows import ScoredRows

__all__ = ["RegisteredAdapter", "Registry", "Rescored"]

_DECISION = "loraxs.decision."
_MAX_TRIES = 5
_NO_ROWS: Mapping[str, Path] = {}


class Registry:
    """The adapters registered in the MLflow store at `uri`.

    Reading creates nothing. Promotions take turns: under a file lock on an embedded store, under a lease on a server;
    and the champion is read again before it is replaced.
    """

    def __init__(self, uri: str) -> None:
        self.uri = uri
        self._connected: MlflowClient | None = None

    # ---- reading -----------------------------------------------------------------------------------------------------
    def champion(self, task: str, alias: str = CHAMPION) -> RegisteredAdapter | None:
        """Return the task's champion, or that of the alias of a base; None when it has none.

        Raises:
            TrackingError: the server does not answer.
        """
        return self._find(AdapterName(check_task(task), alias)) if exists(self.uri) else None

    def resolve(self, name: str) -> RegisteredAdapter:
        """Return the adapter that `TASK`, `TASK@alias` or `TASK:3` names.

        Raises:
            RegistryError: no such task, alias or version; the message lists what there is.
            TrackingError: the server does not answer.
        """
        parsed = parse_name(name)
        found = self._find(parsed) if exists(self.uri) else None
        if found is None:
            with speaking(self.uri):
                raise self._unknown(parsed)
        return found

    def tasks(self) -> list[str]:
        """Return the names of all tasks that adapters were decided on, sorted."""
        if not exists(self.uri):
            return []
        with speaking(self.uri):
            return sorted(model.name for model in _versions.models(self._client))

    def summaries(self, limit: int | None = None) -> list[TaskSummary]:
        """Return every task with its champion, by name; the first `limit` of them."""
        if not exists(self.uri):
            return []
        with speaking(self.uri):
            listed = _versions.models(self._client, page_size=min(limit or 1000, 1000))
            found = [self._summary(model) for model in itertools.islice(listed, limit)]
        return sorted(found, key=lambda summary: summary.task)

    def versions(self, task: str) -> list[RegisteredAdapter]:
        """Return the task's adapters, newest first, the last hundred when there are more.

        Raises:
            RegistryError: there is no such task.
        """
        model = self._model(task)
        if model is None:
            with speaking(self.uri):
                raise self._unknown(AdapterName(check_task(task)))
        aliases: dict[int, list[str]] = {}
        for alias, number in model.aliases.items():
            aliases.setdefault(int(number), []).append(alias)
        with speaking(self.uri):
            listed = _versions.versions(self._client, task)
        found = [read_version(version) for version in listed if "loraxs.digest" in version.tags]
        return [replace(version, aliases=tuple(sorted(aliases.get(version.version, ())))) for version in found]

    def history(self, task: str) -> list[Decision]:
        """Return every decision on the task, refusals too, oldest first."""
        if not exists(self.uri):
            return []
        model = self._model(task)
        tags = sorted(model.tags.items()) if model is not None else []
        return [from_json(Decision, value) for key, value in tags if key.startswith(_DECISION)]

    def rows(self, adapter: RegisteredAdapter) -> ScoredRows | None:
        """Return an adapter's answers to the test rows it was scored on; None when none were kept.

        Raises:
            IntegrityError: they are not what was registered.
        """
        if adapter.evidence is None:
            return None
        from loraxs_search.registry import rows as kept

        with speaking(self.uri), tempfile.TemporaryDirectory() as folder:
            from mlflow.artifacts import download_artifacts

            place = f"{adapter.source.rstrip('/')}/evidence/{kept.FILE}"
            path = download_artifacts(artifact_uri=place, dst_path=folder, tracking_uri=self.uri)
            content = Path(path).read_bytes()
        if hashlib.sha256(content).hexdigest() != adapter.evidence:
            raise IntegrityError(f"{kept.FILE} of {adapter.task}:{adapter.version} is not what was registered.")
        return kept.ScoredRows.from_bytes(content)

    # ---- deciding ----------------------------------------------------------------------------------------------------
    def settle(
        self,
        rule: PromotionRule,
        task: Task,
        candidates: Sequence[Candidate],
        folders: Mapping[str, Path],
        forced: bool = False,
        rows: Mapping[str, Path] = _NO_ROWS,
        rescore: Rescore | None = None,
    ) -> tuple[Decision, int | None]:
        """Decide between `candidates` and the champion, and act on it, with nobody else promoting meanwhile.

        Args:
            folders: Trial id to sealed adapter folder.
            rows: Trial id to the file of its answers to the test rows.
            rescore: Scores a champion anew where it was scored on other data or stands on another base.
        Returns:
            The decision, and the version it made champion.
        """
        contents = {c.trial_id: rows[c.trial_id].read_bytes() for c in candidates if c.trial_id in rows}
        contest = Contest(rule, task, candidates, _read_rows(candidates, contents), forced)
        for _ in range(_MAX_TRIES):
            opponents = self._opponents(contest, rescore)  # may take minutes: before the turn, not in it
            with self._turn(task.name) as check:
                if self._moved(task.name, contest.aliases, opponents):
                    continue
                decision = replace(contest.settle(opponents), at=datetime.now(UTC).isoformat(timespec="milliseconds"))
                if not decision.promoted or decision.winner is None:
                    self._record(decision)
                    return decision, None
                winner = next(c for c in candidates if (c.study, c.trial_id) == (decision.study, decision.winner))
                folder, evidence = folders[decision.winner], contents.get(decision.winner)
                return self._promote(folder, winner, decision, check, evidence)
        raise RegistryError(f"The champion of {task.name} changed {_MAX_TRIES} times meanwhile.", hint="try again")

    def promote(self, folder: Path, candidate: Candidate, decision: Decision) -> int | None:
        """Record `decision`, and if it promotes, register `folder` and make it champion.

        Args:
            folder: Sealed adapter folder of the decision's winner.
        Returns:
            The version that is champion now; None when the decision was a refusal.
        Raises:
            IntegrityError: the folder is not what its manifest says, or not the winner's.
            RegistryError: the champion is no longer the one the decision was made against.
            TrackingError: the server does not answer.
        """
        with self._turn(decision.task) as check:
            if decision.promoted:
                self._check_champion(decision)
                return self._promote(folder, candidate, decision, check, None)[1]
            self._record(decision)
            return None

    def _promote(
        self, folder: Path, candidate: Candidate, decision: Decision, check: _turns.Check, evidence: bytes | None
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
            tags = version_tags(manifest, candidate, replace(decision, aliases=aliases), digest, sign(task, digest))
            version = _versions.register(client, self.uri, task, folder, manifest, tags)
            if evidence is not None:
                from loraxs_search.registry.rows import FILE

                _versions.add_evidence(client, task, version, FILE, evidence)
            factor_sets.publish(client, self.uri, manifest.base_digest, manifest.base_model.id, manifest.factors)
            check()  # registering took a while, and a server has other clients
            for alias in aliases:
                client.set_registered_model_alias(task, alias, str(version))
        made = replace(decision, aliases=aliases, version=version)
        if CHAMPION in aliases:
            self._summarise(summarise(task, version, candidate, made))
        self._record(made)
        return made, version

    # ---- changing your mind ------------------------------------------------------------------------------------------
    def rollback(self, task: str, to: int | None = None) -> Decision:
        """Make an earlier version champion again; by default the one before the present champion.

        Raises:
            RegistryError: there is no champion, no such version, or none before it.
        """
        with self._turn(check_task(task)) as check:
            champion = self.resolve(task)
            known = {version.version: version for version in self.versions(task)}
            number = to if to is not None else self._previous(task, champion.version, known)
            target = self.resolve(f"{task}:{number}")
            if target.version == champion.version:
                raise RegistryError(
                    f"{task}:{number} already is the champion.", hint=f"see `loraxs-search show {task}`"
                )
            own = base_alias(target.candidate.base_model)
            there = self.champion(task, own) if own != CHAMPION else None
            aliases = (CHAMPION, own) if there and there.version == champion.version else (CHAMPION,)
            decision = self._decision_on(target, champion, "rollback", aliases)
            check()
            with speaking(self.uri):
                for alias in aliases:
                    self._client.set_registered_model_alias(task, alias, str(target.version))
            self._summarise(summarise(task, target.version, target.candidate, decision))
            self._record(decision)
            return decision

    def remove(self, name: str, forced: bool = False) -> Decision:
        """Delete one version, named `TASK:3`; a champion only when `forced`, and its task then has none.

        Raises:
            RegistryError: no such version, or it is a champion.
        """
        parsed = parse_name(name)
        if parsed.version is None:
            raise RegistryError(f"`version` must be given to remove one, but got {name!r}.", hint="write TASK:3")
        with self._turn(parsed.task) as check:
            target = self.resolve(name)
            champion = self.champion(parsed.task)
            if target.aliases and not forced:
                raise RegistryError(
                    f"A champion must not be removed, but {name} is {' and '.join(target.aliases)}.",
                    hint=f"make another one champion with `loraxs-search rollback {parsed.task}`, or add --force",
                )
            decision = replace(self._decision_on(target, champion, "remove", target.aliases), forced=forced)
            check()
            with speaking(self.uri):
                for alias in target.aliases:
                    self._client.delete_registered_model_alias(parsed.task, alias)
                self._client.delete_model_version(parsed.task, str(target.version))
            if CHAMPION in target.aliases:
                self._summarise(TaskSummary(parsed.task))
            self._record(decision)
            return decision

    def _decision_on(
        self, target: RegisteredAdapter, champion: RegisteredAdapter | None, action: Any, aliases: tuple[str, ...]
    ) -> Decision:
        metric, was = target.decision.metric, champion.candidate if champion else None
        said = {"rollback": f"from version {champion.version if champion else '-'} back to", "remove": "removed"}[
            action
        ]
        return Decision(
            task=target.task,
            study=target.candidate.study,
            promoted=action == "rollback",
            winner=target.candidate.trial_id,
            winner_metric=target.candidate.test_metrics.get(metric),
            champion_metric=was.test_metrics.get(metric) if was else None,
            metric=metric,
            reasons=(f"{said} version {target.version}",),
            champion=identity(was) if was else None,
            action=action,
            aliases=aliases,
            version=target.version,
            at=datetime.now(UTC).isoformat(timespec="milliseconds"),
        )

    def _previous(self, task: str, champion: int, known: Mapping[int, RegisteredAdapter]) -> int:
        """Return who was champion before; whom a rollback has left behind is not it."""
        reigns: list[int] = []
        for decision in self.history(task):
            number = decision.version
            if not decision.promoted or CHAMPION not in decision.aliases or number is None:
                continue
            reigns = [*reigns[: reigns.index(number)], number] if number in reigns else [*reigns, number]
        before = reigns[: reigns.index(champion)] if champion in reigns else sorted(n for n in known if n < champion)
        left = [number for number in before if number in known]
        if not left:
            have = ", ".join(f"{task}:{number}" for number in sorted(known))
            raise RegistryError(
                f"{task}:{champion} must have a champion before it, but it has none. There are: {have}.",
                hint=f"name one: `loraxs-search rollback {task} --to N`",
            )
        return left[-1]

    # ---- below -------------------------------------------------------------------------------------------------------
    @property
    def _client(self) -> MlflowClient:
        if self._connected is None:
            self._connected = connect(self.uri)
        return self._connected

    def _opponents(self, contest: Contest, rescore: Rescore | None) -> dict[str, Opponent]:
        found: dict[str, Opponent] = {}
        made: dict[int, Opponent] = {}
        for alias in contest.aliases:
            champion = self.champion(contest.task.name, alias)
            if champion is not None:
                if champion.version not in made:
                    made[champion.version] = opponent(champion, contest.candidates, rescore, self.rows)
                found[alias] = made[champion.version]
        return found

    def _moved(self, task: str, aliases: Sequence[str], opponents: Mapping[str, Opponent]) -> bool:
        """Whether another champion stands by now than the ones that were met."""
        for alias in aliases:
            now, met = self.champion(task, alias), opponents.get(alias)
            if (now.version if now else None) != (met.adapter.version if met else None):
                return True
        return False

    def _check_champion(self, decision: Decision) -> None:
        champion = self.champion(decision.task)
        now = identity(champion.candidate) if champion else None
        if now not in (decision.champion, f"{decision.study}/{decision.winner}"):
            raise RegistryError(
                f"The champion of {decision.task} must be the one the decision was made against "
                f"({decision.champion or 'none'}), but it is {now or 'none'} by now.",
                hint="someone else promoted in the meantime: decide again",
            )

    def _record(self, decision: Decision) -> None:
        with speaking(self.uri):
            _versions.ensure_model(self._client, check_task(decision.task))
            key = f"{_DECISION}{datetime.now(UTC):%Y%m%dT%H%M%S.%fZ}"
            self._client.set_registered_model_tag(decision.task, key, fitted(decision))

    def _summarise(self, summary: TaskSummary) -> None:
        with speaking(self.uri):
            self._client.set_registered_model_tag(summary.task, SUMMARY, to_json(summary))

    def _summary(self, model: Any) -> TaskSummary:
        """Return a task's line: as its tag has it, or made anew where the alias says that the tag is old."""
        aliases = {alias: int(number) for alias, number in model.aliases.items()}
        champion = aliases.get(CHAMPION)
        if champion is None:
            return TaskSummary(model.name, aliases=aliases)
        with contextlib.suppress(KeyError, ValueError):
            kept = from_json(TaskSummary, model.tags[SUMMARY])
            if kept.version == champion:
                return replace(kept, aliases=aliases)
        found = self.resolve(f"{model.name}:{champion}")
        return replace(summarise(model.name, champion, found.candidate, found.decision), aliases=aliases)

    def _model(self, task: str) -> Any | None:
        if not exists(self.uri):
            return None
        with speaking(self.uri):
            return _versions.registered_model(self._client, check_task(task))

    def _find(self, name: AdapterName) -> RegisteredAdapter | None:
        if self._connected is None and sqlite_path(self.uri) is None:
            with contextlib.suppress(_rest.UnansweredError):
                return read_version(_rest.find_version(self.uri, name))
        client = self._client
        from mlflow.exceptions import MlflowException

        with speaking(self.uri):
            try:
                if name.version is not None:
                    version = client.get_model_version(name.task, str(name.version))
                else:
                    version = client.get_model_version_by_alias(name.task, name.alias)
            except MlflowException as error:
                # A server with accounts forbids to read versions of a model that does not exist.
                absent = is_denied(error) and _versions.registered_model(client, name.task) is None
                if absent or is_missing(error):
                    return None
                raise
        return read_version(version)

    def _unknown(self, name: AdapterName) -> RegistryError:
        place = redact(self.uri)
        model = _versions.registered_model(self._client, name.task) if exists(self.uri) else None
        if model is None:
            known = self.tasks()
            hint = "run `loraxs-search launch SPACE` to find one" if not known else None
            return RegistryError(f"{unknown_name('task', name.task, known)} Registry: {place}.", hint=hint)
        if name.alias == CHAMPION:
            return RegistryError(
                f"Task {name.task} has no champion: no candidate was promoted so far. Registry: {place}.",
                hint=f"see `loraxs-search history {name.task}` for why, or run `loraxs-search promote STUDY`",
            )
        have = [f"{name.task}@{alias}" for alias in sorted(model.aliases)]
        have += [f"{name.task}:{v}" for v in _versions.numbers(self._client, name.task)]
        return RegistryError(f"{unknown_name('adapter', str(name), have)} Registry: {place}.")

    @contextlib.contextmanager
    def _turn(self, task: str) -> Iterator[_turns.Check]:
        """Wait until no other promotion of the task runs; yields what raises once the turn is lost."""
        database = sqlite_path(self.uri)
        if database is not None:
            self._client  # noqa: B018  # refuses a store that is not there before a lock is made beside it
            with _turns.file_turn(database) as check:
                yield check
            return
        with speaking(self.uri):
            _versions.ensure_model(self._client, check_task(task))
        with _turns.lease_turn(self._client, task) as check:
            yield check


def _read_rows(candidates: Sequence[Candidate], contents: Mapping[str, bytes]) -> dict[str, ScoredRows]:
    if not contents:
        return {}
    from loraxs_search.registry.rows import ScoredRows

    return {identity(c): ScoredRows.from_bytes(contents[c.trial_id]) for c in candidates if c.trial_id in contents}
