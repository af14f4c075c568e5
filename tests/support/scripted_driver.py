"""A driver that trains nothing: it does to a study's journal, and to its view, what a search does."""

from __future__ import annotations

from dataclasses import replace

from loraxs_search.records import AdapterSize, SearchEvent, TrialReport, TrialState, Yardstick
from loraxs_search.search import SearchStarted
from loraxs_search.search.ledger.announcer import Announcer
from loraxs_search.search.ledger.event_view import EventView
from loraxs_search.studies import StudyFolder
from support.searched_studies import confirm


def facts(folder: StudyFolder) -> SearchStarted:
    plan = folder.info.search
    return SearchStarted(folder.name, folder.info.task, plan.trials, plan.max_steps, "cpu", "float32", 2, at=100.0)


class ScriptedDriver:
    """Does to a study's journal and to its view what a search does, without training."""

    def __init__(self, folder: StudyFolder) -> None:
        self.seen: list[SearchEvent] = []
        self.folder, self.view = folder, EventView(self.seen.append)
        self.journal = folder.journal()
        self.say = Announcer(folder.name, self.view)

    def begin(self) -> None:
        self.journal.driver_started(1.0)
        self.say.write_to(self.journal)
        self.say.started(replace(facts(self.folder), trials=tuple(self.journal.records.values())))

    def train(self, trial_id: str, steps: int) -> None:
        self.view.trial_changed(self.journal.trial_started(trial_id, {"rank": 4}))
        for step in range(20, steps + 1, 20):
            report = TrialReport(trial_id, step, {"accuracy": 0.5}, 1.0, 1.0, 10, AdapterSize(16, 4, 80), host="a")
            self.journal.trial_reported(report)
            self.view.trial_changed(self.journal.records[trial_id])

    def end(self, trial_id: str, state: TrialState) -> None:
        self.journal.trial_ended(trial_id, state, "so")
        self.view.trial_changed(self.journal.records[trial_id])

    def finish(self) -> None:
        self.journal.search_ended("")
        self.say.phase("training the best 1 again from 1 fresh seeds")
        self.say.counted(20, 40, "steps")
        self.say.warned("many answers were cut")
        self.say.yardsticks_scored([Yardstick("constant", {"accuracy": 0.4}), Yardstick("tfidf", failed="too long")])
        self.say.candidate_scored("00000", "validation", {"accuracy": 0.6})
        self.say.write_to(None)
        self.say.phase("writing the last records to MLflow")
        self.journal.search_ended("")
        confirm(self.folder, "00000", [0.6])
