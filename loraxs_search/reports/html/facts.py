"""All that a report is about, read from a study once, and what the search spent and saved."""

from __future__ import annotations

import time
from collections.abc import Iterable
from dataclasses import dataclass
from functools import cached_property

from loraxs_search.errors import IntegrityError
from loraxs_search.log.study_log import StudyLog
from loraxs_search.records.adapter import ClassReport
from loraxs_search.records.promotion import Baseline, Candidate
from loraxs_search.records.task import Task
from loraxs_search.records.trial import TrialRecord, TrialState
from loraxs_search.reports.leaderboard import LeaderboardRow, front, leaderboard, shown_baselines
from loraxs_search.reports.study_status import Progress, progress, study_state
from loraxs_search.steering import whole_plan
from loraxs_search.studies.folder import StudyFolder
from loraxs_search.studies.info import StudyInfo

_WORDS = {
    TrialState.COMPLETE: "complete",
    TrialState.RUNNING: "running",
    TrialState.PRUNED: "stopped early",
    TrialState.FAIL: "failed",
}


@dataclass(frozen=True)
class ReportFacts:
    """A study as it stood at one moment.

    Args:
        state: `running`, `finished` or `interrupted`.
        read_at: That moment, seconds since 1970.
        journal: As it was then.
        candidates: Best first; none before the search has ended.
        baselines: Without test metrics before the search has ended.
    """

    folder: StudyFolder
    state: str
    read_at: float
    journal: StudyLog
    candidates: tuple[Candidate, ...]
    baselines: tuple[Baseline, ...]

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
    def records(self) -> tuple[TrialRecord, ...]:
        """Every trial, in the order they were started."""
        return tuple(self.journal.records.values())

    @cached_property
    def rows(self) -> list[LeaderboardRow]:
        """The leaderboard."""
        return leaderboard(self.records, self.task, self.candidates, self.info.search.checkpoint)

    @cached_property
    def counts(self) -> Progress:
        return progress(self.records, whole_plan(self.folder, self.journal))

    @cached_property
    def complete(self) -> list[TrialRecord]:
        """The trials that trained all their steps, in the order they were started."""
        return [record for record in self.records if record.state is TrialState.COMPLETE]

    @cached_property
    def stopped(self) -> list[TrialRecord]:
        return [record for record in self.records if record.state is TrialState.PRUNED]

    def word(self, state: TrialState) -> str:
        """Return how a trial's state is shown."""
        if state is TrialState.RUNNING and self.state != "running":
            return "not ended"
        return _WORDS[state]

    @cached_property
    def best(self) -> LeaderboardRow | None:
        """The best trial that trained all its steps, or else the best of the others; None before the first score."""
        return next((row for row in self.rows if row.score is not None), None)

    @cached_property
    def front_ids(self) -> list[str]:
        """The trials that no other one beats in score and bytes together, fewest bytes first."""
        return [trial.trial_id for trial in front(self.records, self.folder.checkpoint_selection)]

    @property
    def finalist(self) -> Candidate | None:
        """The candidate that was scored on the test rows."""
        return next((candidate for candidate in self.candidates if candidate.test_metrics), None)

    @cached_property
    def by_class(self) -> ClassReport | None:
        """The finalist's scores by class; None if its task has no labels, or its files are gone."""
        from loraxs_search.registry import manifest

        if self.finalist is None:
            return None
        try:
            return manifest.read(self.folder.adapter_path(self.finalist.trial_id)).by_class
        except IntegrityError:
            return None

    @property
    def saved_s(self) -> float:
        """Device time that stopped trials had needed for the steps that they were spared, each at its own pace."""
        lasts = [record.reports[-1] for record in self.stopped if record.reports]
        most = self.info.search.max_steps
        return sum(max(0, most - last.step) * last.device_s / max(1, last.step) for last in lasts)

    def score(self, record: TrialRecord) -> float:
        """Return the score of a trial that trained all its steps."""
        return self.folder.checkpoint_selection.select(record.reports).metrics[self.metric]

    @cached_property
    def varied(self) -> list[str]:
        """The params that are not the same in all trials, in the order of the space."""
        names = dict.fromkeys(name for record in self.records for name in record.params)
        return [name for name in names if len({record.params.get(name) for record in self.records}) > 1]


def read_facts(folder: StudyFolder) -> ReportFacts:
    """Read a study as it stands now, also while it runs.

    Raises:
        StudyError: a file of it is damaged.
    """
    candidates = folder.candidates()  # first: what they are of is in the journal
    journal = folder.journal()
    finished = candidates is not None
    return ReportFacts(
        folder=folder,
        # The driver at work on a study with candidates has only records to bring to MLflow.
        state="finished" if finished else study_state(folder),
        read_at=time.time(),
        journal=journal,
        candidates=tuple(candidates or ()),
        baselines=tuple(shown_baselines(folder.baselines(), finished=finished)),
    )


def device_seconds(records: Iterable[TrialRecord]) -> float:
    """Return the seconds of computation that trials took, each to its last report, without final scores and refits."""
    return sum(record.reports[-1].device_s for record in records if record.reports)


def duration(seconds: float) -> str:
    """Return a time shown to users: hours from two hours on, minutes from two minutes on, else seconds."""
    for least, unit_s, name in ((7200.0, 3600.0, "h"), (120.0, 60.0, "min")):
        if seconds >= least:
            return f"{seconds / unit_s:,.1f} {name}"
    return f"{seconds:.1f} s"
