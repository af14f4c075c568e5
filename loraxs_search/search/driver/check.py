"""Check a space against its base model, and its data; nothing is trained, and Ray is not needed."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass

from loraxs_search.base_model.layers import linear_modules, parameter_shapes
from loraxs_search.base_model.locate import locate
from loraxs_search.base_model.reading import resolved_pooling
from loraxs_search.base_model.tokenizer import load_tokenizer
from loraxs_search.errors import BaseModelError, TaskDataError, UsageError
from loraxs_search.records.codec import Pooling, Split
from loraxs_search.records.task import DataReport, LinearModule
from loraxs_search.search.cluster.placement import PackSize, choose_pack_size, unshared
from loraxs_search.search_space.load import Overrides, SpaceSource, load_space
from loraxs_search.search_space.space import Space, SpaceDescription, describe
from loraxs_search.tasks.kinds import kind_of
from loraxs_search.tasks.prepared import first_rows, load_data, prepare
from loraxs_search.tasks.report import data_warnings


@dataclass(frozen=True)
class CheckedSpace:
    """What was seen of a valid space; `check --json` prints it.

    Args:
        space: Its name.
        base_digest: Of the base's weights.
        rows: The number of rows of each split, of validation those that are scored; None if no data was read.
        data: Of the rows: repeated ones, and those that splits share; None if no data was read.
        pack_size: How many trials would share this machine; None if no data was read, or it has an accelerator.
        warnings: What of the data may make scores look better than they are.
        first_rows: Two train rows as the model sees them; empty if no data was read.
        description: Combinations, module groups, the smallest and the largest adapter.
        pooling: Which states heads read; `auto` of a space is resolved here.
    """

    space: str
    base_digest: str
    rows: dict[Split, int] | None
    data: DataReport | None
    pack_size: PackSize | None
    warnings: list[str]
    description: SpaceDescription
    pooling: Pooling
    first_rows: Sequence[Mapping[str, str]]


def check(space: SpaceSource, *, data: bool = False, overrides: Overrides = ()) -> CheckedSpace:
    """Check a space against its base model.

    Args:
        space: A space file, the name of a shipped one, its sections as a mapping (paths start in the working
            directory), or a loaded `Space`.
        data: Read the task's rows as well.
        overrides: As `launch` takes them.
    Raises:
        UsageError: the space has faults, and the message has all of them; or its module groups do not fit the base.
        BaseModelError: its base cannot be found, or does not fit the task; with the faults of the rows, where these are
            read.
        TaskDataError: the rows are not what the task says.
    """
    loaded = load_space(space, overrides)
    try:
        base, model = locate(loaded.base_model), kind_of(loaded.task).model
        modules = linear_modules(base, model)
        heads, body = parameter_shapes(base, model)
        description = describe(loaded, modules, heads=heads, body=body)
    except (BaseModelError, UsageError) as error:
        try:
            if data:
                load_data(loaded.task)
        except TaskDataError as other:  # the user sees the faults of both
            raise type(error)(f"{error}\n{other}", hint="; ".join(filter(None, (error.hint, other.hint)))) from error
        raise
    rows, report, pack_size, warnings, shown = None, None, None, list[str](), list[dict[str, str]]()
    if data:
        load_data(loaded.task)  # its faults before those of the tokenizer
        prepared = prepare(loaded.task, load_tokenizer(base))
        rows, report = prepared.num_scored, prepared.report
        mean_length = float(prepared.lengths("train").mean())
        pack_size = _expected_pack_size(loaded, modules, description.largest.size.head_parameters, mean_length)
        warnings, shown = data_warnings(report, rows, loaded.task.metric), first_rows(prepared, 2)
    pooling, _ = resolved_pooling(loaded.task.pooling, base)
    return CheckedSpace(loaded.name, base.weight_digest, rows, report, pack_size, warnings, description, pooling, shown)


def _expected_pack_size(
    space: Space, modules: Sequence[LinearModule], head_parameters: int, row_tokens: float
) -> PackSize | None:
    """Choose as a search on this machine would; None on an accelerator, which is timed with the base on it.

    Args:
        head_parameters: Of the largest head that a trial may train.
        row_tokens: Mean length of a train row.
    """
    import torch

    from loraxs_search.engine.passes import workers_for
    from loraxs_search.packing.capacity import fitting_slots, full_slots, token_budget

    if not space.is_packable:
        return unshared(space.methods)
    if torch.cuda.is_available():
        return None
    device = torch.device("cpu")
    largest, (num_workers, _) = space.largest(), workers_for(device)
    budget = token_budget(modules, torch.float32, device)
    fills = full_slots(device, budget, num_workers, largest.batch_size * row_tokens)
    asked = space.search.pack_size
    wanted = fills if asked == "auto" else asked
    slots = fitting_slots(wanted, modules, largest, head_parameters, num_workers, device)
    return choose_pack_size(asked, fits=slots, fills=fills, num_trials=space.search.trials, num_devices=1)
