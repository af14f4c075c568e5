"""The sections with fixed keys as pydantic models, their faults in our words, and the laws of `search.objectives`."""

from __future__ import annotations

import re
from collections.abc import Iterator, Mapping
from functools import cache
from typing import Annotated, Any, Literal, TypeVar, get_args

from pydantic import (
    AfterValidator,
    BeforeValidator,
    Field,
    PlainValidator,
    StringConstraints,
    ValidationError,
    WithJsonSchema,
    create_model,
)
from pydantic_core import ErrorDetails

from loraxs_search.durations import seconds_of
from loraxs_search.errors import must_be, one_of
from loraxs_search.records import Direction, Precision, PromotionRule, SearchDevice, SearchPlan, Task
from loraxs_search.samplers import SAMPLERS
from loraxs_search.schedulers import SCHEDULERS
from loraxs_search.search_space._document import Document, KeyPath, as_written, shown
from loraxs_search.search_space._parameter_specs import known_entry
from loraxs_search.tasks.kinds import KINDS, Count, Names, Section, TaskKind, Text, distinct, kind_of


def _entry_keys() -> dict[str, Any]:
    """Return type and default of every key that a scheduler or sampler takes; of two that take one, the first one's.

    A space may hold keys of a scheduler that it does not use: `--set search.scheduler=none` is enough to do without.
    """
    taken = [scheduler.parameters for scheduler in SCHEDULERS.importable().values()]
    taken += [sampler.parameters for sampler in SAMPLERS.importable().values()]
    return {name: (key.annotation, key.default) for keys in reversed(taken) for name, key in keys.items()}


SectionT = TypeVar("SectionT", bound=Section)


def read_section(document: Document, path: KeyPath, model: type[SectionT], given: object) -> SectionT | None:
    """Validate one section; faults go to the document, and None comes back if there was one."""
    if not isinstance(given, dict):
        law = f"must hold keys (one of: {one_of(model.model_fields)})"
        document.faults.add(path, f"{law}, but got {as_written(document, path, given)}.")
        return None
    try:
        return model.model_validate(given)
    except ValidationError as error:
        for detail in error.errors(include_url=False):
            where = (*path, *detail["loc"])
            document.faults.add(where, _in_our_words(document, where, model, detail))
        return None


def _in_our_words(document: Document, path: KeyPath, model: type[Section], detail: ErrorDetails) -> str:
    kind, context, value = detail["type"], detail.get("ctx", {}), detail["input"]
    if kind == "missing":
        return "is required."
    if kind == "extra_forbidden":
        known = _section_at(model, detail["loc"][:-1]).model_fields
        return f"{must_be(path[-1], known)}, but got {str(path[-1])!r}."
    remedy = "; quote it to mean the text" if kind == "string_type" and isinstance(value, bool | int | float) else ""
    return f"{_law(kind, context, value)}, but got {as_written(document, path, value)}{remedy}."


def _law(kind: str, context: Mapping[str, Any], value: object) -> str:
    if kind == "literal_error":
        names = re.findall(r"'([^']*)'", context["expected"])
        return must_be(value, names)
    if kind == "value_error":
        return str(context["error"])
    if kind == "too_short":
        least = context["min_length"]
        return f"must hold at least {'one item' if least == 1 else f'{least} items'}"
    laws = {
        "greater_than_equal": "must be at least {ge}",
        "greater_than": "must be above {gt}",
        "less_than": "must be below {lt}",
        "less_than_equal": "must be at most {le}",
        "int_type": "must be an integer",
        "float_type": "must be a number",
        "finite_number": "must be a finite number",
        "string_type": "must be text",
        "string_unicode": "must be valid Unicode",
        "string_too_short": "must not be empty",
        "string_pattern_mismatch": "must be 64 hexadecimal digits in lower case",
        "list_type": "must be a list",
        "tuple_type": "must be a list",
        "model_type": "must be a mapping",
        "dict_type": "must be a mapping",
    }
    return laws.get(kind, f"must be valid ({kind})").format(**context)


def _section_at(model: type[Section], location: tuple[str | int, ...]) -> type[Section]:
    for part in location:
        if isinstance(part, str):  # a number is an item of a list
            model = next(_sections_in(model.model_fields[part].annotation))
    return model


def _sections_in(annotation: Any) -> Iterator[type[Section]]:
    if isinstance(annotation, type) and issubclass(annotation, Section):
        yield annotation
    for part in get_args(annotation):
        yield from _sections_in(part)


STORED_BYTES = "stored_bytes"
_OBJECTIVES: KeyPath = ("search", "objectives")


def quality_of(search: object) -> str | None:
    """Return the metric that `search.objectives` begins with; None where the key is missing, or is no list of two."""
    given = search.get("objectives") if isinstance(search, dict) else None
    if not isinstance(given, list) or len(given) != 2:
        return None
    first, second = given
    return first if isinstance(first, str) and first != STORED_BYTES and second == STORED_BYTES else None


def check_objectives(document: Document, search: object, promotion: object, task: Task | None) -> None:
    """Report every law that objectives and promotion break together."""
    keys = search if isinstance(search, dict) else {}
    given, quality = keys.get("objectives"), quality_of(search)
    if quality is None and given is not None and not document.faults.at_or_below(_OBJECTIVES):
        example = f"[{task.metric if task else 'accuracy'}, {STORED_BYTES}]"
        law = f"must be a metric and then {STORED_BYTES}, as in {example}"
        document.faults.add(_OBJECTIVES, f"{law}, but got {shown(given)}.")
    rule = promotion if isinstance(promotion, dict) else {}
    faults = list(_choice_faults(rule))
    if quality is not None:
        faults += _metric_faults(keys, rule, quality, task)
    for path, message in faults:
        if not document.faults.at_or_below(path):
            document.faults.add(path, message)


def _metric_faults(
    search: dict[str, Any], rule: dict[str, Any], quality: str, task: Task | None
) -> Iterator[tuple[KeyPath, str]]:
    own = search.get("metric")
    if own is not None and own != quality:
        law = f"must be left out, or be what search.objectives begin with: {quality}"
        yield ("search", "metric"), f"{law}, but got {shown(own)}."
    if task is None or quality not in kind_of(task).fitting_metrics(kind_of(task).keys()):
        return  # that is a fault of its own
    decides = rule.get("metric") or task.metric
    stands_in = decides == task.metric and quality == kind_of(task).report_metric  # as a loss for written answers
    if decides != quality and not stands_in:
        place: KeyPath = ("promotion", "metric") if rule.get("metric") else (*_OBJECTIVES, 0)
        remedy = f"search.objectives: [{decides}, {STORED_BYTES}], or promotion.metric: {quality}"
        law = "search.objectives and promotion must go by one metric"
        yield place, f"{law}, but got {quality} and {decides}; write {remedy}."
    if decides == quality and (direction := rule.get("direction")) not in (None, task.search_direction):
        law = f"must be left out, or be {task.search_direction}, as search.objectives take {quality}"
        yield ("promotion", "direction"), f"{law}, but got {direction}."


def _choice_faults(rule: dict[str, Any]) -> Iterator[tuple[KeyPath, str]]:
    if rule.get("choose") != "smallest":
        return
    if not rule.get("tolerance", PromotionRule.tolerance):
        law = "smallest must stand beside a tolerance, which says what fewer bytes may cost"
        yield ("promotion", "choose"), f"{law}, but there is none; write tolerance: 0.005, or choose: best."
    if rule.get("candidates", PromotionRule.candidates) == 1:
        law = "must be at least 2 beside choose: smallest, since tolerance counts from the best"
        yield ("promotion", "candidates"), f"{law}, but got 1."


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
    """`search:`, the fields of `SearchPlan` but those that schedulers and samplers take; see `search_section`.

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
    sampler: Annotated[str, AfterValidator(known_entry(SAMPLERS, "a sampler"))] = SearchPlan.sampler
    time_budget: Duration | None = None
    keep_hosts: Duration | None = None
    max_failures: Annotated[int, Field(ge=0)] = SearchPlan.max_failures
    pack_size: PackSize = SearchPlan.pack_size
    precision: Precision = SearchPlan.precision
    device: SearchDevice = SearchPlan.device
    seed: Annotated[int, Field(ge=0, lt=2**32)] = SearchPlan.seed
    max_state_mb: Annotated[Number, Field(ge=0)] = SearchPlan.max_state_mb


def search_section() -> type[SearchSection]:
    """Return the section with the keys of every scheduler and sampler, as they are known by now."""
    return create_model("SearchSection", __base__=SearchSection, **_entry_keys())


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
