"""The one typed client of a host, and typed handles of a search's actors: Ray itself gives none with named methods.

`_RemoteMethod[[A, B], R]` is a method of an actor that takes A and B, as other processes call it: `remote(a, b)`
returns at once a reference to R, which `ray.get` waits for.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import dataclass
from typing import Any, Concatenate, ParamSpec, Protocol, TypeVar, cast

import ray
from ray import ObjectRef
from ray.actor import ActorHandle
from ray.exceptions import ActorUnschedulableError, ObjectLostError, OutOfMemoryError, RayActorError, RaySystemError

from loraxs_search.packing._base import Host
from loraxs_search.records.base import Identity
from loraxs_search.records.host import Answers, Confirmation, HostInfo, LinearProbe
from loraxs_search.records.literals import Basis, Split
from loraxs_search.records.promotion import Baseline
from loraxs_search.records.task import Task
from loraxs_search.records.trial import TrialReport, TrialSpec
from loraxs_search.search.cluster.connection import NAMESPACE

P = ParamSpec("P")
ResultT = TypeVar("ResultT")


class _RemoteMethod(Protocol[P, ResultT]):
    """A method of an actor; the result may be an exception, which `ray.get` raises."""

    def remote(self, *args: P.args, **kwargs: P.kwargs) -> ObjectRef[ResultT]:
        """Have it done, and return a reference to the result."""

    def options(self, *, concurrency_group: str) -> _RemoteMethod[P, ResultT]:
        """Return the method as it runs in other threads of the actor."""


class SnapshotStoreHandle(Protocol):
    """A `SnapshotStore`."""

    __ray_ready__: _RemoteMethod[[], object]
    read_asset: _RemoteMethod[[str], bytes]
    read_snapshot: _RemoteMethod[[str], bytes | None]
    write_snapshot: _RemoteMethod[[str, bytes], None]
    write_baselines: _RemoteMethod[[ObjectRef[tuple[Baseline, ...]]], None]


class HostHandle(Protocol):
    """A `HostActor`; `HostClient` has its calls."""

    info: _RemoteMethod[[Task], HostInfo]
    call: _RemoteMethod[..., Any]
    cancel: _RemoteMethod[[Sequence[str]], None]
    usage: _RemoteMethod[[], tuple[str, dict[str, float]]]
    steps: _RemoteMethod[[], dict[str, int]]


class DirectoryHandle(Protocol):
    """A `HostDirectory`."""

    host_for: _RemoteMethod[[str, str | None, HostHandle | None], HostHandle]
    preload: _RemoteMethod[[str, str | None, Task], None]
    hosts: _RemoteMethod[[], Sequence[HostHandle]]


class AdvancerHandle(Protocol):
    """A `TrialAdvancer`."""

    advance: _RemoteMethod[..., dict[str, Any]]
    forget: _RemoteMethod[[str], None]


def find_snapshot_store(name: str) -> SnapshotStoreHandle:
    """Return the snapshot store of this name."""
    return cast("SnapshotStoreHandle", ray.get_actor(name, NAMESPACE))


def find_directory(name: str) -> DirectoryHandle:
    """Return the host directory of this name."""
    return cast("DirectoryHandle", ray.get_actor(name, NAMESPACE))


def kill(actor: SnapshotStoreHandle | DirectoryHandle | HostHandle | AdvancerHandle) -> None:
    """End an actor's process now, and with it the actors that it owns."""
    ray.kill(cast("ActorHandle[Any]", actor))


# The host died, or its node did, or its answer was lost; to Ray one that its memory monitor has ended is no actor that
# died, and a system error is of a process without the memory to say its answer.
HOST_LOST = (RayActorError, OutOfMemoryError, ActorUnschedulableError, ObjectLostError, RaySystemError)
_MAX_LOSSES = 3
LOOK_EVERY_S = 0.5


def await_answer(answer: ObjectRef[ResultT], on_loop_step: Callable[[], None]) -> ResultT:
    """Wait for an answer, however long it takes.

    Args:
        on_loop_step: Called several times a second meanwhile; raises when the search was stopped from outside.
    """
    while not ray.wait([answer], timeout=LOOK_EVERY_S)[0]:
        on_loop_step()
    return ray.get(answer)


@dataclass(frozen=True)
class HostClient:
    """A host in another process: each call returns at once a reference to the answer; `packing.Host` says what it is.

    `ray.get` on a reference raises what the host raised; one of `HOST_LOST` when it is gone; ClusterError when its node
    is not fit for the search.

    Args:
        find: Returns the host to ask, or the one that takes the place of a lost one.
        actor: The host.
    """

    find: Callable[[HostHandle | None], HostHandle]
    actor: HostHandle

    @classmethod
    def to(cls, actor: HostHandle) -> HostClient:
        """Return the client of a host that the caller replaces itself."""
        return cls(lambda _: actor, actor)

    def replacement(self) -> HostClient:
        """Return the client of the host to ask now that this one is lost."""
        return HostClient(self.find, self.find(self.actor))

    def result(self, ask: Callable[[HostClient], ObjectRef[ResultT]], on_loop_step: Callable[[], None]) -> ResultT:
        """Ask and await the answer; a host that dies, or whose node does, is replaced a few times."""
        host = self
        for _ in range(_MAX_LOSSES):
            try:
                return await_answer(ask(host), on_loop_step)
            except HOST_LOST:
                host = host.replacement()
        return await_answer(ask(host), on_loop_step)

    # ---- calls -------------------------------------------------------------------------------------------------------
    def info(self, task: Task) -> ObjectRef[HostInfo]:
        """Describe base, rows and device as their files are now; loads what is not loaded."""
        return self.actor.info.remote(task)

    def decompose(self, task: Task, names: Sequence[str], rank: int, basis: Basis) -> ObjectRef[None]:
        return self._call(task, Host.decompose, names, rank, basis)

    def advance(
        self, spec: TrialSpec, until: int, snapshot: bytes | None, task: Task
    ) -> ObjectRef[tuple[TrialReport, bytes]]:
        return self._call(task, Host.advance, spec, until, snapshot, task)

    def confirm(self, spec: TrialSpec, snapshot: bytes, task: Task) -> ObjectRef[Confirmation]:
        return self._call(task, Host.confirm, spec, snapshot, task)

    def answer(self, spec: TrialSpec, snapshot: bytes, rows: range, task: Task) -> ObjectRef[Answers]:
        return self._call(task, Host.answer, spec, snapshot, rows, task)

    def answer_without_adapter(
        self, identity: Identity, split: Split, rows: range, shots: int, task: Task
    ) -> ObjectRef[Answers]:
        """Answered by a host that holds what the study began with."""
        return self.actor.call.remote(Host.answer_without_adapter.__name__, task, (split, rows, shots, task), identity)

    def linear_probe(self, task: Task) -> ObjectRef[LinearProbe]:
        return self._call(task, Host.linear_probe, task)

    def factor_file(self, task: Task, key: str) -> ObjectRef[bytes]:
        return self._call(task, Host.factor_file, key)

    def baselines(self, task: Task) -> ObjectRef[tuple[Baseline, ...]]:
        """Runs in its own thread: no trial waits for it."""
        call = self.actor.call.options(concurrency_group="baselines")
        return call.remote(Host.baselines.__name__, task, (task,))

    def cancel(self, names: Sequence[str]) -> ObjectRef[None]:
        """Runs in its own thread: it waits for no trial."""
        return self.actor.cancel.options(concurrency_group="commands").remote(names)

    def usage(self) -> ObjectRef[tuple[str, dict[str, float]]]:
        """Runs in the thread of commands: it waits for no trial."""
        return self.actor.usage.options(concurrency_group="commands").remote()

    def steps(self) -> ObjectRef[dict[str, int]]:
        """Runs in the thread of commands: it waits for no trial."""
        return self.actor.steps.options(concurrency_group="commands").remote()

    def _call(
        self, task: Task, method: Callable[Concatenate[Host, P], ResultT], *args: P.args, **kwargs: P.kwargs
    ) -> ObjectRef[ResultT]:
        """Have a method of the host called, once it has the task's rows."""
        assert not kwargs, "arguments go by place"
        return self.actor.call.remote(method.__name__, task, args)
