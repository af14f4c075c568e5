"""Check a space against its base model, and its data; nothing is trained."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from typing import get_args

from loraxs_search.base_model import body_shapes, head_shapes, linear_modules, load_tokenizer, locate
from loraxs_search.errors import LoraxsError
from loraxs_search.records import BaseModel, DataReport, Head, LinearModule, Split
from loraxs_search.search.cluster.placement import PackSize
from loraxs_search.search.driver.estimate import SearchEstimate, estimate_search
from loraxs_search.search_space import Overrides, Space, SpaceDescription, SpaceSource, describe, open_space
from loraxs_search.tasks.kinds import kind_of
from loraxs_search.tasks.prepared import load_data, locate_for, prepare
from loraxs_search.tasks.report import data_warnings


@dataclass(frozen=True)
class CheckedSpace:
    """What was seen of a valid space; `check --json` prints it.

    Args:
        space: Its name.
        base_digest: Of the base's weights.
        rows: The number of rows of each split, of validation those that are scored; None where no data was read.
        data: Of the rows: repeated ones, and those that splits share; None where no data was read.
        pack_size: How many trials would share this machine; None where no data was read, or it has an accelerator.
        warnings: What of the data may make scores look better than they are.
        description: Combinations, module groups, the smallest and the largest adapter.
        estimate: What a search would take here, where that was asked for.
        no_estimate: Why that cannot be said.
    """

    space: str
    base_digest: str
    rows: dict[Split, int] | None
    data: DataReport | None
    pack_size: PackSize | None
    warnings: list[str]
    description: SpaceDescription
    estimate: SearchEstimate | None
    no_estimate: str


def check(space: SpaceSource, *, data: bool = False, estimate: bool = False, overrides: Overrides = ()) -> CheckedSpace:
    """Check a space against its base model.

    Args:
        space: A space file, the name of a shipped one, its sections as a mapping (paths start in the working
            directory), or a loaded `Space`.
        data: Read the task's rows as well.
        estimate: Measure a few steps of drawn trials here, which takes a minute or so; reads the rows too.
        overrides: As `launch` takes them.
    Raises:
        SpaceError: the space has faults; the message has all of them.
        BaseModelError: its base cannot be found, or does not fit the task.
        TaskDataError: the rows are not what the task says.
    """
    loaded = open_space(space, overrides)
    reads = data or estimate
    base = _base_and_data(loaded, reads)
    modules, description = _described(loaded, base)
    rows, report, pack_size, warnings = None, None, None, list[str]()
    if reads:
        prepared = prepare(loaded.task, load_tokenizer(base))
        rows, report = prepared.num_scored, prepared.report
        pack_size = _pack_size(loaded, modules, description, float(prepared.lengths("train").mean()))
        warnings = data_warnings(report, rows, loaded.task.metric)
    time, unknown = _estimated(loaded) if estimate else (None, "")
    return CheckedSpace(loaded.name, base.weight_digest, rows, report, pack_size, warnings, description, time, unknown)


def _base_and_data(space: Space, data: bool) -> BaseModel:
    """Find the base and, if that is wanted, read the rows: the faults of both are reported at once."""
    if not data:
        return locate(space.base_model)
    base = locate_for(space.task, space.base_model)
    load_data(space.task)
    return base


def _described(space: Space, base: BaseModel) -> tuple[Sequence[LinearModule], SpaceDescription]:
    model = kind_of(space.task).model
    modules = linear_modules(base, model)
    heads = {head: head_shapes(base, model, head) for head in get_args(Head)}
    return modules, describe(space, modules, heads=heads, body=body_shapes(base, model))


def _pack_size(
    space: Space, modules: Sequence[LinearModule], description: SpaceDescription, mean_length: float
) -> PackSize | None:
    from loraxs_search.search.cluster.placement import expected_pack_size

    return expected_pack_size(space, modules, description.largest.size.head_parameters, mean_length)


def _estimated(space: Space) -> tuple[SearchEstimate | None, str]:
    """Return what a search would take here, or None and why that cannot be said."""
    try:
        return estimate_search(space), ""
    except LoraxsError as error:
        return None, error.message
