"""What the MLflow store at an address has: tasks, their versions and champions, decisions, files. Nothing here writes.

There is one registered model for each task, a version for each promoted adapter, and the alias `champion` on one of
them. MLflow's pages hide tags of a registered model that begin with `mlflow.`. They show every tag of a version, so the
records of a version are on the model, under the adapter's digest.

A read is a call of MLflow's REST API. A server is asked by plain requests, which have answered before MLflow is
imported. MLflow's client asks an embedded store, and a server that does not answer plain requests.
"""

from __future__ import annotations

import contextlib
import functools
import hashlib
import itertools
import json
import logging
import os
import re
import sys
import tempfile
import urllib.parse
from collections.abc import Callable, Collection, Hashable, Iterator, Mapping, Sequence
from dataclasses import dataclass, field, replace
from datetime import UTC, datetime
from pathlib import Path, PurePosixPath
from types import SimpleNamespace
from typing import TYPE_CHECKING, Any

from loraxs_search.errors import (
    ForeignVersionError,
    IntegrityError,
    RegistryError,
    RegistryUnreadableError,
    TrackingError,
    UnknownTaskError,
    UnknownVersionError,
    unknown_name,
)
from loraxs_search.home import disk_faults
from loraxs_search.manifest import MANIFEST, MAX_BYTES, Manifest, check_format, read_manifest
from loraxs_search.mlflow_uri import (
    all_pages,
    check_server,
    get,
    known_experiment,
    prepare_environment,
    redact,
    sqlite_path,
)
from loraxs_search.records.codec import from_json
from loraxs_search.records.search import Candidate, Decision
from loraxs_search.records.task import MAX_NAME
from loraxs_search.registry.finalist import seed_statistics

if TYPE_CHECKING:
    import requests
    from mlflow import MlflowClient

    from loraxs_search.registry.evidence import ScoredRows

CHAMPION = "champion"
KIND, ADAPTER = "loraxs.kind", "adapter"  # a tag, in sight: what a registered model of ours is
DIGEST, EVIDENCE, FORMAT = "loraxs.digest", "loraxs.evidence", "loraxs.format"  # tags of a version
RECORDS = ("mlflow.loraxs.adapter.{}.candidate", "mlflow.loraxs.adapter.{}.decision")  # by the digest's first half
TASK, DECISIONS_EXPERIMENT = "loraxs.task", "loraxs-search decisions"  # a tag of its runs: whose they are
DECISIONS = "mlflow.loraxs.decision."  # the number of each decision stands behind it; MLflow's pages hide it
USE = "mlflow.loraxs.use."  # behind it test rows and a finalist's digest
_TASK_NAME = re.compile(r"[A-Za-z0-9][A-Za-z0-9_.-]*")
_ALIAS = re.compile(r"[A-Za-z0-9_-]+")
_TIMEOUT_S, _PAGE_TIMEOUT_S = 5.0, 20.0
_CHUNK_BYTES = 2**16
_MISSING = "RESOURCE_DOES_NOT_EXIST"
_OTHER_WAYS_IN = ("MLFLOW_TRACKING_TOKEN", "MLFLOW_TRACKING_AUTH", "MLFLOW_TRACKING_AWS_SIGV4", "MLFLOW_WORKSPACE")
_FILES, _SCHEME = "mlflow-artifacts/artifacts", "mlflow-artifacts:"
_MAX_PAGE = 1000  # MLflow's own limit
_OTHERS = 20  # factor sets and models of others among these, for which no second page is asked
_NEAR = 100
_SHOWN_VERSIONS = 100
_FEW = 8
_logger = logging.getLogger(__name__)

# The calls of the API that are made here, as MLflow's client makes them.
_BY_CLIENT: Mapping[str, Callable[..., Any]] = {
    "experiments/get-by-name": lambda client, experiment_name: client.get_experiment_by_name(experiment_name),
    "registered-models/get": lambda client, name: client.get_registered_model(name),
    "model-versions/get": lambda client, name, version: client.get_model_version(name, version),
    "registered-models/search": lambda client, filter, max_results, order_by, page_token: (
        client.search_registered_models(filter, max_results, [order_by], page_token or None)
    ),
    "model-versions/search": lambda client, filter, max_results, order_by, page_token: client.search_model_versions(
        filter, max_results, [order_by], page_token or None
    ),
}
# Where a server wants to be asked in another way, `requests` raises an OSError, or its answer is not what is read here.
_NOT_PLAIN = (OSError, ValueError, KeyError, AttributeError)


@dataclass(frozen=True)
class AdapterName:
    """A version of a task's adapters, by number or by alias.

    Raises:
        RegistryError: the registry cannot hold such a task name: it is too long, or holds characters other than
            letters, digits, `_`, `.` and `-`.
    """

    task: str
    alias: str | None = CHAMPION
    version: int | None = None

    def __post_init__(self) -> None:
        if not _TASK_NAME.fullmatch(self.task) or len(self.task) > MAX_NAME:
            raise RegistryError(
                f"`task name` must start with a letter or digit and hold at most {MAX_NAME} letters, digits, _ . -, but"
                f" got {self.task!r}.",
                hint="`predict` takes a folder as it is, and `pull` the name of a task"
                if os.sep in self.task
                else "`loraxs-search ls` has every task",
            )

    @classmethod
    def parse(cls, name: str) -> AdapterName:
        """Read `TASK` (its champion), `TASK@alias` or `TASK:3`.

        Raises:
            RegistryError: the name has none of these forms.
        """
        hint = "write TASK, TASK@alias or TASK:3"
        task, at, alias = name.partition("@")
        if at:
            reserved = alias.lower() == "latest" or re.fullmatch(r"[vV]\d+", alias)
            if not _ALIAS.fullmatch(alias) or reserved:
                law = "`alias` must be a name such as champion"
                raise RegistryError(f"{law}, but got {alias!r} in {name!r}.", hint=hint)
            return cls(task, alias)
        task, colon, version = name.partition(":")
        if not colon:
            return cls(task)
        if not re.fullmatch(r"[1-9][0-9]{0,8}", version):
            raise RegistryError(f"`version` must be a number from 1, but got {version!r} in {name!r}.", hint=hint)
        return cls(task, None, int(version))

    def __str__(self) -> str:
        return f"{self.task}:{self.version}" if self.version is not None else f"{self.task}@{self.alias}"


@dataclass(frozen=True)
class RegisteredAdapter:
    """A version of a task's adapters.

    Args:
        digest: Content address of its folder, as `folder_digest` gives it.
        candidate: The scores it was promoted with.
        decision: Why it was.
        source: Where its files lie, as MLflow names it.
        evidence: sha256 of its answers to the test rows; None when there are none.
        created_at: ISO 8601.
    """

    task: str
    version: int
    aliases: tuple[str, ...]
    digest: str
    candidate: Candidate
    decision: Decision
    source: str
    run_id: str | None = None
    evidence: str | None = None
    created_at: str = ""


@dataclass(frozen=True)
class TaskSummary:
    """A task and its champion; without a champion all but the task is empty.

    Args:
        score: The champion's test value of `metric`, as it was promoted.
        mean: Mean validation value of `metric` over the champion and the same recipe from other seeds.
        spread: Their sample standard deviation; None when there are no refits.
        promoted_at: ISO 8601.
        aliases: Alias to version, other champions included.
    """

    task: str
    version: int | None = None
    metric: str = ""
    score: float | None = None
    mean: float | None = None
    spread: float | None = None
    stored_bytes: int | None = None
    base_model: str = ""
    promoted_at: str = ""
    aliases: Mapping[str, int] = field(default_factory=dict)


class Registry:
    """The MLflow store at `uri`, independent of the environment. One that does not exist yet has no tasks.

    Models and versions have the attributes of MLflow's entities.

    Raises:
        TrackingError: the server does not answer.
        RegistryUnreadableError: the store cannot be read.
    """

    def __init__(self, uri: str) -> None:
        self.uri = uri

    # ---- adapters ----------------------------------------------------------------------------------------------------
    def champion(self, task: str) -> RegisteredAdapter | None:
        """Return the task's champion; None if it has none.

        Raises:
            ForeignVersionError: the alias is on a version that something else registered.
        """
        return self.find(AdapterName(task))

    def resolve(self, name: str) -> RegisteredAdapter:
        """Return the adapter that `TASK`, `TASK@alias` or `TASK:3` names.

        Raises:
            RegistryError: no such task, alias or version; the message lists those that exist.
        """
        parsed = AdapterName.parse(name)
        if (adapter := self.find(parsed)) is None:
            raise self._unknown(parsed)
        return adapter

    def find(self, name: AdapterName, model: Any = None) -> RegisteredAdapter | None:
        """Return the adapter of a name; None if there is none.

        Args:
            model: The task's registered model, where it is at hand.
        """
        model = model or self.model(name.task)
        number = name.version if model is None or name.alias is None else model.aliases.get(name.alias)
        if model is None or number is None:
            return None
        latest = (version for version in model.latest_versions if int(version.version) == int(number))
        version = next(latest, None) or self._read("model-versions/get", name=name.task, version=str(int(number)))
        return None if version is None else _registered(version, model)

    def readable_champion(self, task: str, model: Any = None) -> RegisteredAdapter | None:
        """Return the champion; None, with a warning, where the alias is on a version that something else registered."""
        try:
            return self.find(AdapterName(task), model)
        except ForeignVersionError as error:
            _logger.warning("the champion of %s cannot be read: %s", task, error.message)
            return None

    def check_known(self, task: str) -> None:
        """Refuse a task that the registry does not have.

        Raises:
            UnknownTaskError: it has no version, and nothing was ever decided on it.
        """
        name = AdapterName(task)
        if self.model(task) is None and isinstance(error := self._unknown(name), UnknownTaskError):
            raise error

    def summaries(self, limit: int | None = None) -> list[TaskSummary]:
        """Return every task with its champion, by name; the first `limit` of them."""
        found = list[TaskSummary]()
        for model in self._models(limit):
            summary = TaskSummary(model.name, aliases={alias: int(number) for alias, number in model.aliases.items()})
            if (champion := self.readable_champion(model.name, model)) is not None:
                candidate, metric = champion.candidate, champion.decision.metric
                over_seeds = seed_statistics(candidate).get(metric)
                summary = replace(
                    summary,
                    version=champion.version,
                    metric=metric,
                    score=candidate.test_metrics.get(metric),
                    mean=over_seeds.mean if over_seeds else None,
                    spread=over_seeds.deviation if over_seeds else None,
                    stored_bytes=candidate.stored_bytes,
                    base_model=candidate.base_model,
                    promoted_at=champion.decision.at,
                )
            found.append(summary)
        return sorted(found, key=lambda summary: summary.task)

    def states(self, tasks: Collection[str]) -> dict[str, Hashable]:
        """Return, of those tasks that are there, what differs once one of their names may mean another adapter.

        Raises:
            RegistryUnreadableError: there is no registry.
        """
        self._check_exists()
        # A list has other people's models too, so that a few tasks are asked for by name.
        listed = self._models() if len(tasks) > _FEW else filter(None, map(self.model, tasks))
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
        model, found = self.model(task), list[RegisteredAdapter]()
        for version in () if model is None else itertools.islice(self._versions(task), _SHOWN_VERSIONS):
            if DIGEST in version.tags:
                try:
                    found.append(_registered(version, model))
                except RegistryError as error:
                    _logger.warning("version %s of %s is left out: %s", version.version, version.name, error.message)
        return found

    def manifest(self, source: str) -> Manifest:
        """Return the manifest of a version, by its `source`.

        Raises:
            IntegrityError: it is damaged.
        """
        with tempfile.TemporaryDirectory() as folder:
            self.fetch_file(source, MANIFEST, Path(folder), MAX_BYTES[".json"])
            return read_manifest(Path(folder))

    def manifests(self) -> Iterator[tuple[str, str, Manifest]]:
        """Yield `TASK:3`, the adapter's digest and the manifest of every version of every task.

        Raises:
            RegistryError, IntegrityError: a version's files cannot be read.
        """
        for model in self._models():
            for version in self._versions(model.name):
                if digest := version.tags.get(DIGEST):
                    yield f"{model.name}:{version.version}", digest, self.manifest(version.source)

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
            content = self.fetch_file(source, FILE, Path(folder), MAX_ROWS_BYTES).read_bytes()
        if hashlib.sha256(content).hexdigest() != adapter.evidence:
            raise IntegrityError(f"{FILE} of {adapter.task}:{adapter.version} is not what was registered.")
        return ScoredRows.from_bytes(content)

    def _unknown(self, name: AdapterName) -> RegistryError:
        """Return the error that says what there is instead."""
        model = self.model(name.task)
        if model is None and not self.history(name.task):
            known = set[str]()  # those with the same beginning, and the first ones
            for only in (f"name ILIKE '{name.task[:3]}%'", "") if self._exists else ():
                page = itertools.islice(self._search("registered-models/search", only, _NEAR, "name ASC"), _NEAR)
                known.update(each.name for each in page if each.tags.get(KIND) == ADAPTER)
            way = "`loraxs-search launch SPACE` searches for one, and `loraxs-search promote STUDY` registers it"
            hint = "`loraxs-search ls` has every task" if known else way
            return UnknownTaskError(f"{unknown_name('task', name.task, known)} Registry: {self.uri}.", hint=hint)
        if model is None or name.alias == CHAMPION:
            return UnknownVersionError(
                f"Task {name.task} has no champion: none was promoted, or it was removed. Registry: {self.uri}.",
                hint=f"see `loraxs-search history {name.task}` for why, or run `loraxs-search promote STUDY`",
            )
        listed = itertools.islice(self._versions(name.task), _SHOWN_VERSIONS)
        have = [f"{name.task}@{alias}" for alias in sorted(model.aliases)]
        have += [f"{name.task}:{number}" for number in sorted(int(version.version) for version in listed)]
        return UnknownVersionError(
            f"{unknown_name('adapter', str(name), have)} Registry: {self.uri}.",
            hint=f"`loraxs-search show {name.task}` has every version, with its base",
        )

    # ---- decisions ---------------------------------------------------------------------------------------------------
    def history(self, task: str) -> list[Decision]:
        """Return every decision on the task, refusals too, oldest first; unreadable decisions are left out.

        One that moved a name and was killed before it was written down is taken from the version it promoted.
        """
        if not self._exists:
            return []
        with self.errors():
            recorded = self.decisions(task)
        made = self.unrecorded(task, recorded)
        return sorted([*recorded, made.decision], key=lambda each: each.number) if made else recorded

    def unrecorded(self, task: str, recorded: Sequence[Decision]) -> RegisteredAdapter | None:
        """Return the champion whose promoter was cut off after it moved the alias and before it recorded its decision.

        It has that decision. None where the decision is recorded, or the alias was moved by hand.
        """
        try:
            adapter = self.champion(task)
        except ForeignVersionError:  # nobody's promotion
            return None
        last = next((decision.version for decision in reversed(recorded) if decision.promoted), None)
        if adapter is None or adapter.version == last:
            return None
        decision = replace(adapter.decision, version=adapter.version)
        is_recorded = (decision.number, decision.at) in {(each.number, each.at) for each in recorded}
        return None if is_recorded else replace(adapter, decision=decision)

    def decisions(self, task: str) -> list[Decision]:
        """Return the recorded decisions, in the order they were made; those that cannot be read are left out."""
        found = list[Decision]()
        for name, text in self.task_tags(task, DECISIONS).items():
            try:
                found.append(from_json(Decision, text))
            except ValueError as error:  # pydantic's ValidationError is one
                reason, left_out = next(iter(str(error).splitlines()), ""), "is left out, since it cannot be read"
                _logger.warning("a decision on %s %s (tag %s: %s)", task, left_out, name, reason)
        return sorted(found, key=lambda decision: decision.number)  # promoters' clocks differ; they take turns

    def uses(self, task: str, test_rows: str) -> list[str]:
        """Return the keys of a task's finalists that are recorded to have answered these test rows."""
        if not self._exists:
            return []
        with self.errors():
            return list(self.task_tags(task, f"{USE}{test_rows}.").values())

    def task_tags(self, task: str, prefix: str) -> Mapping[str, str]:
        """Return the tags of a task's runs that begin so, by name."""
        tags = {name: text for run in reversed(self.task_runs(task)) for name, text in run.data.tags.items()}
        return {name: tags[name] for name in sorted(tags) if name.startswith(prefix)}

    def task_runs(self, task: str) -> list[Any]:
        """Return the runs that hold what is recorded of a task, by id.

        The first write makes one; processes that write at once may make one each.
        """
        experiment = known_experiment(self.client, self.uri, DECISIONS_EXPERIMENT)
        if experiment is None:
            return []
        only = f"tags.`{TASK}` = '{AdapterName(task).task}'"
        found = all_pages(self.client.search_runs, [experiment], only)
        return sorted(found, key=lambda run: run.info.run_id)

    # ---- models and files, as MLflow has them ------------------------------------------------------------------------
    @functools.cached_property
    def client(self) -> MlflowClient:
        """MLflow's client for runs and models."""
        if sqlite_path(self.uri) is None:
            check_server(self.uri)
        self._check_exists()
        prepare_environment()
        with self.errors():
            from mlflow import MlflowClient

            return MlflowClient(tracking_uri=self.uri, registry_uri=self.uri)

    @contextlib.contextmanager
    def errors(self) -> Iterator[None]:
        """Turn MLflow's exceptions into our errors, without passwords.

        Raises:
            TrackingError: a server answers that it cannot.
            RegistryUnreadableError: anything else.
        """
        try:
            yield
        except Exception as error:
            known = sys.modules.get("mlflow.exceptions")
            if known is None or not isinstance(error, known.MlflowException):
                raise
            said = redact(str(error))
            if sqlite_path(self.uri) is None and error.get_http_status_code() >= 500:
                raise TrackingError(
                    f"The MLflow server at {self.uri} must answer, but: {said}",
                    hint="see its log: its database or its artifact store may be away",
                ) from error
            old_schema = "out-of-date database schema" in said
            raise RegistryUnreadableError(
                f"The registry at {self.uri} failed: {said}",
                hint=f"run `mlflow db upgrade {self.uri}` after a backup" if old_schema else None,
            ) from error

    @property
    def _exists(self) -> bool:
        path = sqlite_path(self.uri)
        return path is None or path.exists()

    def _check_exists(self) -> None:
        """Refuse an embedded store whose database is gone, which else reads as a registry without tasks."""
        if not self._exists:
            raise RegistryUnreadableError(
                f"There is no registry at {self.uri}: nothing has been recorded yet.",
                hint="run `loraxs-search launch SPACE`, or name a server with --tracking-uri",
            )

    def model(self, task: str) -> Any | None:
        """Return the registered model of a task; None when there is none."""
        return self._read("registered-models/get", name=task) if self._exists else None

    def _versions(self, task: str) -> Iterator[Any]:
        """Yield all versions of a registered model, newest first."""
        return self._search("model-versions/search", f"name = '{task}'", _NEAR, "version_number DESC")

    def _models(self, limit: int | None = None) -> Iterator[Any]:
        """Yield the registered models of our adapters, by name; the first `limit` of them.

        Without a filter MLflow reads a page along its index, with one the tags of all models.
        """
        size = _MAX_PAGE if limit is None else min(limit + _OTHERS, _MAX_PAGE)
        found = self._search("registered-models/search", "", size, "name ASC") if self._exists else iter(())
        return itertools.islice((model for model in found if model.tags.get(KIND) == ADAPTER), limit)

    def experiment_tags(self, name: str) -> dict[str, str]:
        """Return the tags of an experiment; none when there is no such experiment."""
        found = self._read("experiments/get-by-name", experiment_name=name)
        return {} if found is None else dict(found.tags)

    def list_files(self, source: str) -> dict[str, int | None]:
        """Return the size of each file in `source`, by name; 0 where the store does not know it, None of a folder.

        Nothing lies there where nothing has been logged yet.
        """
        if self._is_plain:
            with contextlib.suppress(*_NOT_PLAIN), self._open(_FILES, {"path": _handed_out(source)}) as answer:
                answer.raise_for_status()
                files = answer.json().get("files", [])
                return {str(f["path"]): None if f.get("is_dir") else int(f.get("file_size", 0)) for f in files}
        prepare_environment()
        with self.errors():
            from mlflow.artifacts import list_artifacts

            listed = list_artifacts(artifact_uri=source, tracking_uri=self.uri)
        return {PurePosixPath(file.path).name: None if file.is_dir else file.file_size or 0 for file in listed}

    def fetch_file(self, source: str, name: str, folder: Path, max_bytes: int) -> Path:
        """Fetch a file of `source` into `folder`, and return it there.

        Raises:
            IntegrityError: it has more than `max_bytes`. A server can send without end: a plain download ends there,
                MLflow's is measured afterwards.
            HomeError: `folder` cannot be written.
        """
        path, num_bytes = folder / name, 0
        if self._is_plain:
            with contextlib.suppress(*_NOT_PLAIN):
                call = f"{_FILES}/{urllib.parse.quote(f'{_handed_out(source)}/{name}')}"
                with self._open(call, {}, stream=True) as answer, disk_faults(path), path.open("wb") as file:
                    answer.raise_for_status()
                    for chunk in answer.iter_content(_CHUNK_BYTES):  # raises where fewer bytes come than were announced
                        num_bytes += len(chunk)
                        if num_bytes > max_bytes:
                            break
                        file.write(chunk)
                    else:
                        return path
        if num_bytes <= max_bytes:
            prepare_environment()
            with self.errors():
                from mlflow.artifacts import download_artifacts

                place = f"{source.rstrip('/')}/{name}"
                path = Path(download_artifacts(artifact_uri=place, dst_path=str(folder), tracking_uri=self.uri))
            num_bytes = path.stat().st_size
        if num_bytes > max_bytes:
            raise IntegrityError(
                f"{name} must have at most {max_bytes:,} bytes, but {num_bytes:,} came from {self.uri}.",
                hint="tell whoever keeps the registry",
            )
        return path

    # ---- calls -------------------------------------------------------------------------------------------------------
    @property
    def _is_plain(self) -> bool:
        """Whether the store is a server that may answer plain requests."""
        return sqlite_path(self.uri) is None and not any(os.environ.get(name) for name in _OTHER_WAYS_IN)

    def _read(self, call: str, **query: Any) -> Any:
        """Return what the store answers: an entity, None if there is none, or a page and the token of the next one."""
        part, _, verb = call.partition("/")
        if self._is_plain:
            given = {name: str(value) for name, value in query.items() if value}
            timeout_s, entities = _PAGE_TIMEOUT_S if verb == "search" else _TIMEOUT_S, part.replace("-", "_")
            with contextlib.suppress(*_NOT_PLAIN), self._open(f"mlflow/{call}", given, timeout_s) as answer:
                value = json.loads(answer.content, object_hook=_entity)
                if answer.ok and verb == "search":
                    return getattr(value, entities, []), getattr(value, "next_page_token", "") or ""
                if answer.ok:
                    return getattr(value, entities.removesuffix("s"))
                if value.error_code == _MISSING:
                    return None
        with self.errors():
            try:
                found = _BY_CLIENT[call](self.client, **query)
            except Exception as error:
                if getattr(error, "error_code", None) == _MISSING:
                    return None
                raise
        return (list(found), found.token or "") if verb == "search" else found

    def _search(self, call: str, only: str, size: int, order: str) -> Iterator[Any]:
        """Yield what a search finds, page after page."""
        token: str | None = None
        while token != "":
            page, token = self._read(call, filter=only, max_results=size, order_by=order, page_token=token or "")
            yield from page

    def _open(
        self, call: str, query: Mapping[str, str], timeout_s: float = _PAGE_TIMEOUT_S, stream: bool = False
    ) -> requests.Response:
        return get(f"{self.uri}/api/2.0/{call}", params=query, timeout_s=timeout_s, stream=stream)


def _entity(fields: dict[str, Any]) -> SimpleNamespace:
    """Return an object of MLflow's JSON with the attributes of its entities: tags and aliases are mappings."""
    tags = {tag.key: getattr(tag, "value", "") for tag in fields.get("tags", ())}
    aliases = {each.alias: each.version for each in fields.get("aliases", ()) if not isinstance(each, str)}
    absent: dict[str, Any] = {"run_id": None, "source": "", "description": "", "latest_versions": []}
    return SimpleNamespace(**absent | fields | {"tags": tags, "aliases": aliases})


def _handed_out(source: str) -> str:
    """Return the place of files that a server hands out itself."""
    place = source.removeprefix(_SCHEME).strip("/")
    if not source.startswith(_SCHEME) or source.startswith(f"{_SCHEME}//"):  # another server's
        raise ValueError(f"{source} is not the server's own")
    return place


def _registered(version: Any, model: Any) -> RegisteredAdapter:
    """Rebuild a record from MLflow's model version and its registered model.

    Raises:
        ForeignVersionError: something else registered it, or another version of this package.
    """
    tags, number = version.tags, int(version.version)
    try:
        check_format(int(tags[FORMAT]), f"version {number}")
        digest = tags[DIGEST]
        if not re.fullmatch(r"[0-9a-f]{64}", digest):  # it names a folder of the cache
            raise ValueError(f"`digest` must be 64 hex digits, but got {digest!r}")
        candidate, decision = (model.tags[tag.format(digest[:32])] for tag in RECORDS)
        return RegisteredAdapter(
            task=version.name,
            version=number,
            aliases=tuple(sorted(alias for alias, own in model.aliases.items() if int(own) == number)),
            digest=digest,
            candidate=from_json(Candidate, candidate),
            decision=from_json(Decision, decision),
            source=version.source,
            run_id=version.run_id or None,
            evidence=tags.get(EVIDENCE),
            created_at=datetime.fromtimestamp(int(version.creation_timestamp) / 1000, UTC).isoformat("T", "seconds"),
        )
    except (KeyError, ValueError, IntegrityError) as error:
        raise ForeignVersionError(
            f"Version {number} of {version.name} must be an adapter that this loraxs-search reads: {error}.",
            hint=f"name another version; `loraxs-search rollback {version.name} --to N` makes one the champion",
        ) from error
