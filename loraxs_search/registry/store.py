"""The registry: one registered model per task, a version per promoted adapter, the alias `champion` on one of them."""

from __future__ import annotations

import contextlib
import dataclasses
import fcntl
import hashlib
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass
from datetime import UTC, datetime
from pathlib import Path
from typing import TYPE_CHECKING, Any

from loraxs_search.errors import IntegrityError, RegistryError, unknown_name
from loraxs_search.home import disk_faults, ensure_dir, home
from loraxs_search.mlflow_uri import redact, sqlite_path
from loraxs_search.records import Candidate, Decision, Manifest, PromotionRule, Task, from_json, to_json
from loraxs_search.registry import _versions
from loraxs_search.registry._client import connect, exists, is_missing, speaking
from loraxs_search.registry.manifest import folder_digest, verify
from loraxs_search.registry.names import CHAMPION, AdapterName, check_task, parse_name
from loraxs_search.registry.promotion import decide, identity

if TYPE_CHECKING:
    from mlflow import MlflowClient

_DECISION = "loraxs.decision."
_MAX_TAG = 5000  # characters a registered model's tag may have in MLflow's tables


@dataclass(frozen=True)
class RegisteredAdapter:
    """A version of a task's adapters.

    Args:
        digest: Content address of its folder, as `folder_digest` gives it.
        candidate: The scores it was promoted with.
        decision: Why it was.
        source: Where its files lie, as MLflow names it.
    """

    task: str
    version: int
    aliases: tuple[str, ...]
    digest: str
    candidate: Candidate
    decision: Decision
    source: str
    run_id: str | None = None


class Registry:
    """The adapters registered in the MLflow store at `uri`.

    Reading creates nothing. Promotions on one machine take turns under a file lock; one on another machine is noticed
    by reading the champion again before it is replaced.
    """

    def __init__(self, uri: str) -> None:
        self.uri = uri
        self._connected: MlflowClient | None = None

    # ---- reading -----------------------------------------------------------------------------------------------------
    def champion(self, task: str) -> RegisteredAdapter | None:
        """Return the task's champion; None when it has none.

        Raises:
            TrackingError: the server does not answer.
        """
        return self._find(AdapterName(check_task(task))) if exists(self.uri) else None

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
            return sorted(_versions.tasks(self._client))

    def history(self, task: str) -> list[Decision]:
        """Return every decision on the task, refusals too, oldest first."""
        if not exists(self.uri):
            return []
        with speaking(self.uri):
            model = _versions.registered_model(self._client, check_task(task))
        tags = sorted(model.tags.items()) if model is not None else []
        return [from_json(Decision, value) for key, value in tags if key.startswith(_DECISION)]

    # ---- deciding ----------------------------------------------------------------------------------------------------
    def settle(
        self,
        rule: PromotionRule,
        task: Task,
        candidates: Sequence[Candidate],
        folders: Mapping[str, Path],
        forced: bool = False,
    ) -> tuple[Decision, int | None]:
        """Decide between `candidates` and the champion, and act on it, with nobody else promoting meanwhile.

        Args:
            folders: Trial id to sealed adapter folder.
        Returns:
            The decision, and the version it made champion.
        """
        with self._turn():
            champion = self.champion(task.name)
            decision = decide(rule, task, candidates, champion.candidate if champion else None, forced)
            if not decision.promoted or decision.winner is None:
                self._record(decision)
                return decision, None
            winner = next(c for c in candidates if (c.study, c.trial_id) == (decision.study, decision.winner))
            return decision, self._promote(folders[decision.winner], winner, decision)

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
        with self._turn():
            if decision.promoted:
                return self._promote(folder, candidate, decision)
            self._record(decision)
            return None

    def _promote(self, folder: Path, candidate: Candidate, decision: Decision) -> int:
        manifest = verify(folder)
        if (manifest.task.name, manifest.study, manifest.trial_id) != (decision.task, candidate.study, decision.winner):
            raise IntegrityError(
                f"{folder} must hold the winner {candidate.study}/{decision.winner} of {decision.task}, "
                f"but its manifest says {manifest.study}/{manifest.trial_id} of {manifest.task.name}."
            )
        check_task(decision.task)
        with speaking(self.uri):
            self._check_champion(decision)
            tags = _tags(manifest, candidate, decision, folder_digest(folder))
            version = _versions.register(self._client, self.uri, decision.task, folder, manifest, tags)
            self._check_champion(decision)  # registering took a while, and a server has other clients
            self._client.set_registered_model_alias(decision.task, CHAMPION, str(version))
        self._record(decision)
        return version

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
            self._client.set_registered_model_tag(decision.task, key, _fitted(decision))

    # ---- below -------------------------------------------------------------------------------------------------------
    @property
    def _client(self) -> MlflowClient:
        if self._connected is None:
            self._connected = connect(self.uri)
        return self._connected

    def _find(self, name: AdapterName) -> RegisteredAdapter | None:
        client = self._client
        from mlflow.exceptions import MlflowException

        with speaking(self.uri):
            try:
                if name.version is not None:
                    version = client.get_model_version(name.task, str(name.version))
                else:
                    version = client.get_model_version_by_alias(name.task, name.alias)
            except MlflowException as error:
                if is_missing(error):
                    return None
                raise
        return _adapter(version)

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
    def _turn(self) -> Iterator[None]:
        """Wait until no other promotion runs on this machine."""
        database = sqlite_path(self.uri)
        name = f"promote-{hashlib.sha256(self.uri.encode()).hexdigest()[:12]}.lock"
        path = database.with_name(f"{database.name}.promote.lock") if database else home() / name
        with disk_faults(path), ensure_dir(path.parent).joinpath(path.name).open("w") as lock:
            fcntl.flock(lock, fcntl.LOCK_EX)
            yield


def _tags(manifest: Manifest, candidate: Candidate, decision: Decision, digest: str) -> dict[str, str]:
    scores = {f"test.{name}": f"{value:.6g}" for name, value in candidate.test_metrics.items()}
    scores |= {f"validation.{name}": f"{value:.6g}" for name, value in candidate.validation_metrics.items()}
    return scores | {
        "loraxs.study": candidate.study,
        "trial_id": candidate.trial_id,
        "stored_bytes": str(candidate.stored_bytes),
        "loraxs.base_model": manifest.base_model.id,
        "loraxs.base_digest": candidate.base_digest,
        "loraxs.data_fingerprint": candidate.data_fingerprint,
        "loraxs.digest": digest,
        "loraxs.candidate": to_json(candidate),
        "loraxs.decision": to_json(decision),
    }


def _adapter(version: Any) -> RegisteredAdapter:
    """Rebuild a record from MLflow's model version."""
    tags = version.tags
    try:
        return RegisteredAdapter(
            task=version.name,
            version=int(version.version),
            aliases=tuple(sorted(version.aliases)),
            digest=tags["loraxs.digest"],
            candidate=from_json(Candidate, tags["loraxs.candidate"]),
            decision=from_json(Decision, tags["loraxs.decision"]),
            source=version.source,
            run_id=version.run_id or None,
        )
    except (KeyError, ValueError) as error:
        raise RegistryError(
            f"Version {version.version} of {version.name} was not registered by loraxs-search: {error}.",
            hint="name another version, or promote an adapter of this task",
        ) from error


def _fitted(decision: Decision) -> str:
    """Return the decision as JSON short enough for a tag, the last reasons kept: they say what was decided."""
    reasons = decision.reasons
    text = to_json(decision)
    while len(text) > _MAX_TAG and reasons:
        reasons = reasons[1:]
        left_out = len(decision.reasons) - len(reasons)
        text = to_json(dataclasses.replace(decision, reasons=(f"({left_out} more reasons)", *reasons)))
    return text
