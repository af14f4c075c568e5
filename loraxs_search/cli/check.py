"""loraxs-search check SPACE"""

from __future__ import annotations

import re
from collections.abc import Mapping, Sequence
from typing import TYPE_CHECKING, Annotated, Any, get_args

import typer

from loraxs_search.cli._output import JsonOption, SetOption, SpaceArgument, emit, print_table

if TYPE_CHECKING:
    from loraxs_search.records import BaseModel, Split
    from loraxs_search.search_space import Space, SpaceDescription

DataOption = Annotated[bool, typer.Option("--data", help="Read the task's data as well: columns, labels, splits.")]


def command(
    space: SpaceArgument, data: DataOption = False, overrides: SetOption = None, as_json: JsonOption = False
) -> None:
    """Check a space against its base model; nothing is trained.

    Tells every fault of the file with its line. A space in order is described: how many params it holds, what the
    smallest and the largest adapter store, and the modules that each group means.
    """
    from loraxs_search.base_model import head_shapes, linear_modules, locate
    from loraxs_search.records import Head
    from loraxs_search.search_space import describe, load_space

    loaded = load_space(space, overrides=tuple(overrides or ()))
    base = locate(loaded.base_model)
    task = loaded.task
    modules = linear_modules(base, task.kind, len(task.labels))
    description = describe(
        loaded, modules, heads={head: head_shapes(base, task.kind, len(task.labels), head) for head in get_args(Head)}
    )
    rows = _count_rows(loaded, base) if data else None
    value = {"space": loaded.name, "base_digest": base.weight_digest, "rows": rows, "description": description}
    emit(as_json, value, lambda: _show(loaded, base, description, rows))


def _count_rows(space: Space, base: BaseModel) -> dict[Split, int]:
    from loraxs_search.base_model import load_tokenizer
    from loraxs_search.tasks import prepare

    prepared = prepare(space.task, load_tokenizer(base))
    return {split: prepared.num_rows(split) for split in ("train", "validation", "test")}


def _show(space: Space, base: BaseModel, description: SpaceDescription, rows: Mapping[Split, int] | None) -> None:
    for key, value in _facts(space, base, description, rows).items():
        print(f"{key:<11} {value}")
    print()
    columns = ("adapter", "rank", "modules", "R", "head", "bytes")
    extremes = {"smallest": description.smallest, "largest": description.largest}
    body = [
        (
            name,
            str(it.rank),
            it.target_modules,
            *map(_count, (it.size.r_parameters, it.size.head_parameters, it.size.stored_bytes)),
        )
        for name, it in extremes.items()
    ]
    print_table(columns, body, right=frozenset({"rank", "R", "head", "bytes"}))
    for group in description.groups:
        print(f"\n{group.expression}: {len(group.modules)} modules")
        print("\n".join(f"  {name}" for name in fold_layers(group.modules)))


def _facts(
    space: Space, base: BaseModel, description: SpaceDescription, rows: Mapping[Split, int] | None
) -> dict[str, Any]:
    task, plan = space.task, space.search
    searched = [name for name, parameter in space.parameters.items() if parameter.distribution.size != 1]
    size = "continuous" if description.combinations is None else f"{description.combinations:,} combinations"
    facts = {
        "space": f"{space.name} ({space.source})",
        "task": f"{task.name}: {', '.join(task.labels) or task.kind}; {task.direction} {task.metric}",
        "base model": f"{base.id}, weights {base.weight_digest[:12]}",
        "searched": f"{', '.join(searched) or 'nothing'}: {size}",
        "budget": f"{plan.trials} trials of at most {plan.max_steps} steps, scored every {plan.report_every}",
    }
    return facts if rows is None else facts | {"rows": ", ".join(f"{split} {n:,}" for split, n in rows.items())}


def fold_layers(names: Sequence[str]) -> list[str]:
    """Return full module names with the layers of equal ones folded: `layer.{0-5}.query`, in order of appearance."""
    layers: dict[tuple[str, str], list[int]] = {}
    for name in names:
        before, layer, after = re.split(r"\.(\d+)\.", f"{name}.", maxsplit=1)
        layers.setdefault((before, after), []).append(int(layer))
    return [f"{before}.{_span(found)}.{after.rstrip('.')}" for (before, after), found in layers.items()]


def _span(numbers: Sequence[int]) -> str:
    whole = list(range(numbers[0], numbers[-1] + 1)) == list(numbers)
    if len(numbers) == 1:
        return str(numbers[0])
    return f"{{{numbers[0]}-{numbers[-1]}}}" if whole else f"{{{','.join(map(str, numbers))}}}"


def _count(number: int) -> str:
    return f"{number:,}"
