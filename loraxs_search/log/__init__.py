"""The one append-only log of a study, `journal.jsonl`: typed events, one appender, and readers with an offset each.

Everything that happens in a study is written here before anything acts on it. What is known of a search follows from
its events: the trials (`studies.Journal`), the sampler's study, MLflow's runs, and what watchers are shown.
"""

from __future__ import annotations

from loraxs_search.log.append_log import AppendLog, lines_from
from loraxs_search.log.event_log import DAMAGED_HINT, EventLog, from_line, to_line
from loraxs_search.log.events import (
    AdapterWritten,
    Answered,
    BaselineScored,
    BaselinesMeasured,
    CandidateScored,
    Commanded,
    DataRead,
    DriverStarted,
    Event,
    FrontFound,
    HostsMeasured,
    LoggedEvent,
    Phase,
    Reopened,
    ReportWritten,
    SearchEnded,
    SearchFinished,
    SearchStarted,
    ShownEvent,
    Steered,
    TrainingEnded,
    TrialEnded,
    TrialReported,
    TrialsAdvanced,
    TrialStarted,
    Warned,
)
from loraxs_search.log.printed import printed

__all__ = [
    "DAMAGED_HINT",
    "AdapterWritten",
    "Answered",
    "AppendLog",
    "BaselineScored",
    "BaselinesMeasured",
    "CandidateScored",
    "Commanded",
    "DataRead",
    "DriverStarted",
    "Event",
    "EventLog",
    "FrontFound",
    "HostsMeasured",
    "LoggedEvent",
    "Phase",
    "Reopened",
    "ReportWritten",
    "SearchEnded",
    "SearchFinished",
    "SearchStarted",
    "ShownEvent",
    "Steered",
    "TrainingEnded",
    "TrialEnded",
    "TrialReported",
    "TrialStarted",
    "TrialsAdvanced",
    "Warned",
    "from_line",
    "lines_from",
    "printed",
    "to_line",
]
