"""Training candidates' recipes again from fresh seeds, all at once: hosts that pack advance them in the same rounds."""

from __future__ import annotations

from collections import deque
from collections.abc import Sequence
from dataclasses import replace
from typing import Any, Protocol

import ray
from ray.exceptions import RayTaskError

from loraxs_search.errors import ClusterError, LoraxsError
from loraxs_search.records import Task, TrialReport, TrialSpec
from loraxs_search.search.pool import HOST_LOST, HostPool
from loraxs_search.studies import read_reports

_MAX_LOST_HOSTS = 3
_SEED_STRIDE = 1 << 32  # the seeds of a study's trials lie closer together than that


class RefitKeeping(Protocol):
    """Where refits are kept between two reports, and who ends them."""

    def snapshot(self, spec: TrialSpec) -> bytes | None:
        """Return a refit's last state; None at its start."""

    def advanced(self, spec: TrialSpec, report: TrialReport, snapshot: bytes) -> None:
        """Keep a refit's state; it is at its end when the report's step is the last."""

    def failed(self, spec: TrialSpec, reason: str) -> None:
        """Keep that a refit failed of itself."""

    def check_stopped(self) -> None:
        """Raise when the search was stopped from outside."""


def refit_spec(spec: TrialSpec, number: int) -> TrialSpec:
    """Return the recipe of a trial with its `number`-th fresh seed, 1 for the first."""
    hyper = replace(spec.hyperparameters, seed=spec.hyperparameters.seed + number * _SEED_STRIDE)
    return replace(spec, trial_id=f"{spec.trial_id}.{number}", hyperparameters=hyper)


def train(pool: HostPool, specs: Sequence[TrialSpec], task: Task, every: int, keeping: RefitKeeping) -> None:
    """Train every spec to its last step, spread over the pool's hosts, each kept after every `every` steps.

    A host that packs advances all of its refits in the same rounds; on one of lone trials they follow each other. A
    refit whose host died goes on with another from its last state.

    Raises:
        RayActorError: hosts keep dying.
    """
    hosts = pool.hosts()
    waiting = deque(specs)
    pending: dict[Any, tuple[TrialSpec, Any]] = {}
    lives = _MAX_LOST_HOSTS * len(specs)

    def go_on(spec: TrialSpec, host: Any) -> None:
        snapshot = keeping.snapshot(spec)
        reports = read_reports(snapshot) if snapshot else ()
        until = (reports[-1].step if reports else 0) + every
        pending[host.advance.remote(spec, until, snapshot, task)] = spec, host

    for host in [host for _ in range(pool.trials_at_once) for host in hosts]:
        if waiting:
            go_on(waiting.popleft(), host)
    while pending:
        keeping.check_stopped()
        done, _ = ray.wait(list(pending), num_returns=1, timeout=0.5)
        for answer in done:
            spec, host = pending.pop(answer)
            try:
                if _taken_up(answer, spec, keeping):
                    go_on(spec, host)
                elif waiting:
                    go_on(waiting.popleft(), host)
            except HOST_LOST:
                lives -= 1
                if lives < 0:
                    raise
                go_on(spec, pool.replacement(host))


def _taken_up(answer: Any, spec: TrialSpec, keeping: RefitKeeping) -> bool:
    """Keep what a host answers; whether the refit has steps to go."""
    try:
        report, snapshot = ray.get(answer)
    except (*HOST_LOST, ClusterError):  # the latter is a node's fault, not the recipe's
        raise
    except LoraxsError as error:
        keeping.failed(spec, error.message)
    except RayTaskError as error:
        keeping.failed(spec, f"{type(error.cause).__name__}: {error.cause}")
    else:
        keeping.advanced(spec, report, snapshot)
        return bool(report.step < spec.hyperparameters.max_steps)
    return False
