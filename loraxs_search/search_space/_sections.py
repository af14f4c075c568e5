"""The sections with fixed keys as pydantic models, and their faults in our words."""

from __future__ import annotations

import re
from collections.abc import Iterator, Mapping
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

from loraxs_search.errors import must_be, one_of
from loraxs_search.paths import DURATION, seconds_of
from loraxs_search.records import Direction, Precision, PromotionRule, SearchDevice, SearchPlan
from loraxs_search.samplers import SAMPLERS
from loraxs_search.schedulers import SCHEDULERS
from loraxs_search.search_space._document import Document, KeyPath, as_written
from loraxs_search.search_space._parameter_specs import known_entry
from loraxs_search.tasks.kinds import Count, Section, Text, distinct


def _entry_keys() -> dict[str, Any]:
    """Return type and default of every key that a scheduler or sampler takes; of two that take one, the first one's.

    A space may hold keys of a scheduler that it does not use: `--set search.scheduler=none` is enough to do without.
    """
    taken = [scheduler.parameters for scheduler in SCHEDULERS.importable().values()]
    taken += [sampler.parameters for sampler in SAMPLERS.importable().values()]
    keys: dict[str, Any] = {}
    for name, key in (each for own in taken for each in own.items()):
        keys.setdefault(name, (key.annotation, Field(key.default, description=key.about)))
    return keys


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


def check_choice(document: Document, rule: Mapping[str, Any]) -> None:
    """Report what `promotion.choose` cannot stand beside."""
    for path, message in _choice_faults(rule):
        if not document.faults.at_or_below(path):
            document.faults.add(path, message)


def _choice_faults(rule: Mapping[str, Any]) -> Iterator[tuple[KeyPath, str]]:
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
        raise ValueError("must be seconds, or a number with a unit (90s, 10m, 1h30m, 1d)")
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
NotNegative = Annotated[float, Field(ge=0), BeforeValidator(_number)]
Duration = Annotated[
    float,
    Field(gt=0),
    BeforeValidator(_seconds),
    WithJsonSchema(
        {
            "$comment": "duration",
            "anyOf": [
                {"type": "number", "exclusiveMinimum": 0},
                {"type": "string", "pattern": f"^{DURATION}$"},
            ],
        }
    ),
]


class SearchSection(Section):
    """How to search: how many trials, how long each one trains, and which of them stop early."""

    metric: Text | None = None
    """Metric by which running trials are compared. The default is the task's own, or `loss` for `text-generation`.
    Candidates are always compared by the task's metric.
    """
    checkpoint: Literal["last", "best"] = SearchPlan.checkpoint
    """Which step of a trial becomes its adapter: the `last` one, or the one with the `best` report."""
    trials: Count = SearchPlan.trials
    """Number of trials to propose. `extend` raises it; trials from `add` come on top."""
    max_steps: Count = SearchPlan.max_steps
    """Optimizer steps of the longest trial."""
    report_every: Count = SearchPlan.report_every
    """Steps between two reports. Each report scores the trial and may stop it."""
    concurrent: Count | None = None
    """Most trials that run at once. The default is as many as fit; an autoscaler starts nodes for those that wait."""
    scheduler: Annotated[str, AfterValidator(known_entry(SCHEDULERS, "a scheduler"))] = SearchPlan.scheduler
    """Which trials stop early."""
    sampler: Annotated[str, AfterValidator(known_entry(SAMPLERS, "a sampler"))] = SearchPlan.sampler
    """What proposes params."""
    time_budget: Duration | None = None
    """What the whole search may take, such as `90s`, `1h30m` or `1d`; time before a `resume` counts. Trials stop at a
    report, or at their last one if the next is late, so early that refits, last scores and baselines fit by the speed
    measured so far; these get at most half. Refits that do not fit are left out, then candidates, and the search says
    so. Scores of the best trial and baselines are not left out, even if they take longer.
    """
    max_failures: Annotated[int, Field(ge=0)] = SearchPlan.max_failures
    """How often a trial may lose its host or node between two reports, before it fails."""
    pack_size: PackSize = SearchPlan.pack_size
    """Trials that share a device. `auto` takes as many as fill it; 1 trains each trial alone."""
    precision: Precision = SearchPlan.precision
    """Number format of the frozen base. `auto` is bfloat16 if the hardware has it."""
    device: SearchDevice = SearchPlan.device
    """What trains. `auto` takes GPUs if a node has any."""
    seed: Annotated[int, Field(ge=0, lt=2**32)] = SearchPlan.seed
    """Random start of the sampler and of each trial. It repeats a whole search only with one trial at a time, since
    proposals depend on which trial reports first.
    """
    max_state_mb: NotNegative = SearchPlan.max_state_mb
    """Megabytes up to which the state of a trial travels to the driver with each report. A larger state stays on its
    node; if the node is lost, the trial starts again.
    """


def search_section() -> type[SearchSection]:
    """Return the section with the keys of every scheduler and sampler, as they are known by now."""
    return create_model("SearchSection", __base__=SearchSection, __doc__=SearchSection.__doc__, **_entry_keys())


class PromotionSection(Section):
    """When an adapter becomes the champion of its task."""

    metric: Text | None = None
    """Metric that decides. The default is the task's."""
    direction: Direction | None = None
    """May be left out: it is always the metric's own."""
    min_gain: NotNegative = PromotionRule.min_gain
    """How much better than the champion the finalist must be on test rows."""
    confidence: Annotated[float, Field(ge=0, lt=1), BeforeValidator(_number)] = PromotionRule.confidence
    """Confidence of the paired test that the finalist is better, over all comparisons on the same test rows together. 0
    compares the numbers as they are.
    """
    tolerance: NotNegative = PromotionRule.tolerance
    """What a smaller adapter may cost on validation rows: the smallest candidate within it of the best one becomes the
    finalist. 0.005 is half a point of accuracy.
    """
    margin: NotNegative | None = PromotionRule.margin
    """A finalist that is smaller than the champion replaces it if a paired test on the test rows shows that it is less
    than this worse than the best champion so far. The default is 0.01 for accuracy and other shares of rows. Other
    metrics have none: size does not count. 0 means the same.
    """
    require: Literal["constant", "all"] = PromotionRule.require
    """Baselines that a champion must beat: `all` of its study, or the `constant` answer alone."""
    guards: dict[str, NotNegative] = {}  # noqa: RUF012  # pydantic copies it
    """Other metrics, and how far each may fall below the champion's: `{f1: 0.01}`. `negative_flips` limits the share of
    test rows that the champion answers right and the finalist wrong, `slice_loss` what the metric that decides may lose
    on any slice of at least 30 test rows; see `task.slices`."""
    max_bytes: Count | None = None
    """Larger adapters are not candidates."""
    choose: Literal["best", "smallest"] = PromotionRule.choose
    """Which trials are candidates: the `best`, or the best one and the `smallest` within `tolerance` of it."""
    candidates: Count = PromotionRule.candidates
    """How many of the best trials can become the finalist."""
    seeds: Annotated[int, Field(ge=0)] = PromotionRule.seeds
    """How often each candidate is trained again from a new seed. The refits are candidates too; 0 saves their time."""
    methods: Methods = PromotionRule.methods
    """Methods whose trials may be candidates. The default is all but `head-only` and `full`."""


class BaseModelSection(Section):
    """The frozen model. `base_model: ID` is short for `base_model: {id: ID}`."""

    id: Text
    """Id on the Hugging Face hub, or a folder. A path that starts with `.`, `~` or `/` is relative to the space's file.
    """
    revision: Text | None = None
    """Commit, tag or branch on the hub."""
    package: Text | None = None
    """Installed Python package that carries the model, as safetensors or GGUF. `sentence-transformers/all-MiniLM-L6-v2`
    is found in its package without this key.
    """
    sha256: Annotated[str, StringConstraints(pattern=r"^[0-9a-f]{64}$")] | None = None
    """Digest of the weights, 64 hexadecimal digits. Other weights are refused."""
