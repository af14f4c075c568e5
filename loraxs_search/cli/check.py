"""loraxs-search check SPACE, doctor [SPACE]"""

from __future__ import annotations

import contextlib
import re
import sys
from collections.abc import Sequence
from typing import TYPE_CHECKING, Annotated, Any, Literal

import typer
from typer.exceptions import Exit

from loraxs_search.cli._output import (
    AddressOption,
    JsonOption,
    RuntimeEnvOption,
    SetOption,
    SpaceArgument,
    StorageOption,
    TrackingOption,
    emit,
    print_table,
    print_warnings,
    saying,
)
from loraxs_search.cli.live_text import data_lines
from loraxs_search.errors import counted
from loraxs_search.records.promotion import BASE_MODEL_ROWS

if TYPE_CHECKING:
    from loraxs_search.search.driver.check import CheckedSpace, SearchEstimate
    from loraxs_search.search_space.load import SpaceSource
    from loraxs_search.search_space.space import Space, SpaceDescription


def _describe_estimate(estimate: SearchEstimate) -> dict[str, str]:
    """Return the lines that tell an estimate."""
    low, high = estimate.step_share
    of = estimate.measured
    shares = f"{low:.0%}" if round(high - low, 2) == 0 else f"{low:.0%} to {high:.0%}"
    parts = ", ".join(f"{name} {_time(seconds)}" for name, seconds in estimate.parts_s.items())
    hours = f"{estimate.least_device_hours:.2g} to {estimate.most_device_hours:.2g}"
    return {
        "estimate": f"about {_time(estimate.least_s)} to {_time(estimate.most_s)} on this machine, "
        f"{hours} device hours",
        "of these": parts,
        "early stops": f"leave {shares} of all steps, by the scheduler on random scores",
        "measured": f"{of.num_steps} steps and a scoring of {of.at_once} drawn trials at once on {of.device}: "
        f"{of.step_s:.3g} s a step, {of.scoring_s:.3g} s a scoring of each",
    }


def _time(seconds: float) -> str:
    """Return a time with two digits: `50 s`, `12 min`, `3.4 h`."""
    if seconds < 90:
        return f"{_two(seconds)} s"
    return f"{_two(seconds / 60)} min" if seconds < 5400 else f"{_two(seconds / 3600)} h"


def _two(value: float) -> str:
    return f"{float(f'{value:.2g}'):g}"


DataOption = Annotated[bool, typer.Option("--data", help="Read the task's data as well: columns, labels, splits.")]
EstimateOption = Annotated[
    bool, typer.Option("--estimate", help="Measure a few steps here, and say how long a search would take; reads data.")
]


def check(
    space: SpaceArgument,
    data: DataOption = False,
    estimate: EstimateOption = False,
    overrides: SetOption = None,
    as_json: JsonOption = False,
) -> None:
    """Check a space against its base model; nothing is trained.

    Reports the mistakes in the file together, with their lines; then those of its base, modules and rows. For a valid
    space it prints how many combinations there are, the smallest and the largest adapter, and the layers of each module
    group.

    With --data it also reads the rows. It prints how many there are, how many of them two splits share, how many trials
    would share this machine, and two rows as the model sees them. It warns if scores would look better than they are,
    for instance because test rows are also in the training rows.

    With --estimate it also measures a few steps of drawn trials on this machine, in some 20 s. Then it
    says about how long a search would take here, and how many device hours. That counts what early stopping leaves of
    the trials' steps, the refits, and scoring at the end. It is a range: neither scores nor speed are known before.

    Example: loraxs-search check mine.yaml --data
    """
    check_space(space, tuple(overrides or ()), data=data or estimate, estimate=estimate, as_json=as_json)


def check_space(space: SpaceSource, overrides: Sequence[str], *, data: bool, estimate: bool, as_json: bool) -> None:
    """Check a space and print what was seen; `launch --dry-run` prints the same."""
    from loraxs_search.search_space.load import open_space

    loaded = open_space(space, tuple(overrides))  # its faults come before what takes long to load
    from loraxs_search.search.driver.check import check as checked

    with saying("measuring a few steps of drawn trials on this machine") if estimate else contextlib.nullcontext():
        seen = checked(loaded, data=data, estimate=estimate)
    emit(as_json, seen, lambda: _show(loaded, seen))
    sys.stdout.flush()
    print_warnings(seen.warnings)


def _show(space: Space, seen: CheckedSpace) -> None:
    description, time = seen.description, seen.estimate
    summary = _summary(space, seen)
    if time is not None:
        summary |= _describe_estimate(time)
    elif seen.no_estimate:
        summary["estimate"] = f"none: {seen.no_estimate}"
    for key, value in summary.items():
        print(f"{key:<11} {value}")
    for note in description.notes:
        print(f"{'note':<11} {note}")
    if seen.data is not None:
        print()
        print("\n".join(data_lines(seen.data, seen.rows or {}, space.task.metric)))
    for number, row in enumerate(seen.first_rows, start=1):
        trained = ", trained tokens in [[ ]]" if "[[" in row.text else ""
        print(f"\ntrain row {number} as the model sees it{trained}:\n{row.text}\nanswer: {row.answer}")
    print()
    _show_extremes(space, description)
    for group in description.groups:
        print(f"\n{group.expression}: {counted(len(group.modules), 'module')}")
        print("\n".join(f"  {name}" for name in _fold_layers(group.modules)))


def _show_extremes(space: Space, description: SpaceDescription) -> None:
    """Print the smallest and the largest adapter, of each method where there are several."""
    methods, several = description.methods, len(description.methods) > 1
    shapes = [(name, shape) for each in methods.values() for name, shape in vars(each).items()]
    params = list(dict.fromkeys(name for _, shape in shapes for name in shape.params))
    numbers: tuple[str, ...] = ("parameters" if several else space.method(shapes[0][1].method).symbol, "head", "bytes")
    if any(shape.size.without_projection is not None for _, shape in shapes):
        numbers = (*numbers, "learnt bytes")

    def sizes_of(shape: Any) -> tuple[int | None, ...]:
        size = shape.size
        return size.r_parameters, size.head_parameters, size.stored_bytes, size.without_projection

    columns = ("adapter", *(["method"] if several else []), *params, "modules", *numbers)
    body = [
        (
            name,
            *([shape.method] if several else []),
            *(str(shape.params.get(param, "-")) for param in params),
            shape.target_modules,
            *("-" if number is None else f"{number:,}" for number in sizes_of(shape)[: len(numbers)]),
        )
        for name, shape in shapes
    ]
    print_table(columns, body, right=frozenset({*params, *numbers}))


def _summary(space: Space, seen: CheckedSpace) -> dict[str, Any]:
    from loraxs_search.search_space.distributions import plain_name

    task, plan, description = space.task, space.search, seen.description
    searched = [name for name, parameter in space.parameters.items() if parameter.size != 1]
    if description.combinations is not None:
        combinations = f"{description.combinations:,} combination{'s' * (description.combinations != 1)}"
    else:
        continuous = [name for name, parameter in space.parameters.items() if parameter.size is None]
        names = " and ".join(filter(None, (", ".join(continuous[:-1]), continuous[-1])))
        combinations = f"any number of combinations, as {names} {'is' if len(continuous) == 1 else 'are'} continuous"
    firsts = [
        ", ".join(f"{plain_name(name)} {value}" for name, value in params.items()) for params in space.first_params()
    ]
    recipe = {"first trials" if len(firsts) > 1 else "first trial": f"by recipe: {'; '.join(firsts)}"} if firsts else {}
    passes = ""
    if seen.data is not None:
        often = plan.max_steps * space.largest().batch_size / seen.data.num_rows["train"]
        passes = f" ({often:.1f} passes over the training rows)"
    facts = {
        "space": f"{space.name} ({space.source})",
        "task": f"{task.registered_name}: {', '.join(task.labels) or task.kind}; {task.direction} {task.metric}"
        + (f", trials by {task.report_metric}" if task.report_metric else ""),
        "method": ", ".join(space.method(name).title for name in space.methods),
        "base model": f"{space.base_model.id}, weights {seen.base_digest[:12]}"
        + ("" if seen.pooling == "class" else f"; heads read {seen.pooling} (pooling)"),
        "searched": f"{', '.join(searched) or 'nothing'}: {combinations}",
        **recipe,
        "budget": f"{counted(plan.trials, 'trial')} of at most {counted(plan.max_steps, 'step')}{passes},"
        f" scored every {plan.report_every}",
        "pack size": _pack_size(plan.pack_size, seen),
    }
    if space.start_from is not None:
        facts["start from"] = f"{space.start_from}, as the registry has it at launch"
    facts["at the end"] = _end(space, seen)
    return facts


def _end(space: Space, seen: CheckedSpace) -> str:
    """Say what follows the trials: it is part of the budget."""
    from loraxs_search.tasks.kinds import kind_of

    rule, plan = space.promotion, space.search
    best, ways = min(rule.candidates, plan.trials), len(kind_of(space.task).shots)
    refits = rule.num_refits(plan.trials)
    every = "all" if seen.data is None else f"all {seen.data.num_rows['validation']:,}"
    parts = [f"{counted(refits, 'refit')} of {counted(plan.max_steps, 'step')}"] if refits else []
    parts.append(f"up to {counted(best + refits, 'candidate')} answer {every} validation rows")
    if ways:
        base = f"the untouched base answers up to {BASE_MODEL_ROWS} of them in {ways} ways"
        parts.append(f"{base}, the test rows in the better one")
    return "; ".join(parts)


def _pack_size(asked: int | Literal["auto"], seen: CheckedSpace) -> str:
    """Say how many trials would share this machine's device, and why."""
    if seen.data is None:
        later = ": as many trials at once as fill the device; --data says how many here"
        return f"{asked}{later if asked == 'auto' else ''}"
    if seen.pack_size is None:
        return f"{asked}: decided when the base is on the accelerator"
    size, why = seen.pack_size.size, seen.pack_size.reason
    return f"{asked}: {size} at once on this machine ({why})" if asked == "auto" or why else str(asked)


def _fold_layers(names: Sequence[str]) -> list[str]:
    """Return full module names with the layers of equal ones folded: `layer.{0-5}.query`, in order of appearance."""
    layers: dict[tuple[str, str], list[int]] = {}
    for name in names:
        before, layer, after = re.split(r"\.(\d+)\.", f"{name}.", maxsplit=1)
        layers.setdefault((before, after), []).append(int(layer))
    folded = []
    for (before, after), numbers in layers.items():
        span = f"{{{','.join(map(str, numbers))}}}"
        if len(numbers) == 1:
            span = str(numbers[0])
        elif numbers == list(range(numbers[0], numbers[-1] + 1)):
            span = f"{{{numbers[0]}-{numbers[-1]}}}"
        folded.append(f"{before}.{span}.{after.rstrip('.')}")
    return folded


def doctor(
    space: Annotated[
        str | None,
        typer.Argument(help="A space whose base and files every node needs; default: none."),
    ] = None,
    address: AddressOption = None,
    tracking_uri: TrackingOption = None,
    runtime_env: RuntimeEnvOption = None,
    storage: StorageOption = None,
    as_json: JsonOption = False,
) -> None:
    """Check a cluster, or this machine, before a search.

    It checks on each node: versions, GPUs and memory, disk, open files, the clock, and whether MLflow can be reached.
    With a space it also checks that the space's files are there with the same content, and where its base would come
    from. If that is the hub, it checks the hub. With --storage it checks that this machine can write to the storage.
    Exits 1 if something would stop a search.

    Example: loraxs-search doctor mine.yaml --address auto
    """
    from loraxs_search.search.cluster.doctor import examine

    results = examine(space, address=address, tracking_uri=tracking_uri, runtime_env=runtime_env, storage=storage)

    def show() -> None:
        columns = ("node", "check", "verdict", "value")
        print_table(columns, [(f.node, f.check, f.verdict, f.value) for f in results])
        for hint in dict.fromkeys(f"{f.check}: {f.hint}" for f in results if f.hint):
            print(f"\nhint: {hint}", file=sys.stderr)

    emit(as_json, results, show)
    if any(result.verdict == "fail" for result in results):
        raise Exit(1)
