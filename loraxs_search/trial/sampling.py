"""Which token follows: the likeliest, or one drawn by seed. Letters: n rows, V tokens of the vocabulary."""

from __future__ import annotations

import hashlib

import numpy as np
import numpy.typing as npt
import torch
from torch import Tensor

from loraxs_search.tasks.kinds import Sampling


def two_largest(logits_nV: Tensor) -> tuple[Tensor, Tensor]:
    """Return the likeliest token of each row, (n,) int64, and by how much it beats the second, (n,) float32.

    The margin is NaN where a logit is NaN or positive infinity: such logits come first.
    """
    values_n2, tokens_n2 = logits_nV.topk(2, dim=-1)
    largest_n, margin_n = values_n2[:, 0], values_n2[:, 0] - values_n2[:, 1]
    return tokens_n2[:, 0], torch.where(largest_n.isfinite(), margin_n, torch.nan)


def uniform_numbers(sampling: Sampling, prompt: npt.NDArray[np.integer], count: int) -> npt.NDArray[np.float64]:
    """Return what a row draws with, one number in [0, 1) for each step, (count,): of seed, prompt and step alone."""
    digest = hashlib.sha256(f"{sampling.seed} {prompt.tolist()}".encode()).digest()
    # Raw draws, since numpy keeps those stable for ever but not what Generator makes of them.
    bits = np.random.PCG64(np.random.SeedSequence(int.from_bytes(digest, "little")))
    return (bits.random_raw(count) >> np.uint64(11)).astype(np.float64) * 2.0**-53


def draw(logits_V: Tensor, sampling: Sampling, number: float) -> int:
    """Return the token at `number`, in [0, 1), of the distribution's cumulative sum.

    Tokens are summed by their ids, not by their probabilities: those of two that are nearly equally likely would
    change places with the rounding of other company, and all draws between with them.
    """
    p_V = torch.softmax(logits_V.double() / sampling.temperature, 0)
    if sampling.top_p < 1:
        sorted_V, order_V = p_V.sort(descending=True, stable=True)
        outside_V = sorted_V.cumsum(0) - sorted_V >= sampling.top_p  # what comes before is enough
        p_V[order_V[outside_V]] = 0
    sums_V = p_V.cumsum(0)
    token = int(torch.searchsorted(sums_V, number * sums_V[-1], right=True))
    return min(token, int(p_V.nonzero()[-1]))
