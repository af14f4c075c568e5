"""The Ray Tune adapter of our schedulers."""

from __future__ import annotations

import json
from collections.abc import Callable
from typing import TYPE_CHECKING, Any

from ray.tune.schedulers import FIFOScheduler

from loraxs_search.errors import LoraxsError
from loraxs_search.records import TrialReport, from_json
from loraxs_search.schedulers import Scheduler
from loraxs_search.search.tune.trainable import REPORT, SPEC

if TYPE_CHECKING:
    from ray.tune.execution.tune_controller import TuneController
    from ray.tune.experiment import Trial


class TuneScheduler(FIFOScheduler):
    """Asks a scheduler about each report; trials are known by their ids in the study, not by Tune's.

    Args:
        metric: What running trials are compared by.
        break_off: Called when the scheduler raises: Tune would take that for a failure of the trial.
        leaves: Says of a trial that has reported whether somebody wants it to train no further.
    """

    def __init__(
        self,
        scheduler: Scheduler,
        metric: str,
        break_off: Callable[[LoraxsError], None],
        leaves: Callable[[str], bool] = lambda _: False,
    ) -> None:
        super().__init__()  # type: ignore[no-untyped-call]
        self._scheduler, self._study_metric, self._break_off = scheduler, metric, break_off
        self._leaves = leaves

    def on_trial_result(self, tune_controller: TuneController, trial: Trial, result: dict[str, Any]) -> str:
        """Stop the trial when its scheduler says so; a result without a report is a failure, which Tune ends."""
        if REPORT not in result:
            return self.CONTINUE
        report = from_json(TrialReport, result[REPORT])
        try:
            reason = self._scheduler.report(report, self._study_metric)
        except Exception as error:  # noqa: BLE001  # a scheduler from elsewhere may raise anything
            trial_id = json.loads(trial.config[SPEC])["trial_id"]
            self._break_off(
                LoraxsError(
                    f"The scheduler {self._scheduler.name!r} failed on a report of trial {trial_id}:"
                    f" {type(error).__name__}: {error}.",
                    hint="fix the scheduler, then go on with `loraxs-search resume`",
                )
            )
            return self.CONTINUE
        return self.CONTINUE if reason is None and not self._leaves(report.trial_id) else self.STOP

    def on_trial_complete(self, tune_controller: TuneController, trial: Trial, result: dict[str, Any]) -> None:
        """Record a last report, about which Tune does not ask; a repeated one changes nothing."""
        self.on_trial_result(tune_controller, trial, result)

    def __getstate__(self) -> dict[str, Any]:
        return {}  # Tune pickles it into snapshots that we never read: the journal is the truth
