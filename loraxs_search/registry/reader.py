"""Reading the registry: champions, versions, decisions, lists of tasks. Reading creates nothing.

Lists are read page by page, at a cost that other people's models do not raise.
"""

from __future__ import annotations

import contextlib
import gc
import hashlib
import itertools
import logging
import tempfile
from collections.abc import Callable, Collection, Hashable, Iterable, Iterator, Mapping, Sequence
from dataclasses import replace
from pathlib import Path
from typing import TYPE_CHECKING, Any, TypeVar

from loraxs_search.errors import (
    ForeignVersionError,
    IntegrityError,
    RegistryError,
    RegistryUnreadableError,
    UnknownTaskError,
    UnknownVersionError,
    unknown_name,
)
from loraxs_search.mlflow_uri import redact
from loraxs_search.records import Decision, Manifest, from_json
from loraxs_search.registry import _decisions, _mlflow, _versions
from loraxs_search.registry._mlflow import connect, exists, is_denied, is_missing, speaking
from loraxs_search.registry._versions import SUMMARY, RegisteredAdapter, read_version
from loraxs_search.registry.manifest import MANIFEST, MAX_BYTES, read
from loraxs_search.registry.names import ADAPTER, CHAMPION, KIND, AdapterName, check_task, parse_name
from loraxs_search.registry.pages import TaskSummary, summarise

if TYPE_CHECKING:
    from mlflow import MlflowClient

    from loraxs_search.registry.scored_rows import ScoredRows


ResultT = TypeVar("ResultT")
_logger = logging.getLogger(__name__)


class RegistryReader:
    """What is registered in the MLflow store at `uri`."""

    def __init__(self, uri: str) -> None:
        self.uri = uri
        self._connected: MlflowClient | None = None

    def champion(self, task: str) -> RegisteredAdapter | None:
        """Return the task's champion; None when it has none.

        Raises:
            TrackingError: the server does not answer.
        """
        return self._find(AdapterName(check_task(task))) if exists(self.uri) else None

    def resolve(self, name: str) -> RegisteredAdapter:
        """Return the adapter that `TASK`, `TASK@alias` or `TASK:3` names.

        Raises:
            RegistryError: no such task, alias or version; the message lists those that exist.
            TrackingError: the server does not answer.
        """
        parsed = parse_name(name)
        adapter = self._find(parsed) if exists(self.uri) else None
        if adapter is None:
            with speaking(self.uri):
                raise self._unknown(parsed)
        return adapter

    def check_there(self) -> None:
        """Refuse an embedded store whose database is gone, which else reads as a registry without tasks.

        Raises:
            RegistryUnreadableError: there is none.
        """
        if not exists(self.uri):
            raise RegistryUnreadableError(f"There is no registry at {redact(self.uri)}.")

    def check_known(self, task: str) -> None:
        """Refuse a task that nothing was ever decided on.

        Raises:
            UnknownTaskError: the registry has no such task.
        """
        self._known_model(task)

    def summaries(self, limit: int | None = None) -> list[TaskSummary]:
        """Return every task with its champion, by name; the first `limit` of them."""
        if not exists(self.uri):
            return []
        summaries = [self._readable_summary(model) for model in models(self._ask, limit)]
        return sorted(summaries, key=lambda summary: summary.task)

    def states(self, tasks: Collection[str]) -> dict[str, Hashable]:
        """Return, of those tasks that are there, what differs once one of their names may mean another adapter.

        Raises:
            RegistryUnreadableError: there is no registry.
            TrackingError: the server does not answer.
        """
        self.check_there()
        # A list has other people's models too, so that a few tasks are asked for by name.
        listed = models(self._ask) if len(tasks) > _FEW else filter(None, map(self._registered, tasks))
        return {
            model.name: (model.creation_timestamp, model.last_updated_timestamp, frozenset(model.aliases.items()))
            for model in listed
            if model.name in tasks
        }

    def versions(self, task: str) -> list[RegisteredAdapter]:
        """Return the task's adapters, newest first, the last hundred when there are more.

        Raises:
            RegistryError: there is no such task.
        """
        model = self._known_model(task)
        aliases: dict[int, list[str]] = {}
        for alias, number in model.aliases.items():
            aliases.setdefault(int(number), []).append(alias)
        with speaking(self.uri):
            listed = _versions.versions(self._client, task)
        adapters = list(_readable(listed, model.tags))
        return [replace(version, aliases=tuple(sorted(aliases.get(version.version, ())))) for version in adapters]

    def manifest(self, version: RegisteredAdapter) -> Manifest:
        """Return the manifest of a version.

        Raises:
            TrackingError: the server does not answer.
            IntegrityError: it is damaged.
        """
        with speaking(self.uri):
            return _manifest(self.uri, version.source)

    def history(self, task: str) -> list[Decision]:
        """Return every decision on the task, refusals too, oldest first; unreadable decisions are left out.

        One that moved a name and was killed before it was written down is taken from the version it promoted.
        """
        return self._decisions(task, lambda tags: _decisions.every(self._client, tags, task))

    def latest_decisions(self, task: str) -> list[Decision]:
        """Return what `history` does without older refusals."""
        return self._decisions(task, lambda tags: _decisions.latest(tags, task))

    def uses(self, task: str, test_rows: str) -> list[str]:
        """Return the keys of a task's finalists that are recorded to have answered these test rows."""
        if not exists(self.uri):
            return []
        with speaking(self.uri):
            return _decisions.uses(self._client, check_task(task), test_rows)

    def _decisions(self, task: str, read: Callable[[Mapping[str, str]], list[Decision]]) -> list[Decision]:
        model = self._model(task)
        if model is None:
            return []
        with speaking(self.uri):
            recorded = read(model.tags)
        made = self._unrecorded(model, recorded)
        return _decisions.in_order([*recorded, made.decision]) if made else recorded

    def _unrecorded(self, model: Any, recorded: Sequence[Decision]) -> RegisteredAdapter | None:
        """Return the champion whose promoter was cut off after it moved the alias and before it recorded its decision.

        It has that decision. None where the decision is recorded, or the alias was moved by hand.
        """
        champion = model.aliases.get(CHAMPION)
        last = next((decision.version for decision in reversed(recorded) if decision.promoted), None)
        if champion is None or int(champion) == last:
            return None
        try:
            adapter = self.resolve(f"{model.name}:{champion}")
        except ForeignVersionError:  # nobody's promotion
            return None
        decision = adapter.decision
        if (decision.number, decision.at) in {(one.number, one.at) for one in recorded}:
            return None
        return replace(adapter, decision=replace(decision, version=adapter.version))

    def test_predictions(self, adapter: RegisteredAdapter) -> ScoredRows | None:
        """Return an adapter's answers to the test rows it was scored on; None when none were kept.

        Raises:
            IntegrityError: they are not what was registered.
        """
        if adapter.evidence is None:
            return None
        from loraxs_search.registry.scored_rows import FILE, MAX_ROWS_BYTES, ScoredRows

        with tempfile.TemporaryDirectory() as folder:
            source = f"{adapter.source.rstrip('/')}/evidence"
            content = _mlflow.fetch_file(self.uri, source, FILE, Path(folder), MAX_ROWS_BYTES).read_bytes()
        if hashlib.sha256(content).hexdigest() != adapter.evidence:
            raise IntegrityError(f"{FILE} of {adapter.task}:{adapter.version} is not what was registered.")
        return ScoredRows.from_bytes(content)

    # ---- below -------------------------------------------------------------------------------------------------------
    @property
    def _client(self) -> MlflowClient:
        if self._connected is None:
            self._connected = connect(self.uri)
        return self._connected

    def _readable_summary(self, model: Any) -> TaskSummary:
        try:
            return self._summary(model)
        except ForeignVersionError as error:  # of one task: the list has the others all the same
            _logger.warning("the champion of %s cannot be read: %s", model.name, error.message)
            return TaskSummary(model.name, aliases={alias: int(number) for alias, number in model.aliases.items()})

    def _summary(self, model: Any) -> TaskSummary:
        """Return a task's line: as its tag has it, or made anew where the alias says that the tag is old."""
        aliases = {alias: int(number) for alias, number in model.aliases.items()}
        champion = aliases.get(CHAMPION)
        if champion is None:
            return TaskSummary(model.name, aliases=aliases)
        with contextlib.suppress(KeyError, ValueError):
            recorded = from_json(TaskSummary, model.tags[SUMMARY])
            if recorded.version == champion:
                return replace(recorded, aliases=aliases)
        newest = [version for version in model.latest_versions if int(version.version) == champion]
        adapter = read_version(newest[0], model.tags) if newest else self.resolve(f"{model.name}:{champion}")
        return replace(summarise(model.name, champion, adapter.candidate, adapter.decision), aliases=aliases)

    def _plainly(self, ask: Callable[[], ResultT], by_client: Callable[[], ResultT]) -> ResultT:
        return _mlflow.plainly(self.uri, ask, by_client, when=self._connected is None)

    def _ask(self, only: str | None, size: int, token: str | None) -> Any:
        return self._plainly(
            lambda: _mlflow.find_models(self.uri, only, size, token),
            lambda: asking(self._client)(only, size, token),
        )

    def _registered(self, task: str) -> Any | None:
        return self._plainly(
            lambda: _mlflow.find_model(self.uri, task),
            lambda: _versions.registered_model(self._client, task),
        )

    def _model(self, task: str) -> Any | None:
        if not exists(self.uri):
            return None
        with speaking(self.uri):
            return _versions.registered_model(self._client, check_task(task))

    def _known_model(self, task: str) -> Any:
        model = self._model(task)
        if model is None:
            with speaking(self.uri):
                raise self._unknown(AdapterName(check_task(task)))
        return model

    def _find(self, name: AdapterName) -> RegisteredAdapter | None:
        version = self._plainly(lambda: _mlflow.find_version(self.uri, name), lambda: self._version(name))
        if version is None:
            return None
        tags = self._plainly(
            lambda: _mlflow.find_model(self.uri, name.task).tags,
            lambda: self._client.get_registered_model(name.task).tags,
        )
        return read_version(version, tags)

    def _version(self, name: AdapterName) -> Any | None:
        client = self._client
        from mlflow.exceptions import MlflowException

        try:
            if name.alias is not None:
                return client.get_model_version_by_alias(name.task, name.alias)
            return client.get_model_version(name.task, str(name.version))
        except MlflowException as error:
            # A server with accounts forbids to read versions of a model that does not exist.
            absent = is_denied(error) and _versions.registered_model(client, name.task) is None
            if absent or is_missing(error):
                return None
            raise

    def _unknown(self, name: AdapterName) -> RegistryError:
        place = redact(self.uri)
        model = _versions.registered_model(self._client, name.task) if exists(self.uri) else None
        if model is None:
            known = near(self._ask, name.task) if exists(self.uri) else []
            way = "`loraxs-search launch SPACE` searches for one, and `loraxs-search promote STUDY` registers it"
            hint = "`loraxs-search ls` has every task" if known else way
            return UnknownTaskError(f"{unknown_name('task', name.task, known)} Registry: {place}.", hint=hint)
        if name.alias == CHAMPION:
            return UnknownVersionError(
                f"Task {name.task} has no champion: none was promoted, or it was removed. Registry: {place}.",
                hint=f"see `loraxs-search history {name.task}` for why, or run `loraxs-search promote STUDY`",
            )
        have = [f"{name.task}@{alias}" for alias in sorted(model.aliases)]
        numbers = sorted(int(version.version) for version in _versions.versions(self._client, name.task))
        have += [f"{name.task}:{number}" for number in numbers]
        return UnknownVersionError(
            f"{unknown_name('adapter', str(name), have)} Registry: {place}.",
            hint=f"`loraxs-search show {name.task}` has every version, with its base",
        )


def _readable(versions: Iterable[Any], model_tags: Mapping[str, str]) -> Iterator[RegisteredAdapter]:
    """Read versions; one whose records cannot be read is left out, with a warning, as are silently those of others."""
    for version in versions:
        if "loraxs.digest" in version.tags:
            try:
                yield read_version(version, model_tags)
            except RegistryError as error:
                _logger.warning("version %s of %s is left out: %s", version.version, version.name, error.message)


_ADAPTERS = f"tags.`{KIND}` = '{ADAPTER}'"
_MAX_PAGE = 1000  # MLflow's own limit
_OTHERS = 20  # factor sets and models of others among these, for which no second page is asked
_NEAR = 100
_FEW = 8


# How a page of registered models is asked for, by filter, number of models, and the token of the page before. It yields
# models by name, each with its tags, aliases and latest versions, and has the token of the next page.
Ask = Callable[[str | None, int, str | None], Any]


def asking(client: MlflowClient) -> Ask:
    """Return how MLflow's client asks for a page."""

    def ask(only: str | None, size: int, token: str | None) -> Any:
        with _uncollected():
            return client.search_registered_models(only, max_results=size, order_by=["name ASC"], page_token=token)

    return ask


@contextlib.contextmanager
def _uncollected() -> Iterator[None]:
    """Pause garbage collection: a page of an embedded store makes tens of thousands of objects, no garbage."""
    if not gc.isenabled():
        yield
        return
    gc.disable()
    try:
        yield
    finally:
        gc.enable()


def models(ask: Ask, limit: int | None = None) -> Iterator[Any]:
    """Yield the registered models of our adapters, by name; the first `limit` of them.

    Without a filter MLflow reads a page along its index, with one it reads the tags of all models, three times for
    each page. So a store is asked with the filter only where most of it is another user's, as its first page tells.
    """
    size = _MAX_PAGE if limit is None else min(limit + _OTHERS, _MAX_PAGE)
    yield from itertools.islice(_pages(ask, size), limit)


def near(ask: Ask, task: str) -> list[str]:
    """Return names of tasks to suggest for an unknown one: those with the same beginning, and the first ones."""
    alike = f"name ILIKE '{task[:3]}%'"
    pages = ask(alike, _NEAR, None), ask(None, _NEAR, None)
    return sorted({model.name for page in pages for model in page if _is_adapter(model)})


def _is_adapter(model: Any) -> bool:
    return bool(model.tags.get(KIND) == ADAPTER)


def _pages(ask: Ask, size: int) -> Iterator[Any]:
    only, token, first = None, None, True
    while first or token:
        page = ask(only, size, token)
        models_of_page = list(page)
        adapters = [model for model in models_of_page if _is_adapter(model)]
        if first and page.token and 2 * len(adapters) < len(models_of_page):
            page = ask(only := _ADAPTERS, size, None)
            adapters = list(page)
        yield from adapters
        token, first = page.token, False


def registered_manifests(uri: str) -> Iterator[tuple[str, str, Manifest]]:
    """Yield `TASK:3`, the adapter's digest and the manifest of every version of every task.

    Raises:
        TrackingError: the server does not answer.
        RegistryError, IntegrityError: a version's files cannot be read.
    """
    if not exists(uri):
        return
    with speaking(uri):
        client = connect(uri)
        for model in models(asking(client)):
            for version in _versions.all_versions(client, model.name):
                if "loraxs.digest" in version.tags:
                    name = f"{model.name}:{version.version}"
                    yield name, version.tags["loraxs.digest"], _manifest(uri, version.source)


def _manifest(uri: str, source: str) -> Manifest:
    with tempfile.TemporaryDirectory() as folder:
        _mlflow.fetch_file(uri, source, MANIFEST, Path(folder), MAX_BYTES[".json"])
        return read(Path(folder))
