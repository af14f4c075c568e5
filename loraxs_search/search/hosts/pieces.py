"""Work that any host can do, in pieces, spread over all hosts of a pool."""

from __future__ import annotations

from collections import deque
from collections.abc import Callable, Sequence
from typing import Any, Protocol, TypeVar

import ray
from ray import ObjectRef
from ray.exceptions import RayTaskError

from loraxs_search.errors import ClusterError, HomeError, LoraxsError
from loraxs_search.search.hosts.client import HOST_LOST, HostClient

_MAX_LOST_HOSTS = 3

AnswerT = TypeVar("AnswerT")


class Piece(Protocol[AnswerT]):
    """One piece of work; it keeps its own results, so that a killed driver finds what was done."""

    def ask(self, host: HostClient) -> ObjectRef[AnswerT]:
        """Start it on a host. May be repeated, on another host."""
        ...

    def take(self, answer: AnswerT) -> bool:
        """Keep a host's answer; return whether there is more to do."""
        ...

    def failed(self, error: Exception) -> None:
        """Record that it failed, or raise where that must end the search."""
        ...


def spread(
    hosts: Callable[[], Sequence[HostClient]],
    pieces: Sequence[Piece[Any]],
    turn: Callable[[], None],
    *,
    at_once: int = 1,
    finished: Callable[[int], None] = lambda _: None,
) -> None:
    """Have every piece done, `at_once` on each host at a time.

    A piece whose host died goes to another host.

    Args:
        hosts: Returns the hosts there are, one at least; not asked where there is nothing to do.
        turn: Called several times a second; raises when the search was stopped from outside.
        at_once: More than 1 where pieces share passes.
        finished: Called with how many pieces are done, after each.
    Raises:
        RayActorError: hosts keep dying.
        ClusterError, HomeError: a node is not fit for the search, or its disk is full.
    """
    waiting, pending = deque(pieces), dict[ObjectRef[Any], tuple[Piece[Any], HostClient]]()
    losses_left, clients = _MAX_LOST_HOSTS * len(pieces), hosts() if pieces else []
    num_done = 0

    def go_on(piece: Piece[Any], host: HostClient) -> None:
        pending[piece.ask(host)] = piece, host

    for host in [host for _ in range(at_once) for host in clients]:
        if waiting:
            go_on(waiting.popleft(), host)
    while pending:
        turn()
        done, _ = ray.wait(list(pending), num_returns=1, timeout=0.5)
        for answer in done:
            piece, host = pending.pop(answer)
            try:
                if _has_more(piece, answer):
                    go_on(piece, host)
                    continue
                num_done += 1
                finished(num_done)
                if waiting:
                    go_on(waiting.popleft(), host)
            except HOST_LOST:
                losses_left -= 1
                if losses_left < 0:
                    raise
                go_on(piece, host.replacement())


def _has_more(piece: Piece[AnswerT], answer: ObjectRef[AnswerT]) -> bool:
    """Give a piece its answer or its error; return whether there is more to do."""
    try:
        value = ray.get(answer)
    except (*HOST_LOST, ClusterError, HomeError):  # the latter two are a node's fault, not the piece's
        raise
    except (LoraxsError, RayTaskError) as error:
        piece.failed(error)
        return False
    return piece.take(value)


def reason_of(error: Exception) -> str:
    """Return what went wrong on a host, for people."""
    if isinstance(error, LoraxsError):
        return error.message
    return f"{type(error.cause).__name__}: {error.cause}" if isinstance(error, RayTaskError) else str(error)
