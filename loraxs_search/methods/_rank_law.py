"""The law of a rank: no larger than the smaller side of a layer."""

from __future__ import annotations

from collections.abc import Mapping, Sequence

from loraxs_search.errors import RankError
from loraxs_search.records import LinearModule


def check_ranks(ranks: int | Mapping[str, int], modules: Sequence[LinearModule]) -> None:
    """Hold each layer's rank against its smaller side.

    Args:
        ranks: One for all layers, or by name.
    Raises:
        RankError: it is above one of them, or below 1; the message names the layer that it fits least.
    """
    own = {module.name: ranks if isinstance(ranks, int) else ranks[module.name] for module in modules}
    smallest = min(modules, key=lambda module: module.smaller_side - own[module.name])
    rank = own[smallest.name]
    if not 1 <= rank <= smallest.smaller_side:
        raise RankError(
            f"`rank` must be in 1..{smallest.smaller_side}, but got rank={rank} for {smallest.name}.",
            hint="lower the rank, or leave this module out of target_modules",
        )
