"""The thin trainable: what Ray Tune schedules. It holds a slot and no torch; the host of its device does the work."""

from __future__ import annotations

from dataclasses import replace
from typing import Any

import ray
from ray import tune
from ray.exceptions import RayTaskError

from loraxs_search.errors import ClusterError, HomeError, LoraxsError, TrialCancelledError
from loraxs_search.records import Task, TrialReport, TrialSpec, from_json, to_json
from loraxs_search.search.hosts.client import HOST_LOST, HostClient, HostHandle, find_directory, find_snapshot_store
from loraxs_search.studies import read_reports

OBJECTIVE = "objective"
STEP = "step"
SPEC = "spec"
REPORT = "report"
FAILED = "failed"
CANCELLED = "cancelled"  # a user stopped the trial: there is no report
FATAL = "fatal_error"  # (message, hint) of an error that is not the trial's
RESOURCES = "resources"


class TrialTrainable(tune.Trainable):
    """One trial as Tune sees it: each `step` trains to the next report on the host of the device it was given.

    A trial that is given up ends without a report.

    Config: `spec` and `task` (a TrialSpec and a Task as JSON), `metric`, `report_every`, `max_failures`, `resources`
    of a slot, and the names of the `snapshot_store` and `directory` actors. A trial that fails ends with a reason;
    one whose host died continues with a new host from its last snapshot; a disk that cannot be written, or a node that
    is not fit, ends the search, not the trial.
    """

    _snapshot: bytes | None
    _reports: tuple[TrialReport, ...]

    @classmethod
    def default_resource_request(cls, config: dict[str, Any]) -> tune.PlacementGroupFactory:
        """Request the resources of a slot at the time of the proposal: nodes come and go during a search."""
        return tune.PlacementGroupFactory([dict(config[RESOURCES])])

    def setup(self, config: dict[str, Any]) -> None:
        self._begin(config)

    def reset_config(self, new_config: dict[str, Any]) -> bool:
        self._begin(new_config)
        return True

    def step(self) -> dict[str, Any]:
        last = self._reports[-1] if self._reports else None
        if last is not None and last.step >= self._max_steps:  # resumed after its last report
            return self._result(last)
        step = last.step if last else 0
        try:
            report, snapshot = self._advance(step + self._every)
            self._check(report)
        except (LoraxsError, RayTaskError) as error:
            return self._broken_off(step, error)
        try:
            ray.get(self._snapshot_store.write_snapshot.remote(self._spec.trial_id, snapshot))
        except LoraxsError as error:  # of the study's folder, not of the trial
            return self._fatal(step, error)
        self._snapshot, self._reports = snapshot, (*self._reports, report)
        return self._result(replace(report, host=self._place()))

    # ---- inside ------------------------------------------------------------------------------------------------------
    def _begin(self, config: dict[str, Any]) -> None:
        self._spec = from_json(TrialSpec, config[SPEC])
        self._max_steps = self._spec.hyperparameters.max_steps
        self._task = from_json(Task, config["task"])
        self._metric, self._every = config["metric"], config["report_every"]
        self._retries = config["max_failures"]
        self._snapshot_store = find_snapshot_store(config["snapshot_store"])
        self._directory = find_directory(config["directory"])
        self._host = HostClient.of(self._find_host)
        self._snapshot = ray.get(self._snapshot_store.read_snapshot.remote(self._spec.trial_id))
        self._reports = read_reports(self._snapshot) if self._snapshot else ()

    def _find_host(self, lost: HostHandle | None) -> HostHandle:
        context = ray.get_runtime_context()
        gpus = ray.get_gpu_ids()
        gpu = str(gpus[0]) if gpus else None
        return ray.get(self._directory.host_for.remote(context.get_node_id(), gpu, lost))

    def _place(self) -> str:
        """Return the node and the device whose host trains this trial."""
        gpus = ray.get_gpu_ids()
        return " ".join([ray.util.get_node_ip_address(), *(f"GPU {gpus[0]}" for _ in gpus[:1])])

    def _advance(self, until: int) -> tuple[TrialReport, bytes]:
        while True:
            try:
                return ray.get(self._host.advance(self._spec, until, self._snapshot, self._task))
            except HOST_LOST:
                if self._retries <= 0:
                    raise
                self._retries -= 1
                self._host = self._host.replacement()

    def _check(self, report: TrialReport) -> None:
        if self._metric not in report.metrics:
            known = ", ".join(sorted(report.metrics)) or "none"
            raise LoraxsError(f"`{self._metric}` must be among a report's metrics, but got {known}.")

    def _result(self, report: TrialReport) -> dict[str, Any]:
        return {
            STEP: report.step,
            OBJECTIVE: report.metrics[self._metric],
            REPORT: to_json(report),
            "done": report.step >= self._max_steps,
        }

    def _broken_off(self, step: int, error: LoraxsError | RayTaskError) -> dict[str, Any]:
        if isinstance(error, TrialCancelledError):
            return {STEP: step, CANCELLED: True, "done": True}
        if isinstance(error, (HomeError, ClusterError)):  # both name their node
            return self._fatal(step, error)
        if isinstance(error, LoraxsError):
            return self._failure(step, f"{error.message} Hint: {error.hint}." if error.hint else error.message)
        return self._failure(step, f"{type(error.cause).__name__}: {error.cause}")

    def _fatal(self, step: int, error: LoraxsError) -> dict[str, Any]:
        """Report an error that is not the trial's: the trial continues from its last report once it is fixed."""
        return {STEP: step, FATAL: [error.message, error.hint], "done": True}

    def _failure(self, step: int, reason: str) -> dict[str, Any]:
        return {STEP: step, FAILED: reason, "done": True}
