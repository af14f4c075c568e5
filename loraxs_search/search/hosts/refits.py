"""Training candidates' recipes again from fresh seeds: hosts that pack advance them in the same rounds."""

from __future__ import annotations

from collections.abc import Callable, Mapping
from dataclasses import dataclass, replace

from ray import ObjectRef

from loraxs_search.records import Refit, Task, TrialReport, TrialSpec
from loraxs_search.search.hosts.client import HostClient
from loraxs_search.search.hosts.pieces import reason_of
from loraxs_search.studies import StudyFolder, read_reports

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
