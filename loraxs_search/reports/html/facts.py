"""All that a report is about, read from a study once."""

from __future__ import annotations

import time
from collections.abc import Sequence
from dataclasses import dataclass
from functools import cached_property
from typing import Literal

from loraxs_search.records import Candidate, Task, TrialRecord, TrialState, Yardstick
from loraxs_search.reports.front import front
from loraxs_search.reports.leaderboard import LeaderboardRow, leaderboard
from loraxs_search.reports.progress import Progress, progress, study_state
from loraxs_search.reports.yardsticks import shown_yardsticks
from loraxs_search.steering import whole_plan
from loraxs_search.studies import StudyFolder, StudyInfo

_WORDS = {
    TrialState.COMPLETE: "complete",
    TrialState.RUNNING: "running",
    TrialState.PRUNED: "stopped early",
    TrialState.FAIL: "failed",
}


@dataclass(frozen=True)
class StudyFacts:
    """A study as it stood at one moment.

    Args:
        state: `running`, `finished` or `interrupted`.
        read_at: That moment, seconds since 1970.
        records: Every trial, in the order they were started.
        candidates: Best first; none before the search has ended.
        yardsticks: Without test metrics before the search has ended.
        spent_s: Seconds that drivers have worked on it.
        last_at: When the last event was recorded; 0 where there is none.
        notice: Why it ended before its budget; empty where it did not.
    """

    folder: StudyFolder
    state: str
    read_at: float
    records: tuple[TrialRecord, ...]
    candidates: tuple[Candidate, ...]
    yardsticks: tuple[Yardstick, ...]
    spent_s: float
    last_at: float
    notice: str

    @property
    def info(self) -> StudyInfo:
        return self.folder.info

    @property
    def task(self) -> Task:
        return self.folder.info.task

    @property
    def metric(self) -> str:
        """What trials are compared by."""
        return self.task.search_metric

    @property
    def sign(self) -> float:
        """What turns a score so that more is better."""
        return 1.0 if self.task.search_direction == "maximize" else -1.0

    @cached_property
    def rows(self) -> list[LeaderboardRow]:
        """The leaderboard."""
        search = self.info.search
        return leaderboard(self.records, self.task, self.candidates, search.keep, search.objectives)

    @cached_property
    def counts(self) -> Progress:
        return progress(self.records, whole_plan(self.folder, self.folder.journal()))

    @cached_property
    def complete(self) -> list[TrialRecord]:
        """The trials that trained all their steps, in the order they were started."""
        return [record for record in self.records if record.state is TrialState.COMPLETE]

    @cached_property
    def stopped(self) -> list[TrialRecord]:
        return [record for record in self.records if record.state is TrialState.PRUNED]

    def word(self, state: TrialState | Literal["INTERRUPTED", "PAUSED"]) -> str:
        """Return what a trial's state is called for people."""
        if state == "INTERRUPTED" or (state is TrialState.RUNNING and self.state != "running"):
            return "not ended"
        return "paused" if state == "PAUSED" else _WORDS[state]

    @cached_property
    def best(self) -> LeaderboardRow | None:
        """The best trial that trained all its steps, or else the best of the others; None before the first score."""
        return next((row for row in self.rows if row.score is not None), None)

    @cached_property
    def front_ids(self) -> list[str]:
        """The trials that no other one beats in score and bytes together, fewest bytes first."""
        return [trial.trial_id for trial in front(self.records, self.folder.keep_rule)]

    @property
    def finalist(self) -> Candidate | None:
        """The candidate that was scored on the test rows."""
        return next((candidate for candidate in self.candidates if candidate.test_metrics), None)

    def score(self, record: TrialRecord) -> float:
        """Return the score of a trial that trained all its steps."""
        return self.folder.keep_rule.kept(record.reports).metrics[self.metric]

    @cached_property
    def varied(self) -> list[str]:
        """The params that are not the same in all trials, in the order of the space."""
        names = dict.fromkeys(name for record in self.records for name in record.params)
        return [name for name in names if len({record.params.get(name) for record in self.records}) > 1]


def read_facts(folder: StudyFolder) -> StudyFacts:
    """Read a study as it stands now, also while it runs.

    Raises:
        StudyError: a file of it is damaged.
    """
    candidates = folder.candidates()  # first: what they are of is in the journal
    journal = folder.journal()
    finished = candidates is not None
    return StudyFacts(
        folder=folder,
        # The driver at work on a study with candidates has only records to bring to MLflow.
        state="finished" if finished else study_state(folder),
        read_at=time.time(),
        records=tuple(journal.records.values()),
        candidates=tuple(candidates or ()),
        yardsticks=tuple(shown_yardsticks(folder.yardsticks(), finished=finished)),
        spent_s=journal.spent_s,
        last_at=journal.last_at,
        notice=journal.notice or "",
    )


def device_seconds(records: Sequence[TrialRecord]) -> float:
    """Return the seconds of computation that trials took, to their last reports."""
    return sum(record.reports[-1].device_s for record in records if record.reports)
