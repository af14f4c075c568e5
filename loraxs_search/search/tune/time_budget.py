"""How long the end of a search takes, by how fast its trials are, and how its time budget is divided."""

from __future__ import annotations

from typing import TYPE_CHECKING

from loraxs_search.log.clock import steady_time
from loraxs_search.records.search import BASE_MODEL_ROWS
from loraxs_search.records.trial import TrialState
from loraxs_search.steering import SteeredStudy
from loraxs_search.tasks.kinds import kind_of

if TYPE_CHECKING:
    from loraxs_search.search.hosts.pool import StudyActors

_MOST_FOR_END, _MARGIN = 0.5, 1.1  # of the time budget; of what the end is measured to take


class TimeBudget:
    """Divides the time that all drivers of a study share between its trials and its end; commands may extend it.

    Args:
        since: When this driver began, less what others before it have worked, seconds since 1970.
    Attributes:
        answer_s: How long an answer at the end takes, where scores are not all there is.
        num_answered: How many rows the untouched base has answered by now.
        end_s: What of the budget is kept for refits, last scores and baselines.
    """

    def __init__(self, study: SteeredStudy, actors: StudyActors, since: float) -> None:
        self._study, self._actors, self._since = study, actors, since
        self.answer_s, self.num_answered, self.end_s = 0.0, 0, 0.0
        # Seconds of all devices together: to train one trial again, to score one candidate on all validation rows, and
        # for what is never left out: the finalist answers the test rows, and the untouched base its questions.
        self._parts_s: tuple[float, float, float] | None = None
        # How long trials take from one report to the next: they stop at a report, which comes half as late.
        self._report_s = 0.0

    @property
    def left_s(self) -> float | None:
        """What is left of the budget; None if there is none."""
        budget_s = self._study.plan.time_budget
        return None if budget_s is None else max(0.0, self._since + budget_s - steady_time())

    @property
    def is_over(self) -> bool:
        """Whether trials are to stop at their next report."""
        return (left_s := self.left_s) is not None and left_s <= self.end_s + self._report_s / 2

    @property
    def is_late(self) -> bool:
        """Whether trials that have not reported by now are to end at their last reports."""
        return (left_s := self.left_s) is not None and left_s <= max(0.0, self.end_s - self._report_s / 2)

    def keep_time_for_end(self) -> None:
        """Keep a part of the time budget for the end, by what trials have taken so far."""
        budget_s = self._study.plan.time_budget
        if budget_s is None:  # a report then looks at no other trial
            return
        records = self._study.journal.records.values()
        last = [record.reports[-1] for record in records if record.reports]
        if not last:
            return
        info, actors = self._study.folder.info, self._actors
        plan, rule, task, scored = info.search, info.promotion, info.task, actors.info.num_rows
        step_s = sum(report.device_s for report in last) / sum(report.step for report in last)
        scoring_s = sum(report.scoring_s for report in last) / len(last)
        devices = max(1, actors.slot_counter.slots.num_slots // actors.pack_size.size)
        running = sum(record.state is TrialState.RUNNING for record in records)
        self._report_s = plan.report_every * step_s * running / devices

        num_rows = {**scored, **actors.info.data.num_rows}
        kind, row_s = kind_of(task), self.answer_s or scoring_s / max(1, scored["validation"])
        shots, again = len(kind.shots), num_rows["validation"] * kind.gives_confidences  # the finalist's
        asked = min(num_rows["validation"], BASE_MODEL_ROWS) * shots + num_rows["test"] * bool(shots)
        asked = max(0, asked - self.num_answered)
        fixed_s = (row_s * (num_rows["test"] + again) + self.answer_s * asked) / devices
        has_scores = task.report_metric is None and num_rows["validation"] <= scored["validation"]
        candidate_s = 0.0 if has_scores else row_s * num_rows["validation"] / devices  # of its last report
        refit_s = plan.max_steps * step_s / devices
        self._parts_s = refit_s, candidate_s, fixed_s
        candidates, refits = min(rule.candidates, plan.trials), rule.num_refits(plan.trials)
        end_s = fixed_s + (candidates + refits) * candidate_s + refits * refit_s
        self.end_s = min(_MOST_FOR_END * budget_s, _MARGIN * end_s)

    def fitting(self, candidates: int, refits: int) -> tuple[int, int] | None:
        """Return how many of the candidates, one at least, and of their refits fit into what is left.

        None while it is not known what they take, or nothing limits it.
        """
        if self._parts_s is None or (left_s := self.left_s) is None:
            return None
        refit_s, candidate_s, fixed_s = self._parts_s
        left_s = max(0.0, left_s - fixed_s)
        fitting = min(candidates, max(1, int(left_s / (candidate_s or 1e-9))))
        left_s = max(0.0, left_s - fitting * candidate_s)
        return fitting, min(refits, int(left_s / (refit_s + candidate_s or 1e-9)))
