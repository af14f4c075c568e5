"""The adapters of a server by the names that clients call them, followed as champions move.

A name is looked up in the registry when it is first used. Every second, one list says of which tasks a name may mean
another adapter by now: these are looked up again, and the digest decides. An answer is given by the adapter that the
name meant when its request came.
"""

from __future__ import annotations

import contextlib
import logging
import math
import threading
import time
from collections.abc import Hashable, Sequence
from dataclasses import dataclass
from pathlib import Path

from loraxs_search.bank.bank import AdapterBank
from loraxs_search.errors import (
    HomeError,
    IntegrityError,
    LoraxsError,
    RegistryError,
    RegistryUnreadableError,
    TrackingError,
    UnknownTaskError,
    UnknownVersionError,
    UsageError,
    unknown_name,
)
from loraxs_search.manifest import Manifest, verify
from loraxs_search.registry.pull import pull_version, store_stamp
from loraxs_search.registry.store import AdapterName, Registry
from loraxs_search.tasks.kinds import TaskKind, kind_of

log = logging.getLogger(__name__)

_FORGET_S = 600.0  # a name that is not served by itself and that nobody uses is followed no longer
_HINT = "`GET /v1/models` lists those served"
_RETRY_S = 60.0  # after which an adapter that was refused is tried again: people may have repaired it


class RefusedError(LoraxsError):
    """A request that is answered with an error status.

    Args:
        param: The field of the body that is at fault.
    """

    def __init__(self, status: int, message: str, param: str | None = None, *, hint: str | None = None) -> None:
        super().__init__(message, hint=hint)
        self.status, self.param = status, param


@dataclass(frozen=True)
class ServedAdapter:
    """An adapter that answers, with what clients see of it."""

    task: str
    version: int
    digest: str
    folder: Path
    manifest: Manifest
    kind: TaskKind  # what its answers are; rows of one kind are reduced together


@dataclass
class _Followed:
    adapter: ServedAdapter
    used: float
    state: Hashable = None  # of its task when it was looked up last without a fault
    tried: str = ""  # the digest that the name was found to mean, and that is not loaded yet
    refused: str = ""  # a digest that is not tried again before `retry_at`
    retry_at: float = math.inf
    fault: str = ""  # why it keeps an older adapter


class ServedModels:
    """Tasks of a registry, all on one base.

    Args:
        tasks: Those that are served; empty means every task of the registry that fits the base and the bank.
        max_bytes: Limit on the adapters' numbers in memory; the least recently used are evicted.
    Raises:
        RegistryError: a task of `tasks` is not in the registry.
        UsageError: there is no task to serve, or one does not fit the others.
    """

    def __init__(self, tasks: Sequence[str], *, uri: str, max_bytes: int | None = None, device: str = "cpu") -> None:
        self.tasks, self.uri = tuple(tasks), uri
        self.registry_error: str | None = None  # why the registry cannot be read
        self.num_switches = 0  # names that have come to mean another adapter
        self._reader = Registry(uri)
        self._names: dict[str, _Followed] = {}
        self._lock = threading.Lock()  # of the names
        self._loading = threading.Lock()  # one adapter at a time is pulled and loaded
        self._stamp: str | None = None
        names = self.tasks or [it.task for it in self._reader.summaries() if it.version is not None]
        if not names:
            raise UsageError(
                "A server must have a task to serve, but the registry has none.",
                hint="promote an adapter first: `loraxs-search promote STUDY`",
            )
        errors: list[LoraxsError] = []
        for name in names:
            try:
                first = self._pulled(name)
                break
            except LoraxsError as error:
                if self.tasks:
                    raise
                errors.append(error)
        else:
            raise errors[0]
        self.base = first.manifest.base_model  # the first one that is there decides what the base is loaded as
        self.bank = AdapterBank(self.base, max_bytes=max_bytes, device=device, task_model=first.kind.model)
        self._always = dict.fromkeys(names)  # followed for as long as they are in the registry
        for name in names:
            try:
                self.look_up(name)
            except LoraxsError as error:
                if self.tasks:
                    raise
                log.warning("%s is not served: %s", name, error.message)

    # ---- asked by requests -------------------------------------------------------------------------------------------
    def find(self, name: str) -> ServedAdapter | None:
        """Return the adapter of a name that is known already, at no cost; None if it has to be looked up."""
        followed = self._names.get(name)
        if followed is None:
            return None
        followed.used = time.monotonic()
        return followed.adapter

    def look_up(self, name: str) -> ServedAdapter:
        """Find a name in the registry, load its adapter and follow it from now on. For a worker thread.

        Raises:
            RefusedError, UnknownTaskError, UnknownVersionError: there is none, or it is not served here.
            UsageError, BaseModelError: it does not fit this server.
            TrackingError: the registry does not answer.
        """
        try:
            task = AdapterName.parse(name).task
        except RegistryError as error:
            raise RefusedError(404, error.message, "model", hint=_HINT) from error
        if self.tasks and task not in {AdapterName.parse(own).task for own in self.tasks}:
            raise RefusedError(404, unknown_name("model", name, self.tasks), "model", hint=_HINT)
        adapter = self._fitting(name)
        with self._loading:
            if adapter.digest not in self.bank:  # another request may have been quicker
                self.load(adapter)
            with self._lock:
                self._names[name] = _Followed(adapter, time.monotonic())
        self._stamp = None  # it may mean another one by now
        return adapter

    def load(self, adapter: ServedAdapter) -> None:
        """Load an adapter into the bank, under its digest; a version whose pulled folder is gone is pulled again."""
        try:
            self.bank.load(adapter.digest, adapter.folder)
        except IntegrityError:
            pull_version(f"{adapter.task}:{adapter.version}", uri=self.uri)
            self.bank.load(adapter.digest, adapter.folder)

    def served(self) -> list[tuple[str, ServedAdapter]]:
        """Return the names that are followed, with what they mean now."""
        with self._lock:
            return [(name, followed.adapter) for name, followed in sorted(self._names.items())]

    def served_tasks(self) -> dict[str, ServedAdapter]:
        """Return the adapters that are served by themselves, by name: those of all tasks."""
        with self._lock:
            return {name: self._names[name].adapter for name in self._always if name in self._names}

    def faults(self) -> dict[str, str]:
        """Return why names keep an older adapter than they mean, by name."""
        with self._lock:
            return {name: followed.fault for name, followed in sorted(self._names.items()) if followed.fault}

    # ---- champions move ----------------------------------------------------------------------------------------------
    def refresh(self) -> None:
        """Look each name up again, and load what it has come to mean; called again and again by one thread.

        While the registry cannot be read, names keep their meaning.
        """
        stamp, now = store_stamp(self.uri), time.monotonic()
        with self._lock:
            for name in [it for it, own in self._names.items() if now - own.used > _FORGET_S]:
                if name not in self._always:
                    del self._names[name]
            retry_at = min((own.retry_at for own in self._names.values()), default=math.inf)
        if stamp is None or stamp != self._stamp or now >= retry_at:
            self._stamp, fault = stamp, None  # None after whatever goes wrong: then all names are looked up again
            try:
                self._follow_moved()
            except (RegistryUnreadableError, TrackingError) as error:
                self._stamp, fault = None, error.message
            if (fault is None) != (self.registry_error is None):
                log.warning("the registry cannot be read: %s", fault) if fault else log.warning("the registry is back")
            self.registry_error = fault
        # Adapters leave the bank that no name means any more, also those that a late request has brought back; requests
        # that have begun have their numbers.
        with self._loading:
            with self._lock:
                in_use = {own.adapter.digest for own in self._names.values()}
            for digest in set(self.bank.names) - in_use:
                with contextlib.suppress(UsageError):  # the bank has evicted it already
                    self.bank.evict(digest)

    def _follow_moved(self) -> None:
        """Look those names up again that may mean another adapter by now.

        Raises:
            RegistryUnreadableError, TrackingError: the registry cannot be read.
        """
        names = list(self._names.items())
        states = self._reader.states({AdapterName.parse(name).task for name, _ in names})
        for name, followed in names:
            state = states.get(AdapterName.parse(name).task)
            if state is not None and state == followed.state:
                continue
            followed.tried, followed.state = "", None
            try:
                digest = self._reader.resolve(name).digest
                if digest == followed.refused and time.monotonic() < followed.retry_at:
                    continue
                if digest != followed.adapter.digest:
                    followed.tried = digest
                    adapter = self._fitting(name)
                    with self._loading:
                        self.load(adapter)
                        with self._lock:
                            followed.adapter = adapter
                    self.num_switches += 1
                    log.info("%s is version %s now, %s", name, adapter.version, adapter.digest)
            except (UnknownTaskError, UnknownVersionError) as error:
                log.warning("%s is served no longer: %s", name, error.message)
                with self._lock:
                    self._names.pop(name, None)
            except Exception as fault:  # it is one name's: the others are followed all the same
                if isinstance(fault, TrackingError) and not followed.tried:  # as it would be of the other names
                    raise
                # Say, once, why the name keeps its adapter; what passes by itself is tried again at once.
                message = fault.message if isinstance(fault, LoraxsError) else repr(fault)
                if message != followed.fault:
                    log.warning("%s keeps its adapter, and its new one is refused: %s", name, message)
                followed.fault = message
                passes = (HomeError, RegistryUnreadableError, TrackingError)
                if not isinstance(fault, LoraxsError) or isinstance(fault, passes):
                    self._stamp = None
                else:
                    followed.refused, followed.retry_at = followed.tried, time.monotonic() + _RETRY_S
            else:
                followed.refused, followed.retry_at, followed.fault, followed.state = "", math.inf, "", state

    # ---- inside ------------------------------------------------------------------------------------------------------
    def _pulled(self, name: str) -> ServedAdapter:
        folder, version = pull_version(name, uri=self.uri)
        manifest, task = verify(folder), AdapterName.parse(name).task
        return ServedAdapter(task, version, folder.name, folder, manifest, kind_of(manifest.task))

    def _fitting(self, name: str) -> ServedAdapter:
        """Pull an adapter of this server's base.

        Raises:
            RefusedError: it is one of another base.
        """
        adapter = self._pulled(name)
        if adapter.manifest.base_digest != self.bank.base.weight_digest:
            own = adapter.manifest.base_model.id
            law = f"Models here are adapters of {self.base.id}, but {adapter.task} is one of {own}."
            raise RefusedError(404, law, "model", hint="start another server for it")
        return adapter
