"""Typed handles of a search's actors: Ray itself gives none with named methods.

`RemoteMethod[[A, B], R]` is a method of an actor that takes A and B, as other processes call it: `remote(a, b)` returns
at once a reference to R, which `ray.get` waits for.
"""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any, ParamSpec, Protocol, TypeVar, cast

import ray
from ray import ObjectRef
from ray.actor import ActorHandle

from loraxs_search.records import HostInfo, Task, Yardstick
from loraxs_search.search.cluster.connection import NAMESPACE

P = ParamSpec("P")
ResultT = TypeVar("ResultT")


class RemoteMethod(Protocol[P, ResultT]):
    """A method of an actor; the result may be an exception, which `ray.get` raises."""

    def remote(self, *args: P.args, **kwargs: P.kwargs) -> ObjectRef[ResultT]:
        """Have it done, and return a reference to the result."""
        ...

    def options(self, *, concurrency_group: str) -> RemoteMethod[P, ResultT]:
        """Return the method as it runs in other threads of the actor."""
        ...


class KeeperHandle(Protocol):
    """A `StudyKeeper`."""

    __ray_ready__: RemoteMethod[[], object]
    read_asset: RemoteMethod[[str], bytes]
    read_snapshot: RemoteMethod[[str], bytes | None]
    write_snapshot: RemoteMethod[[str, bytes], None]
    write_yardsticks: RemoteMethod[[ObjectRef[tuple[Yardstick, ...]]], None]


class HostHandle(Protocol):
    """A `HostActor`; `HostClient` has its calls."""

    info: RemoteMethod[[Task], HostInfo]
    call: RemoteMethod[..., Any]
    give_up: RemoteMethod[[Sequence[str]], None]
    usage: RemoteMethod[[], tuple[str, dict[str, float]]]
    steps: RemoteMethod[[], dict[str, int]]


class DirectoryHandle(Protocol):
    """A `HostDirectory`."""

    host_for: RemoteMethod[[str, str | None, HostHandle | None], HostHandle]
    preload: RemoteMethod[[str, str | None, Task], None]
    hosts: RemoteMethod[[], Sequence[HostHandle]]
    renew: RemoteMethod[[str, float], None]
    leave: RemoteMethod[[str], None]


def find_keeper(name: str) -> KeeperHandle:
    """Return the study keeper of this name."""
    return cast("KeeperHandle", ray.get_actor(name, NAMESPACE))


def find_directory(name: str) -> DirectoryHandle:
    """Return the host directory of this name."""
    return cast("DirectoryHandle", ray.get_actor(name, NAMESPACE))


def kill(actor: KeeperHandle | DirectoryHandle) -> None:
    """End an actor's process now, and with it the actors that it owns."""
    ray.kill(cast("ActorHandle[Any]", actor))
