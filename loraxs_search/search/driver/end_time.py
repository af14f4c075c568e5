"""How long the end of a search takes, from how fast its trials train and are scored: refits, last scores, baselines."""

from __future__ import annotations

from dataclasses import dataclass

from loraxs_search.records.host import HostInfo
from loraxs_search.records.literals import Split
from loraxs_search.records.promotion import BASE_MODEL_ROWS
from loraxs_search.records.task import Task
from loraxs_search.tasks.kinds import kind_of


@dataclass(frozen=True)
class EndTime:
    """Seconds that the parts of an end take on all devices together.

    Args:
        refit_s: To train one trial again.
        candidate_s: To score one candidate on all validation rows.
        fixed_s: For what is never left out: the finalist answers the test rows, and the untouched base its questions.
    """

    refit_s: float
    candidate_s: float
    fixed_s: float

    @classmethod
    def of(
        cls, task: Task, info: HostInfo, *, trial_s: float, scoring_s: float, answer_s: float, num_devices: int = 1
    ) -> EndTime:
        """Return what the end takes.

        Args:
            trial_s: For a whole trial on its device, reports included.
            scoring_s: Of a report, on the rows of `info.num_rows`.
            answer_s: For the answer to one row, where answers are written or chosen at the end; 0 elsewhere.
        """

        def num_rows(split: Split) -> int:
            return info.data.num_rows.get(split, info.num_rows[split])

        has_scores = task.report_metric is None and num_rows("validation") <= info.num_rows["validation"]
        row_s = answer_s or scoring_s / max(1, info.num_rows["validation"])
        shots = len(kind_of(task).shots)
        asked = min(num_rows("validation"), BASE_MODEL_ROWS) * shots + num_rows("test") * bool(shots)
        fixed_s = row_s * num_rows("test") + answer_s * asked
        candidate_s = 0.0 if has_scores else row_s * num_rows("validation")  # of its last report
        return cls(trial_s / num_devices, candidate_s / num_devices, fixed_s / num_devices)

    def total_s(self, candidates: int, refits: int) -> float:
        """Return what so many trials that are candidates, and refits, take with all that follows."""
        return self.fixed_s + (candidates + refits) * self.candidate_s + refits * self.refit_s

    def fitting(self, left_s: float, candidates: int, refits: int) -> tuple[int, int]:
        """Return how many of the candidates, one at least, and of their refits fit into a time."""
        left_s = max(0.0, left_s - self.fixed_s)
        fitting = min(candidates, max(1, int(left_s / (self.candidate_s or 1e-9))))
        left_s = max(0.0, left_s - fitting * self.candidate_s)
        return fitting, min(refits, int(left_s / (self.refit_s + self.candidate_s or 1e-9)))
