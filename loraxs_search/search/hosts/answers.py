"""Asking hosts, and telling one that is lost from an answer that is an error."""

from __future__ import annotations

from collections.abc import Callable
from typing import TYPE_CHECKING, TypeVar, cast

import ray
from ray import ObjectRef
from ray.actor import ActorHandle, ActorProxy
from ray.exceptions import ActorUnschedulableError, ObjectLostError, OutOfMemoryError, RayActorError, RaySystemError

from loraxs_search.records.task import Identity, Task
from loraxs_search.records.trial import TrialReport, TrialSpec

if TYPE_CHECKING:
    from loraxs_search.packing.host import TrialHost
    from loraxs_search.search.hosts.host_actor import HostProxy

AnswerT = TypeVar("AnswerT")
Ask = Callable[["HostProxy"], ObjectRef[AnswerT]]  # may be repeated on another host
# The host died, or its node did, or its answer was lost. Ray reports a host killed by its memory monitor as
# OutOfMemoryError, not as a dead actor, and one too short of memory to reply as RaySystemError.
HOST_LOST = (RayActorError, OutOfMemoryError, ActorUnschedulableError, ObjectLostError, RaySystemError)


def on_host(
    work: Callable[[TrialHost], AnswerT], task: Task, spec: TrialSpec | None = None, identity: Identity | None = None
) -> Ask[AnswerT]:
    """Return what asks a host for some work, which is sent with the values that it uses; see `HostActor.serve`."""
    return lambda host: cast("ObjectRef[AnswerT]", host.serve.remote(work, task, spec, identity))


def advance(spec: TrialSpec, until: int, snapshot: bytes | None, task: Task) -> Ask[tuple[TrialReport, bytes]]:
    """Return what asks a host to train a trial; see `TrialHost.advance`."""
    return on_host(lambda host: host.advance(spec, until, snapshot, task), task, spec)


def kill(actor: ActorProxy[AnswerT]) -> None:
    """End an actor's process now, and with it the actors that it owns."""
    ray.kill(cast("ActorHandle[AnswerT]", actor))
