"""The one append-only log of a study, `journal.jsonl`: typed events, one appender, and readers with an offset each.

Everything that happens in a study is written here before anything acts on it. What is known of a search follows from
its events: the trials (`studies.Journal`), the sampler's study, MLflow's runs, and what watchers are shown.
"""

from __future__ import annotations

from loraxs_search.log.append_log import AppendLog, lines_from
from loraxs_search.log.event_log import DAMAGED_HINT, EventLog, to_line
from loraxs_search.log.events import (
    Answered,
    CandidateScored,
    Commanded,
    DataRead,
    DriverStarted,
    Event,
    LoggedEvent,
    Phase,
    Reopened,
    SearchEnded,
    SearchStarted,
    ShownEvent,
    Steered,
    TrainingEnded,
    TrialEnded,
    TrialReported,
    TrialsAdvanced,
    TrialStarted,
    Warned,
    YardstickScored,
)
from loraxs_search.log.printed import printed

__all__ = [
    "DAMAGED_HINT",
    "Answered",
    "AppendLog",
    "CandidateScored",
    "Commanded",
    "DataRead",
    "DriverStarted",
    "Event",
    "EventLog",
    "LoggedEvent",
    "Phase",
    "Reopened",
    "SearchEnded",
    "SearchStarted",
    "ShownEvent",
    "Steered",
    "TrainingEnded",
    "TrialEnded",
    "TrialReported",
    "TrialStarted",
    "TrialsAdvanced",
    "Warned",
    "YardstickScored",
    "lines_from",
    "printed",
    "to_line",
]
