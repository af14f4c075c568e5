"""loraxs-search check SPACE, doctor [SPACE]"""

from __future__ import annotations

import re
import sys
from collections.abc import Iterator, Sequence
from typing import TYPE_CHECKING

from typer import Argument, Option
from typer.exceptions import Exit

from loraxs_search.cli import _out
from loraxs_search.cli.live_text import data_lines
from loraxs_search.errors import both, counted
from loraxs_search.records.search import BASE_MODEL_ROWS

if TYPE_CHECKING:
    from loraxs_search.search.driver.check import CheckedSpace
    from loraxs_search.search_space.space import Space


def check(
    space: _out.SpaceArgument,
    data: bool = Option(False, "--data", help="Read the task's data as well: columns, labels, splits."),
    overrides: _out.SetOption = None,
    as_json: _out.JsonOption = False,
) -> None:
    """Check a space against its base model; nothing is trained.

    Reports the mistakes in the file together, with their lines; then those of its base, modules and rows. For a valid
    space it prints how many combinations there are, the smallest and the largest adapter, and the layers of each module
    group.

    With --data it also reads the rows. It prints how many there are, how many of them two splits share, how many trials
    would share this machine, and two rows as the model sees them. It warns if scores would look better than they are,
    for instance because test rows are also in the training rows.

    Example: loraxs-search check mine.yaml --data
    """
    from loraxs_search.search_space.load import load_space

    loaded = load_space(space, tuple(overrides or ()))  # its faults come before what takes long to load
    from loraxs_search.search.driver.check import check as checked

    seen = checked(loaded, data=data)
    if as_json:
        _out.print_json(seen)
        _out.print_warnings(seen.warnings)
        return
    for key, value in (*_summary(loaded, seen), *(("note", it) for it in seen.description.notes)):
        _out.say(f"{key:<11} {value}")
    if seen.data is not None:
        _out.say("\n".join(["", *data_lines(seen.data, seen.rows or {}, loaded.task.metric)]))
    for number, row in enumerate(seen.first_rows, start=1):
        trained = ", trained tokens in [[ ]]" if "[[" in row["text"] else ""
        _out.say(f"\ntrain row {number} as the model sees it{trained}:\n{row['text']}\nanswer: {row['answer']}")

    # The smallest and the largest adapter, of each method where there are several.
    _out.say("")
    methods, several = seen.description.methods, len(loaded.methods) > 1
    shapes = [(name, shape) for each in methods.values() for name, shape in vars(each).items()]
    params = list(dict.fromkeys(name for _, shape in shapes for name in shape.params))
    numbers = ["parameters" if several else loaded.method(loaded.methods[0]).symbol, "head", "bytes"]
    numbers += ["learnt bytes"] if any(shape.size.without_projection is not None for _, shape in shapes) else []
    rows = []
    for name, shape in shapes:
        size = shape.size
        sizes = (size.r_parameters, size.head_parameters, size.stored_bytes, size.without_projection)[: len(numbers)]
        cells = [name, *([shape.method] if several else []), *(str(shape.params.get(param, "-")) for param in params)]
        rows.append([*cells, shape.target_modules, *("-" if size is None else f"{size:,}" for size in sizes)])
    columns = ["adapter", *(["method"] if several else []), *params, "modules", *numbers]
    _out.say(_out.table(columns, rows, right=frozenset({*params, *numbers})))
    for group in seen.description.groups:
        _out.say(f"\n{group.expression}: {counted(len(group.modules), 'module')}")
        _out.say("\n".join(f"  {name}" for name in _fold_layers(group.modules)))
    sys.stdout.flush()
    _out.print_warnings(seen.warnings)


def _summary(space: Space, seen: CheckedSpace) -> Iterator[tuple[str, str]]:
    """Yield what is searched, how and for how long: names and values."""
    from loraxs_search.tasks.kinds import kind_of

    task, plan, rule, description = space.task, space.search, space.promotion, seen.description
    yield "space", f"{space.name} ({space.source})"
    what = f"{task.registered_name}: {', '.join(task.labels) or task.kind}; {task.direction} {task.metric}"
    yield "task", what + (f", trials by {task.report_metric}" if task.report_metric else "")
    yield "method", ", ".join(space.method(name).title for name in space.methods)
    heads = "" if seen.pooling == "class" else f"; heads read {seen.pooling} (pooling)"
    yield "base model", f"{space.base_model.id}, weights {seen.base_digest[:12]}{heads}"

    searched = [name for name, parameter in space.parameters.items() if parameter.size != 1]
    continuous = [name for name, parameter in space.parameters.items() if parameter.size is None]
    if description.combinations is not None:
        combinations = counted(description.combinations, "combination")
    else:
        verb = "is" if len(continuous) == 1 else "are"
        combinations = f"any number of combinations, as {both(continuous)} {verb} continuous"
    yield "searched", f"{', '.join(searched) or 'nothing'}: {combinations}"
    firsts = [
        ", ".join(f"{name.partition('[')[0]} {value}" for name, value in it.items()) for it in space.first_params()
    ]
    if firsts:
        yield "first trials" if len(firsts) > 1 else "first trial", f"by recipe: {'; '.join(firsts)}"
    trials, steps = counted(plan.trials, "trial"), counted(plan.max_steps, "step")
    passes = ""
    if seen.data is not None:
        often = plan.max_steps * space.largest().batch_size / seen.data.num_rows["train"]
        passes = f" ({often:.1f} passes over the training rows)"
    yield "budget", f"{trials} of at most {steps}{passes}, scored every {plan.report_every}"

    # How many trials would share this machine's device, and why.
    packed = str(plan.pack_size)
    if seen.data is None:
        packed += ": as many trials at once as fill the device; --data says how many here" * (packed == "auto")
    elif seen.pack_size is None:
        packed += ": decided when the base is on the accelerator"
    elif packed == "auto" or seen.pack_size.reason:
        packed += f": {seen.pack_size.size} at once on this machine ({seen.pack_size.reason})"
    yield "pack size", packed
    if space.start_from is not None:
        yield "start from", f"{space.start_from}, as the registry has it at launch"

    # What follows the trials is part of the budget.
    best, ways, refits = min(rule.candidates, plan.trials), len(kind_of(task).shots), rule.num_refits(plan.trials)
    every = "all" if seen.data is None else f"all {seen.data.num_rows['validation']:,}"
    parts = [f"{counted(refits, 'refit')} of {steps}"] if refits else []
    parts.append(f"up to {counted(best + refits, 'candidate')} answer {every} validation rows")
    if ways:
        base = f"the untouched base answers up to {BASE_MODEL_ROWS} of them in {ways} ways"
        parts.append(f"{base}, the test rows in the better one")
    yield "at the end", "; ".join(parts)


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
    space: str | None = Argument(None, help="A space whose base and files every node needs; default: none."),
    address: _out.AddressOption = None,
    tracking_uri: _out.TrackingOption = None,
    runtime_env: _out.RuntimeEnvOption = None,
    storage: _out.StorageOption = None,
    as_json: _out.JsonOption = False,
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
    rows = [(it.node, it.check, it.verdict, it.value) for it in results]
    _out.emit(as_json, results, _out.table(("node", "check", "verdict", "value"), rows))
    for hint in dict.fromkeys(f"{it.check}: {it.hint}" for it in results if it.hint and not as_json):
        _out.tell(f"\nhint: {hint}")
    if any(result.verdict == "fail" for result in results):
        raise Exit(1)
