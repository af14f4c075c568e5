"""The sections with fixed keys as pydantic models, and their faults in our words."""

from __future__ import annotations

import re
from functools import cache
from typing import Annotated, Any, Literal

from pydantic import (
    AfterValidator,
    BeforeValidator,
    Field,
    PlainValidator,
    StringConstraints,
    WithJsonSchema,
    create_model,
)

from loraxs_search.durations import seconds_of
from loraxs_search.records import Direction, Precision, PromotionRule, SearchDevice, SearchPlan
from loraxs_search.schedulers import SCHEDULERS
from loraxs_search.search_space._entries import known_entry
from loraxs_search.search_space._schedulers import scheduler_keys
from loraxs_search.tasks.kinds import KINDS, Count, Names, Section, TaskKind, Text, distinct


def _number(value: object) -> object:
    # YAML 1.1 reads `1e-3` (no dot) as text.
    return float(value) if isinstance(value, str) and re.fullmatch(r"[-+]?\d+[eE][-+]?\d+", value) else value


def _seconds(value: object) -> object:
    if not isinstance(value, str):
        return value
    if (seconds := seconds_of(value)) is None:
        raise ValueError("must be seconds, or a number with a unit (90s, 10m, 2h, 1d)")
    return seconds


def _pack_size(value: object) -> int | Literal["auto"]:
    if value == "auto":
        return "auto"
    if isinstance(value, int) and not isinstance(value, bool) and value >= 1:
        return value
    raise ValueError("must be a whole number of at least 1, or auto")


def _tuple(value: object) -> object:
    return tuple(value) if isinstance(value, list) else value


Methods = Annotated[tuple[Text, ...], AfterValidator(distinct), BeforeValidator(_tuple)]
# What an editor checks of a value that a function of ours checks here.
PackSize = Annotated[
    int | Literal["auto"],
    PlainValidator(_pack_size),
    WithJsonSchema({"anyOf": [{"type": "integer", "minimum": 1}, {"const": "auto"}]}),
]
Number = Annotated[float, BeforeValidator(_number)]
Duration = Annotated[
    float,
    Field(gt=0),
    BeforeValidator(_seconds),
    WithJsonSchema(
        {
            "anyOf": [
                {"type": "number", "exclusiveMinimum": 0},
                {"type": "string", "pattern": r"^\d+(\.\d+)?\s*[smhd]$"},
            ]
        }
    ),
]


class SearchSection(Section):
    """`search:`, the fields of `SearchPlan` but those that schedulers take; see `search_section`.

    `metric` is what running trials are compared by; it becomes the task's `report_metric`. So does the first of
    `objectives`.
    """

    metric: Text | None = None
    objectives: Names | None = None
    keep: Literal["last", "best"] = SearchPlan.keep
    trials: Count = SearchPlan.trials
    max_steps: Count = SearchPlan.max_steps
    report_every: Count = SearchPlan.report_every
    concurrent: Count | None = None
    scheduler: Annotated[str, AfterValidator(known_entry(SCHEDULERS, "a scheduler"))] = SearchPlan.scheduler
    time_budget: Duration | None = None
    keep_hosts: Duration | None = None
    max_failures: Annotated[int, Field(ge=0)] = SearchPlan.max_failures
    pack_size: PackSize = SearchPlan.pack_size
    precision: Precision = SearchPlan.precision
    device: SearchDevice = SearchPlan.device
    seed: Annotated[int, Field(ge=0, lt=2**32)] = SearchPlan.seed
    max_state_mb: Annotated[Number, Field(ge=0)] = SearchPlan.max_state_mb


def search_section() -> type[SearchSection]:
    """Return the section with the keys of every scheduler, as they are known by now."""
    return create_model("SearchSection", __base__=SearchSection, **scheduler_keys())


class PromotionSection(Section):
    """`promotion:`, the fields of `PromotionRule`."""

    metric: Text | None = None
    direction: Direction | None = None
    min_gain: Annotated[Number, Field(ge=0)] = PromotionRule.min_gain
    confidence: Annotated[Number, Field(ge=0, lt=1)] = PromotionRule.confidence
    tolerance: Annotated[Number, Field(ge=0)] = PromotionRule.tolerance
    require: Literal["constant", "all"] = PromotionRule.require
    guards: dict[str, Annotated[Number, Field(ge=0)]] = {}  # noqa: RUF012  # pydantic copies it
    max_bytes: Count | None = None
    choose: Literal["best", "smallest"] = PromotionRule.choose
    candidates: Count = PromotionRule.candidates
    seeds: Annotated[int, Field(ge=0)] = PromotionRule.seeds
    methods: Methods = PromotionRule.methods


class BaseModelSection(Section):
    """`base_model:`, the fields of `BaseModelRef`."""

    id: Text
    revision: Text | None = None
    package: Text | None = None
    sha256: Annotated[str, StringConstraints(pattern=r"^[0-9a-f]{64}$")] | None = None


class FilesSection(Section):
    """`task.data.data_files:`, a file for each of our splits."""

    train: Text
    validation: Text | None = None
    test: Text | None = None


class SplitsSection(Section):
    """`task.data.splits:`, the hub's split for each of ours."""

    train: Text
    validation: Text | None = None
    test: Text | None = None


class SplitSection(Section):
    """`task.data.validation:` and `task.data.test:`, a split of another data set of the hub."""

    hub: Text
    config: Text | None = None
    revision: Text | None = None
    split: Text
    rename: dict[str, Text] = {}  # noqa: RUF012  # pydantic copies it


class DataSection(Section):
    """`task.data:`, the hub or local files."""

    hub: Text | None = None
    config: Text | None = None
    revision: Text | None = None
    splits: SplitsSection | None = None
    data_files: FilesSection | None = None
    validation: SplitSection | None = None
    test: SplitSection | None = None
    max_characters: Count | None = None
    carved_rows: Count | None = None


def _registry_safe(name: str) -> str:
    if not re.fullmatch(r"[a-z0-9][a-z0-9._-]*", name) or name == "latest":
        law = "must start with a lower-case letter or digit, hold only those and . _ -, and not be `latest`"
        raise ValueError(f"{law}, since the registry knows the task by it")
    return name


class TaskSection(Section):
    """`task:` written out: the keys that all tasks have."""

    name: Annotated[Text, AfterValidator(_registry_safe)]
    kind: Annotated[Text, AfterValidator(known_entry(KINDS, "a task kind"))]
    data: DataSection
    metric: Text | None = None
    metrics: Names | None = None
    direction: Direction | None = None
    max_length: Count = 128
    validation_rows: Count | None = None


@cache
def task_section(kind: type[TaskKind]) -> type[TaskSection]:
    """Return the section with the keys of a kind beside those that all tasks have."""
    bases: Any = (kind.section, TaskSection)
    section: type[TaskSection] = create_model(f"{kind.__name__}TaskSection", __base__=bases)
    return section
