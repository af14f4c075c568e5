"""Work that any host can do, in pieces, spread over all hosts of a pool."""

from __future__ import annotations

from collections import deque
from collections.abc import Callable, Sequence
from typing import Any, Protocol

import ray
from ray.exceptions import RayTaskError

from loraxs_search.errors import ClusterError, LoraxsError
from loraxs_search.search.hosts.pool import HOST_LOST, HostPool

_MAX_LOST_HOSTS = 3


class Piece(Protocol):
    """One piece of work; it keeps its own results, so that a killed driver finds what was done."""

    def ask(self, host: Any) -> Any:
        """Ask a host for it, and return Ray's reference to the answer. May be repeated, on another host."""
        ...

    def take(self, answer: Any) -> bool:
        """Keep what a host answers; whether there is more to ask for."""
        ...

    def failed(self, error: Exception) -> None:
        """Keep that a host could not do it, or raise where that ends the search."""
        ...


def spread(pool: HostPool, pieces: Sequence[Piece], check_stopped: Callable[[], None], *, at_once: int = 1) -> None:
    """Do every piece, `at_once` on each host at a time.

    A piece whose host died is asked of another.

    Args:
        check_stopped: Raises when the search was stopped from outside.
    Raises:
        RayActorError: hosts keep dying.
    """
    waiting, pending = deque(pieces), dict[Any, tuple[Piece, Any]]()
    lives, hosts = _MAX_LOST_HOSTS * len(pieces), pool.hosts() if pieces else []

    def go_on(piece: Piece, host: Any) -> None:
        pending[piece.ask(host)] = piece, host

    for host in [host for _ in range(at_once) for host in hosts]:
        if waiting:
            go_on(waiting.popleft(), host)
    while pending:
        check_stopped()
        done, _ = ray.wait(list(pending), num_returns=1, timeout=0.5)
        for answer in done:
            piece, host = pending.pop(answer)
            try:
                if _taken(piece, answer):
                    go_on(piece, host)
                elif waiting:
                    go_on(waiting.popleft(), host)
            except HOST_LOST:
                lives -= 1
                if lives < 0:
                    raise
                go_on(piece, pool.replacement(host))


def _taken(piece: Piece, answer: Any) -> bool:
    try:
        value = ray.get(answer)
    except (*HOST_LOST, ClusterError):  # the latter is a node's fault, not the piece's
        raise
    except (LoraxsError, RayTaskError) as error:
        piece.failed(error)
        return False
    return piece.take(value)


def why(error: Exception) -> str:
    """Return what went wrong on a host, for people."""
    if isinstance(error, LoraxsError):
        return error.message
    return f"{type(error.cause).__name__}: {error.cause}" if isinstance(error, RayTaskError) else str(error)
