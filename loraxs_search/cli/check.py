"""loraxs-search check SPACE"""

from __future__ import annotations

import re
import sys
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import TYPE_CHECKING, Annotated, Any, Literal, get_args

import typer

from loraxs_search.cli._completion import SpaceArgument
from loraxs_search.cli._data import data_lines
from loraxs_search.cli._estimate import describe as describe_estimate
from loraxs_search.cli._estimate import estimated
from loraxs_search.cli._output import JsonOption, SetOption, emit, print_table

if TYPE_CHECKING:
    from loraxs_search.records import AdapterSize, BaseModel, DataReport, LinearModule, Split, WarmTrials
    from loraxs_search.search.cluster.placement import PackSize
    from loraxs_search.search_space import Space, SpaceDescription

DataOption = Annotated[bool, typer.Option("--data", help="Read the task's data as well: columns, labels, splits.")]
EstimateOption = Annotated[
    bool, typer.Option("--estimate", help="Measure a few steps here, and say how long a search would take; reads data.")
]


def command(
    space: SpaceArgument,
    data: DataOption = False,
    estimate: EstimateOption = False,
    overrides: SetOption = None,
    as_json: JsonOption = False,
) -> None:
    """Check a space against its base model; nothing is trained.

    Reports every mistake of the file, with its line. For a valid space it prints how many combinations there are, the
    smallest and the largest adapter, and the layers of each module group. With `warm_start` it says which trials of
    earlier studies the search begins with, and what is left out.

    With --data it also reads the rows. It prints how many there are, how many of them two splits share, and how many
    trials would share this machine. It warns if scores would look better than they are, for instance because test rows
    are also in the training rows.

    With --estimate it also measures a few steps of drawn trials on this machine, which takes a minute or so. Then it
    says about how long a search would take here, and how many device hours. That counts what early stopping leaves of
    the trials' steps, the refits, and scoring at the end. It is a range: neither scores nor speed are known before.

    Example: loraxs-search check mine.yaml --data
    """
    check(space, tuple(overrides or ()), data=data or estimate, estimate=estimate, as_json=as_json)


def check(space: str, overrides: Sequence[str], *, data: bool, estimate: bool, as_json: bool) -> None:
    """Check a space and print what was seen; `launch --dry-run` prints the same."""
    from loraxs_search.base_model import body_shapes, head_shapes, linear_modules
    from loraxs_search.mlflow_uri import resolve_uri
    from loraxs_search.records import Head
    from loraxs_search.search.driver.warm_start import warm_trials
    from loraxs_search.search_space import describe, load_space
    from loraxs_search.tasks import kind_of

    loaded = load_space(space, overrides=tuple(overrides))
    base = _base_and_data(loaded, data)
    task = loaded.task
    model = kind_of(task).model
    modules = linear_modules(base, model)
    heads = {head: head_shapes(base, model, head) for head in get_args(Head)}
    description = describe(loaded, modules, heads=heads, body=body_shapes(base, model))
    warm = warm_trials(loaded, base.weight_digest, resolve_uri())
    rows = _check_rows(loaded, base, modules, description.largest.size.head_parameters) if data else None
    time, unknown = estimated(loaded) if estimate else (None, "")
    value = {
        "space": loaded.name,
        "base_digest": base.weight_digest,
        "rows": rows and rows.scored,
        "data": rows and rows.report,
        "pack_size": rows and rows.pack_size,
        "warnings": rows.warnings if rows else [],
        "description": description,
        "warm_start": warm,
        "estimate": time,
        "no_estimate": unknown,
    }
    time_lines = describe_estimate(time) if time else {"estimate": f"none: {unknown}"} if unknown else {}
    emit(as_json, value, lambda: _show(loaded, base, description, rows, warm, time_lines))
    sys.stdout.flush()
    for warning in rows.warnings if rows else ():
        print(f"warning: {warning}", file=sys.stderr)


@dataclass(frozen=True)
class _Rows:
    """What was seen of the data.

    Args:
        scored: The number of rows of each split, of validation those that are scored.
        pack_size: How many trials would share this machine; None where it has an accelerator.
    """

    scored: dict[Split, int]
    report: DataReport
    warnings: list[str]
    pack_size: PackSize | None


def _base_and_data(space: Space, data: bool) -> BaseModel:
    """Find the base and, if that is wanted, read the rows: the faults of both are reported at once."""
    from loraxs_search.base_model import locate

    if not data:
        return locate(space.base_model)
    from loraxs_search.tasks import load_data, locate_for

    base = locate_for(space.task, space.base_model)
    load_data(space.task)
    return base


def _check_rows(space: Space, base: BaseModel, modules: Sequence[LinearModule], head_parameters: int) -> _Rows:
    from loraxs_search.base_model import load_tokenizer
    from loraxs_search.search.hosts.expected_pack_size import expected_pack_size
    from loraxs_search.tasks import data_warnings, prepare

    prepared = prepare(space.task, load_tokenizer(base))
    scored: dict[Split, int] = {split: prepared.num_rows(split) for split in ("train", "validation", "test")}
    pack_size = expected_pack_size(space, modules, head_parameters, float(prepared.lengths("train").mean()))
    return _Rows(scored, prepared.report, data_warnings(prepared.report, scored, space.task.metric), pack_size)


def _show(  # each is a part of what is shown
    space: Space,
    base: BaseModel,
    description: SpaceDescription,
    rows: _Rows | None,
    warm: WarmTrials,
    time_lines: Mapping[str, str],
) -> None:
    summary = _summary(space, base, description, rows)
    if space.warm_start is not None:
        started = f"the first {len(warm.trials)} trials have params of {', '.join(warm.studies)}"
        summary["warm start"] = "; ".join([*([started] if warm.trials else []), *warm.notes])
    summary |= time_lines
    for key, value in summary.items():
        print(f"{key:<11} {value}")
    if rows is not None:
        print()
        print("\n".join(data_lines(rows.report, rows.scored, space.task.metric)))
    print()
    _show_extremes(description)
    for group in description.groups:
        print(f"\n{group.expression}: {len(group.modules)} modules")
        print("\n".join(f"  {name}" for name in fold_layers(group.modules)))


def _show_extremes(description: SpaceDescription) -> None:
    """Print the smallest and the largest adapter, of each method where there are several."""
    from loraxs_search.methods import get_method

    methods, several = description.methods, len(description.methods) > 1
    shapes = [(name, shape) for each in methods.values() for name, shape in vars(each).items()]
    params = list(dict.fromkeys(name for _, shape in shapes for name in shape.params))
    numbers: tuple[str, ...] = ("parameters" if several else get_method(shapes[0][1].method).symbol, "head", "bytes")
    if any(shape.size.without_projection is not None for _, shape in shapes):
        numbers = (*numbers, "learnt bytes")
    columns = ("adapter", *(["method"] if several else []), *params, "modules", *numbers)
    body = [
        (
            name,
            *([shape.method] if several else []),
            *(str(shape.params.get(param, "-")) for param in params),
            shape.target_modules,
            *map(_count, _numbers(shape.size)[: len(numbers)]),
        )
        for name, shape in shapes
    ]
    print_table(columns, body, right=frozenset({*params, *numbers}))


def _numbers(size: AdapterSize) -> tuple[int | None, ...]:
    return size.r_parameters, size.head_parameters, size.stored_bytes, size.without_projection


def _summary(space: Space, base: BaseModel, description: SpaceDescription, rows: _Rows | None) -> dict[str, Any]:
    from loraxs_search.methods import get_method

    task, plan = space.task, space.search
    searched = [name for name, parameter in space.parameters.items() if parameter.size != 1]
    size = "continuous" if description.combinations is None else f"{description.combinations:,} combinations"
    facts = {
        "space": f"{space.name} ({space.source})",
        "task": f"{task.name}: {', '.join(task.labels) or task.kind}; {task.direction} {task.metric}"
        + (f", trials by {task.report_metric}" if task.report_metric else "")
        + (f"; {', '.join(plan.objectives)} together" if plan.objectives else ""),
        "method": ", ".join(get_method(name).title for name in space.methods),
        "base model": f"{base.id}, weights {base.weight_digest[:12]}",
        "searched": f"{', '.join(searched) or 'nothing'}: {size}",
        "budget": f"{plan.trials} trials of at most {plan.max_steps} steps, scored every {plan.report_every}",
        "pack size": _pack_size(plan.pack_size, rows),
    }
    if space.start_from is not None:
        facts["start from"] = f"{space.start_from}, as the registry has it at launch"
    facts["at the end"] = _end(space, rows)
    if description.notes:
        facts["note"] = "; ".join(description.notes)
    return facts


def _end(space: Space, rows: _Rows | None) -> str:
    """Say what follows the trials: it is part of the budget."""
    from loraxs_search.tasks import kind_of

    rule, plan = space.promotion, space.search
    best, ways = min(rule.candidates, plan.trials), len(kind_of(space.task).shots)
    refits = best * rule.seeds
    every = "all" if rows is None else f"all {rows.report.num_rows['validation']:,}"
    parts = [f"{refits} refits of {plan.max_steps} steps"] if refits else []
    alone = f", and the base alone in {ways} ways," if ways else ""
    return "; ".join([*parts, f"up to {best + refits} candidates{alone} answer {every} validation rows"])


def _pack_size(asked: int | Literal["auto"], rows: _Rows | None) -> str:
    """Say how many trials would share this machine's device, and why."""
    if rows is None:
        later = ": as many trials at once as fill the device; --data says how many here"
        return f"{asked}{later if asked == 'auto' else ''}"
    if rows.pack_size is None:
        return f"{asked}: decided when the base is on the accelerator"
    size, why = rows.pack_size.size, rows.pack_size.reason
    return f"{asked}: {size} at once on this machine ({why})" if asked == "auto" or why else str(asked)


def fold_layers(names: Sequence[str]) -> list[str]:
    """Return full module names with the layers of equal ones folded: `layer.{0-5}.query`, in order of appearance."""
    layers: dict[tuple[str, str], list[int]] = {}
    for name in names:
        before, layer, after = re.split(r"\.(\d+)\.", f"{name}.", maxsplit=1)
        layers.setdefault((before, after), []).append(int(layer))
    return [f"{before}.{_span(numbers)}.{after.rstrip('.')}" for (before, after), numbers in layers.items()]


def _span(numbers: Sequence[int]) -> str:
    whole = list(range(numbers[0], numbers[-1] + 1)) == list(numbers)
    if len(numbers) == 1:
        return str(numbers[0])
    return f"{{{numbers[0]}-{numbers[-1]}}}" if whole else f"{{{','.join(map(str, numbers))}}}"


def _count(number: int | None) -> str:
    return "-" if number is None else f"{number:,}"
