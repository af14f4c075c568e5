"""Work that any host can do, in pieces, spread over all hosts of a pool.

The pieces of `RefitPiece` train candidates' recipes again from fresh seeds: hosts that pack advance them in the same
rounds.
"""

from __future__ import annotations

from collections import deque
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, replace
from typing import Any, Protocol, TypeVar

import ray
from ray import ObjectRef
from ray.exceptions import RayTaskError

from loraxs_search.errors import ClusterError, HomeError, LoraxsError
from loraxs_search.records import Refit, Task, TrialReport, TrialSpec
from loraxs_search.search.hosts.client import HOST_LOST, HostClient
from loraxs_search.studies import StudyFolder, read_reports

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


_SEED_STRIDE = 1 << 32  # the seeds of a study's trials lie closer together than that


def refit_spec(spec: TrialSpec, number: int) -> TrialSpec:
    """Return the recipe of a trial with its `number`-th fresh seed, 1 for the first."""
    hyper = replace(spec.hyperparameters, seed=spec.hyperparameters.seed + number * _SEED_STRIDE)
    return replace(spec, trial_id=f"{spec.trial_id}.{number}", hyperparameters=hyper)


@dataclass(frozen=True)
class RefitPiece:
    """A recipe to train to its last step, its state kept after every `every` steps.

    Args:
        reached: Called with its name and the step that it has reached; one that failed has no more to do.
    """

    spec: TrialSpec
    task: Task
    every: int
    folder: StudyFolder
    reached: Callable[[str, int], None] = lambda _, __: None

    def ask(self, host: HostClient) -> ObjectRef[tuple[TrialReport, bytes]]:
        snapshot = self.folder.read_snapshot(self.spec.trial_id)
        reports = read_reports(snapshot) if snapshot else ()
        step = reports[-1].step if reports else 0
        until = min(step + self.every, self.spec.hyperparameters.max_steps)
        return host.advance(self.spec, until, snapshot, self.task)

    def take(self, answer: tuple[TrialReport, bytes]) -> bool:
        report, snapshot = answer
        self.folder.write_snapshot(self.spec.trial_id, snapshot)
        self.reached(self.spec.trial_id, report.step)
        if report.step < self.spec.hyperparameters.max_steps:
            return True
        self._ended(self.folder.keep_rule.kept(read_reports(snapshot)).metrics)
        return False

    def failed(self, error: Exception) -> None:
        self._ended({}, reason_of(error))
        self.reached(self.spec.trial_id, self.spec.hyperparameters.max_steps)

    def _ended(self, metrics: Mapping[str, float], failed: str = "") -> None:
        refit = Refit(self.spec.hyperparameters.seed, metrics, failed=failed)
        self.folder.confirmations().write_refit(self.spec.trial_id, refit)
