"""Frozen dataclasses that cross rooms. Plain values only: no torch, no mlflow, no behaviour beyond what they are."""

from __future__ import annotations

from loraxs_search.records._adapter import Manifest, Prediction, ReferenceLogits, Sample
from loraxs_search.records._base import BaseModel, BaseModelRef, LinearModule
from loraxs_search.records._command import AnswerState, Command, CommandAnswer, CommandRecord, CommandTag
from loraxs_search.records._data import AnswerFact, ConstantAnswer, DataReport, SplitOverlap, StandardError, TokenCounts
from loraxs_search.records._estimate import Estimate
from loraxs_search.records._event import (
    EVENT_VERSION,
    CandidateScoredEvent,
    DataReadEvent,
    PhaseEvent,
    PromotedEvent,
    SearchEndedEvent,
    SearchEvent,
    SearchStartedEvent,
    SteeredEvent,
    TrialEndedEvent,
    TrialReportedEvent,
    TrialStartedEvent,
    WarningEvent,
    YardstickScoredEvent,
)
from loraxs_search.records._front import FrontTrial
from loraxs_search.records._host import Answers, Confirmation, HostInfo, LargestTrial
from loraxs_search.records._identity import Identity
from loraxs_search.records._json import RecordT, from_json, to_json
from loraxs_search.records._keep import KeepRule
from loraxs_search.records._lineage import Lineage, Origin
from loraxs_search.records._promotion import (
    Action,
    Candidate,
    Decision,
    Latency,
    Look,
    Notification,
    PromotionRule,
    Refit,
)
from loraxs_search.records._search import SearchPlan
from loraxs_search.records._start import AdapterRef, StartFrom
from loraxs_search.records._task import DataSource, Serving, SplitSource, Task, TaskModel
from loraxs_search.records._trial import AdapterSize, Hyperparameters, TrialRecord, TrialReport, TrialSpec, TrialState
from loraxs_search.records._warm_start import EarlierStudy, EarlierTrial, WarmStart, WarmTrial, WarmTrials
from loraxs_search.records._words import (
    MAX_AUTO_PACK_SIZE,
    MAX_STATE_BYTES,
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
    "CommandTag",
    "Confirmation",
    "ConstantAnswer",
    "DataReadEvent",
    "DataReport",
    "DataSource",
    "Decision",
    "Direction",
    "EarlierStudy",
    "EarlierTrial",
    "Estimate",
    "FrontTrial",
    "Head",
    "HostInfo",
    "Hyperparameters",
    "Identity",
    "KeepRule",
    "LargestTrial",
    "Latency",
    "Lineage",
    "LinearModule",
    "Look",
    "LrSchedule",
    "Manifest",
    "Notification",
    "Origin",
    "PhaseEvent",
    "Precision",
    "Prediction",
    "PromotedEvent",
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
    "WarmStart",
    "WarmTrial",
    "WarmTrials",
    "WarningEvent",
    "Yardstick",
    "YardstickName",
    "YardstickScoredEvent",
    "alone_yardstick",
    "from_json",
    "is_alone",
    "shots_name",
    "to_json",
]
