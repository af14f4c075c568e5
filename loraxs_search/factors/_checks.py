"""What a request for factors must keep to."""

from __future__ import annotations

from torch import Tensor

from loraxs_search.errors import BaseModelError, RankError, UsageError, unknown_name


def check_rank(rank: int, limit: int) -> None:
    """Raise RankError unless 1 <= rank <= limit."""
    if not 1 <= rank <= limit:
        raise RankError(f"`rank` must be in 1..{limit}, but got rank={rank}.")


def check_choice(name: str, value: str, known: tuple[str, ...]) -> None:
    """Raise UsageError unless `value` is one of `known`."""
    if value not in known:
        raise UsageError(unknown_name(name, value, known))


def check_weight(weight: Tensor) -> None:
    """Raise BaseModelError unless `weight` is a float matrix that holds numbers."""
    if weight.ndim != 2 or not weight.is_floating_point() or weight.is_meta:
        where = "meta (no numbers)" if weight.is_meta else str(weight.device)
        raise BaseModelError(
            "A weight must be a float matrix (out, in) to be decomposed, "
            f"but got shape={tuple(weight.shape)} dtype={weight.dtype} device={where}.",
            hint="adapt linear layers only, after their weights are loaded (dequantised when quantised)",
        )
