"""The process that trains trials on behalf of Ray Tune: one on each node, for all trials of a search that run there.

It holds no torch and nothing of Tune; the host of a trial's device does the work.
"""

from __future__ import annotations

import functools
from dataclasses import dataclass, replace
from typing import TYPE_CHECKING, Any, TypeVar, cast

import ray
from ray import ObjectRef
from ray.actor import ActorProxy
from ray.exceptions import ActorDiedError, RayTaskError

from loraxs_search.errors import ClusterError, HomeError, LoraxsError, TrialCancelledError
from loraxs_search.records.codec import from_json, to_json
from loraxs_search.records.search import SearchPlan
from loraxs_search.records.task import Task
from loraxs_search.records.trial import TrialReport, TrialSpec
from loraxs_search.search.cluster.connection import NAMESPACE, own_error
from loraxs_search.search.hosts.answers import HOST_LOST, advance
from loraxs_search.studies.snapshots import read_reports

if TYPE_CHECKING:
    from loraxs_search.search.hosts.host_actor import HostProxy
    from loraxs_search.search.hosts.pool import HostDirectory, SnapshotStore

OBJECTIVE = "objective"
STEP = "step"
REPORT = "report"
FAILED = "failed"
CANCELLED = "cancelled"  # a user stopped the trial: there is no report
FATAL = "fatal_error"  # (message, hint) of an error that is not the trial's
_MAX_KEPT_BYTES = 1 << 30
AnswerT = TypeVar("AnswerT")


@dataclass(frozen=True)
class Place:
    """Where a slot is: a node, and the GPU that it has a share of, if any."""

    node_id: str
    address: str
    gpu: str | None

    def __str__(self) -> str:
        return self.address if self.gpu is None else f"{self.address} GPU {self.gpu}"


def find_place() -> Place:
    """Return the place of this process, which Ray has given the resources of a slot."""
    gpus = ray.get_gpu_ids()
    node_id = ray.get_runtime_context().get_node_id()
    return Place(node_id, ray.util.get_node_ip_address(), str(gpus[0]) if gpus else None)


class TrialAdvancer:
    """Trains trials to their next reports on the hosts of the devices that they were given.

    The snapshot store has their states, so that every call may be repeated: Ray starts a process that dies anew, and
    asks that one what the first had not answered.

    Args:
        snapshot_store, directory: The names of these actors: Ray keeps a handle, as it does what is large, where it may
            be lost, and a process that is started anew with it.
    """

    def __init__(self, task: Task, plan: SearchPlan, snapshot_store: str, directory: str) -> None:
        self._task, self._plan, self._names = task, plan, (snapshot_store, directory)
        self._hosts: dict[Place, HostProxy] = {}
        # By slot, the trial that it has trained last, with the step of its last report and its state there.
        self._kept: dict[str, tuple[str, int, bytes]] = {}

    # Looked up by the first call, which may fail and be repeated; a process that fails to begin is not started again.
    @functools.cached_property
    def _snapshot_store(self) -> ActorProxy[SnapshotStore]:
        return cast("ActorProxy[SnapshotStore]", ray.get_actor(self._names[0], NAMESPACE))

    @functools.cached_property
    def _directory(self) -> ActorProxy[HostDirectory]:
        return cast("ActorProxy[HostDirectory]", ray.get_actor(self._names[1], NAMESPACE))

    @ray.method
    async def advance(self, slot: str, spec_json: str, place: Place, after: int) -> dict[str, Any]:
        """Train a trial to its next report and keep its state; return the report as Tune gets it.

        A process that died may have kept the state of a report that the search has not got: that report is returned.

        A trial that fails, or is given up, ends with a reason and without a report. One whose host died continues with
        a new host from its last snapshot. A disk that cannot be written, or a node that is not fit, ends the search,
        not the trial.

        Args:
            slot: Names the slot; it has one trial at a time.
            after: Step of the last report that the search has; 0 if it has none.
        """
        spec, task, step = from_json(TrialSpec, spec_json), self._task, after
        try:
            known = self._kept.pop(slot, None)
            snapshot = known[2] if known is not None and known[:2] == (spec.trial_id, after) else None
            if snapshot is None:
                snapshot = await _answered(self._snapshot_store.read_snapshot.remote(spec.trial_id))
                reports = read_reports(snapshot) if snapshot else ()
                step = reports[-1].step if reports else 0
                if unknown := [report for report in reports if report.step > after]:
                    return self._result(spec, unknown[0])
                if step >= spec.hyperparameters.max_steps:
                    return self._result(spec, reports[-1])
            lost: HostProxy | None = None
            losses = 0
            while True:
                host = await self._host(place, lost)
                try:
                    until = step + self._plan.report_every
                    report, state = await advance(spec, until, snapshot, task)(host)
                    break
                except HOST_LOST:
                    lost, losses = host, losses + 1
                    if losses > self._plan.max_failures:
                        await self._host(place, lost)  # for the next trial
                        raise
            if (metric := task.search_metric) not in report.metrics:
                shown = ", ".join(sorted(report.metrics)) or "none"
                raise LoraxsError(f"`{metric}` must be among a report's metrics, but got {shown}.")
        except (LoraxsError, RayTaskError) as error:
            return _broken_off(step, error)
        try:
            await _answered(self._snapshot_store.write_snapshot.remote(spec.trial_id, state))
        except LoraxsError as error:  # of the study's folder, not of the trial
            return {STEP: step, FATAL: [error.message, error.hint], "done": True}
        self._kept[slot] = spec.trial_id, report.step, state
        while sum(len(state) for _, _, state in self._kept.values()) > _MAX_KEPT_BYTES:  # the store has all
            del self._kept[next(iter(self._kept))]
        return self._result(spec, replace(report, host=str(place)))

    @ray.method(max_task_retries=0)
    async def forget(self, slot: str) -> None:
        """Drop what is kept for a slot that is no longer used."""
        self._kept.pop(slot, None)

    # ---- inside ------------------------------------------------------------------------------------------------------
    async def _host(self, place: Place, lost: HostProxy | None) -> HostProxy:
        """Return the host of a place, another one than a lost one."""
        host = self._hosts.get(place)
        if host is None or host == lost:
            host = await _answered(self._directory.host_for.remote(place.node_id, place.gpu, lost, None))
            self._hosts[place] = host
        return host

    def _result(self, spec: TrialSpec, report: TrialReport) -> dict[str, Any]:
        return {
            STEP: report.step,
            OBJECTIVE: report.metrics[self._task.search_metric],
            REPORT: to_json(report),
            "done": report.step >= spec.hyperparameters.max_steps,
        }


async def _answered(answer: ObjectRef[AnswerT]) -> AnswerT:
    """Await an answer of a process beside the driver, without which no trial can go on.

    Raises:
        ClusterError: it has died for good.
    """
    try:
        return await answer
    except ActorDiedError as error:
        raise own_error(error) from error


def _broken_off(step: int, error: LoraxsError | RayTaskError) -> dict[str, Any]:
    """Report why a trial ends; an error that is not its own ends the search, which continues once that is fixed."""
    result: dict[str, Any] = {STEP: step, "done": True}
    if isinstance(error, TrialCancelledError):
        return result | {CANCELLED: True}
    if isinstance(error, (HomeError, ClusterError)):  # both name their node
        return result | {FATAL: [error.message, error.hint]}
    if isinstance(error, LoraxsError):
        return result | {FAILED: f"{error.message} Hint: {error.hint}." if error.hint else error.message}
    return result | {FAILED: f"{type(error.cause).__name__}: {error.cause}"}
