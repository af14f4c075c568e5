"""Which rows share a pass over the base: pure planning, no torch.

A round is one optimizer step of each trial in it. Its rows are spread over as few passes as their lengths allow: rows
of similar length share a pass, whichever trial they belong to, and a trial's gradient is summed over its passes.
"""

from __future__ import annotations

from collections.abc import Hashable, Sequence
from dataclasses import dataclass

import numpy as np
import numpy.typing as npt

from loraxs_search.errors import UsageError
from loraxs_search.tasks.encoded import RUN_TOKENS, cheapest_runs

Indices = npt.NDArray[np.int64]

PASS_TOKENS = RUN_TOKENS  # what one more pass costs beside its tokens


@dataclass(frozen=True)
class Demand:
    """The rows that one trial wants computed.

    Args:
        trial: Unique among the demands of a plan.
        lengths: Tokens of each row, shape (n,).
    """

    trial: Hashable
    lengths: npt.NDArray[np.integer]


@dataclass(frozen=True)
class Share:
    """What a pass computes for one trial: `positions` into the demand's rows, ascending, at least one."""

    trial: Hashable
    positions: Indices


@dataclass(frozen=True)
class Pass:
    """Rows that go through the base together, padded to `width` tokens; each trial's rows are one block of it."""

    width: int
    shares: tuple[Share, ...]

    @property
    def num_rows(self) -> int:
        return sum(len(share.positions) for share in self.shares)

    @property
    def num_tokens(self) -> int:
        """Padded tokens, which is what the base computes."""
        return self.num_rows * self.width


def plan_passes(demands: Sequence[Demand], max_tokens: int, pass_tokens: int = PASS_TOKENS) -> list[Pass]:
    """Plan passes that compute every row of every demand exactly once, the longest rows first.

    The plan minimises padded tokens plus `pass_tokens` for each pass, and follows from the arguments alone. Within a
    pass the trials come in the order of `demands`.

    Args:
        max_tokens: No pass has more padded tokens than this.
    Raises:
        UsageError: a row is longer than `max_tokens`.
    """
    for demand in demands:
        if len(demand.lengths) and (longest := int(demand.lengths.max())) > max_tokens:
            raise UsageError(
                f"`max_tokens` must hold the longest row, but got max_tokens={max_tokens} for a row of {longest} tokens"
                f" of trial {demand.trial}.",
                hint=f"lower the task's `max_length` to {max_tokens}, or give the host a budget of {longest} or more",
            )
    return _planned(demands, max_tokens, pass_tokens) if any(len(demand.lengths) for demand in demands) else []


def padding(demands: Sequence[Demand], passes: Sequence[Pass]) -> float:
    """Return padded tokens over real ones; 1.0 when there are none."""
    real = sum(int(demand.lengths.sum()) for demand in demands)
    return sum(shared.num_tokens for shared in passes) / real if real else 1.0


def _planned(demands: Sequence[Demand], max_tokens: int, pass_tokens: int) -> list[Pass]:
    lengths = np.concatenate([np.maximum(demand.lengths, 1) for demand in demands]).astype(np.int64)
    owners = np.repeat(np.arange(len(demands)), [len(demand.lengths) for demand in demands])
    positions = np.concatenate([np.arange(len(demand.lengths)) for demand in demands])
    order = np.argsort(-lengths, kind="stable")
    passes = []
    for rows in _cut(lengths[order], max_tokens, pass_tokens):
        chosen = np.sort(order[rows])  # back to the order of demands, so that each trial's rows are one block
        shares = tuple(
            Share(demands[owner].trial, positions[chosen[owners[chosen] == owner]])
            for owner in dict.fromkeys(owners[chosen].tolist())
        )
        passes.append(Pass(round_up(int(lengths[chosen].max()), max_tokens), shares))
    return passes


def _cut(lengths: Indices, max_tokens: int, pass_tokens: int) -> list[slice]:
    """Cut rows, sorted longest first, into the cheapest runs of 2^i rows."""
    widths = {int(length): round_up(int(length), max_tokens) for length in np.unique(lengths)}
    return cheapest_runs([widths[length] for length in lengths.tolist()], max_tokens, pass_tokens, few_sizes=True)


def round_up(width: int, max_tokens: int) -> int:
    """Return the next width that passes are padded to: 16 steps to each doubling, at most `max_tokens`.

    Together with rows in powers of two it keeps the shapes of passes few: a CPU's matrix kernels are built for
    each shape, which costs as much as a pass.
    """
    step = 1 << max(0, width.bit_length() - 5)
    return min(max_tokens, -(-width // step) * step)
