"""How many trials would share this machine's device: what `auto` comes to, before anything is loaded."""

from __future__ import annotations

from collections.abc import Sequence

from loraxs_search.records import LinearModule
from loraxs_search.search.cluster.placement import PackSize, choose_pack_size, processes_that_fit, unshared
from loraxs_search.search_space import Space


def expected_pack_size(
    space: Space, modules: Sequence[LinearModule], head_parameters: int, row_tokens: float
) -> PackSize | None:
    """Choose as a search on this machine alone would; None on an accelerator, which is timed with the base on it.

    Args:
        head_parameters: Of the largest head that a trial may train.
        row_tokens: Mean length of a train row.
    """
    import torch

    from loraxs_search.engine.planning import workers_for
    from loraxs_search.packing.capacity import fitting_slots, full_slots, full_tokens, slot_bytes, token_budget

    if not space.is_packable:
        return unshared(space.methods)
    if torch.cuda.is_available():
        return None
    device = torch.device("cpu")
    largest, (num_workers, _) = space.largest(), workers_for(device)
    budget = token_budget(modules, torch.float32, device)
    fills = full_slots(full_tokens(device, budget, lambda _: 0.0), num_workers, largest.batch_size * row_tokens)
    asked = space.search.pack_size
    wanted = fills if asked == "auto" else asked
    slots = fitting_slots(wanted, slot_bytes(modules, largest, head_parameters, num_workers), device)
    fits = min(slots, processes_that_fit())
    return choose_pack_size(asked, fits=fits, fills=fills, num_trials=space.search.trials, num_devices=1)
