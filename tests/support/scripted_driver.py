"""A driver that trains nothing: a study's log, and whoever watches, get what a search tells them."""

from __future__ import annotations

from loraxs_search.log.events import (
    BaselineScored,
    CandidateScored,
    DriverStarted,
    SearchStarted,
    ShownEvent,
    TrainingEnded,
    TrialEnded,
    TrialReported,
    TrialStarted,
    Warned,
)
from loraxs_search.log.study_log import StudyLog
from loraxs_search.records.trial import AdapterSize, TrialReport, TrialState
from loraxs_search.studies.folder import StudyFolder
from support.searched_studies import confirm
from support.toys import HYPERPARAMETERS


def facts(folder: StudyFolder) -> SearchStarted:
    plan, task = folder.info.search, folder.info.task
    return SearchStarted(
        study=folder.name,
        at=100.0,
        task=task.name,
        metric=task.search_metric,
        direction=task.search_direction,
        num_trials=plan.trials,
        max_steps=plan.max_steps,
        report_every=1,
        num_refits=0,
        device="cpu",
        dtype="float32",
        num_slots=2,
    )


class ScriptedDriver:
    """Has happen to a study, and to who watches it, what a search does, without training."""

    def __init__(self, folder: StudyFolder) -> None:
        self.seen: list[ShownEvent] = []
        self.folder, self.journal = folder, StudyLog(folder.journal_path, folder.name, self)

    def happened(self, event: ShownEvent) -> None:
        self.seen.append(event)

    def known(self, event: ShownEvent) -> None:
        """Pass over an event of an earlier driver."""

    def begin(self) -> None:
        self.journal.append(DriverStarted(since=1.0))
        self.journal.say(facts(self.folder))

    def train(self, trial_id: str, steps: int) -> None:
        self.journal.append(TrialStarted(trial_id=trial_id, params={"rank": 4}, hyperparameters=HYPERPARAMETERS))
        for step in range(20, steps + 1, 20):
            report = TrialReport(trial_id, step, {"accuracy": 0.5}, 1.0, 1.0, 10, AdapterSize(16, 4, 80), host="a")
            self.journal.append(TrialReported(report=report))

    def end(self, trial_id: str, state: TrialState) -> None:
        self.journal.append(TrialEnded(trial_id=trial_id, state=state, reason="so"))

    def finish(self) -> None:
        self.journal.append(TrainingEnded(notice=""))
        self.journal.phase("training the best 1 again from 1 fresh seeds")
        self.journal.counted(20, 40, "steps")
        self.journal.say(Warned(text="many answers were cut"))
        self.journal.say(BaselineScored(name="constant", metrics={"accuracy": 0.4}))
        self.journal.say(CandidateScored(trial="00000", split="validation", metrics={"accuracy": 0.6}))
        self.journal.close()
        self.journal.phase("writing the last records to MLflow")
        self.journal.append(TrainingEnded(notice=""))
        confirm(self.folder, "00000", [0.6])
