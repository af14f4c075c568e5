"""Waiting for what a search's processes answer, and telling a process that is lost from an answer that is an error."""

from __future__ import annotations

from collections.abc import Callable
from typing import TypeVar, cast

import ray
from ray import ObjectRef
from ray.actor import ActorHandle, ActorProxy
from ray.exceptions import ActorUnschedulableError, ObjectLostError, OutOfMemoryError, RayActorError, RaySystemError

AnswerT = TypeVar("AnswerT")
# The host died, or its node did, or its answer was lost. Ray reports a host killed by its memory monitor as
# OutOfMemoryError, not as a dead actor, and one too short of memory to reply as RaySystemError.
HOST_LOST = (RayActorError, OutOfMemoryError, ActorUnschedulableError, ObjectLostError, RaySystemError)
LOOK_EVERY_S = 0.5


def kill(actor: ActorProxy[AnswerT]) -> None:
    """End an actor's process now, and with it the actors that it owns."""
    ray.kill(cast("ActorHandle[AnswerT]", actor))


def await_answer(answer: ObjectRef[AnswerT], on_loop_step: Callable[[], None]) -> AnswerT:
    """Wait for an answer, however long it takes.

    Args:
        on_loop_step: Called several times a second meanwhile; raises when the search was stopped from outside.
    """
    while not ray.wait([answer], timeout=LOOK_EVERY_S)[0]:
        on_loop_step()
    return ray.get(answer)
