"""Frozen dataclasses that cross rooms. Plain values only: no torch, no mlflow, no behaviour beyond what they are."""

from __future__ import annotations

from loraxs_search.records._adapter import Manifest, Prediction, ReferenceLogits, Sample
from loraxs_search.records._base import BaseModel, BaseModelRef, LinearModule
from loraxs_search.records._command import (
    NOT_STEERED,
    AnswerState,
    Command,
    CommandAnswer,
    CommandRecord,
    SteeringStatus,
)
from loraxs_search.records._data import AnswerFact, ConstantAnswer, DataReport, SplitOverlap, StandardError, TokenCounts
from loraxs_search.records._event import (
    EVENT_VERSION,
    CandidateScoredEvent,
    DataReadEvent,
    PhaseEvent,
    SearchEndedEvent,
    SearchEvent,
    SearchStartedEvent,
    SteeredEvent,
    TrialEndedEvent,
    TrialReportedEvent,
    TrialsAdvancedEvent,
    TrialStartedEvent,
    WarningEvent,
    YardstickScoredEvent,
)
from loraxs_search.records._front import FrontTrial
from loraxs_search.records._host import Answers, Confirmation, HostInfo, LargestTrial
from loraxs_search.records._identity import Identity
from loraxs_search.records._ids import check_trial_id
from loraxs_search.records._json import RecordT, from_json, to_json
from loraxs_search.records._keep import KeepRule
from loraxs_search.records._lineage import Lineage, Origin
from loraxs_search.records._promotion import (
    Action,
    Candidate,
    Decision,
    Look,
    PromotionRule,
    Refit,
)
from loraxs_search.records._search import SearchPlan
from loraxs_search.records._start import AdapterRef, StartFrom
from loraxs_search.records._task import DataSource, OutputScale, Serving, SplitSource, Task, TaskModel
from loraxs_search.records._trial import AdapterSize, Hyperparameters, TrialRecord, TrialReport, TrialSpec, TrialState
from loraxs_search.records._words import (
    MAX_AUTO_PACK_SIZE,
    MAX_STATE_BYTES,
    SVD_BASES,
    Basis,
    Direction,
    Head,
    LrSchedule,
    Precision,
    RankPattern,
    Scalar,
    SearchDevice,
    Sigma,
    Split,
)
from loraxs_search.records._yardstick import Yardstick, YardstickName, alone_yardstick, is_alone, shots_name

__all__ = [
    "EVENT_VERSION",
    "MAX_AUTO_PACK_SIZE",
    "MAX_STATE_BYTES",
    "NOT_STEERED",
    "SVD_BASES",
    "Action",
    "AdapterRef",
    "AdapterSize",
    "AnswerFact",
    "AnswerState",
    "Answers",
    "BaseModel",
    "BaseModelRef",
    "Basis",
    "Candidate",
    "CandidateScoredEvent",
    "Command",
    "CommandAnswer",
    "CommandRecord",
    "Confirmation",
    "ConstantAnswer",
    "DataReadEvent",
    "DataReport",
    "DataSource",
    "Decision",
    "Direction",
    "FrontTrial",
    "Head",
    "HostInfo",
    "Hyperparameters",
    "Identity",
    "KeepRule",
    "LargestTrial",
    "Lineage",
    "LinearModule",
    "Look",
    "LrSchedule",
    "Manifest",
    "Origin",
    "OutputScale",
    "PhaseEvent",
    "Precision",
    "Prediction",
    "PromotionRule",
    "RankPattern",
    "RecordT",
    "ReferenceLogits",
    "Refit",
    "Sample",
    "Scalar",
    "SearchDevice",
    "SearchEndedEvent",
    "SearchEvent",
    "SearchPlan",
    "SearchStartedEvent",
    "Serving",
    "Sigma",
    "Split",
    "SplitOverlap",
    "SplitSource",
    "StandardError",
    "StartFrom",
    "SteeredEvent",
    "SteeringStatus",
    "Task",
    "TaskModel",
    "TokenCounts",
    "TrialEndedEvent",
    "TrialRecord",
    "TrialReport",
    "TrialReportedEvent",
    "TrialSpec",
    "TrialStartedEvent",
    "TrialState",
    "TrialsAdvancedEvent",
    "WarningEvent",
    "Yardstick",
    "YardstickName",
    "YardstickScoredEvent",
    "alone_yardstick",
    "check_trial_id",
    "from_json",
    "is_alone",
    "shots_name",
    "to_json",
]
