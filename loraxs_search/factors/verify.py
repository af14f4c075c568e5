"""A few numbers that identify what an R, or a whole base, was trained in.

R has a meaning only between the factors it was trained in, so a few numbers identify a pair A, B. Each is w^T D x: D
holds the directions (rows of A, columns of B, each scaled to length one), x is a probe over features and w weighs the
components, both from fixed fractional parts. All are of order one whatever the rank and the size, so one absolute
tolerance serves. A flipped sign, a swap or a rotation moves them by far more than rounding does.
"""

from __future__ import annotations

import math
from collections.abc import Sequence

import torch
from torch import Tensor

# Another machine's LAPACK moves the numbers by less than 1e-5; one flipped sign by about 1/sqrt(rank).
FINGERPRINT_TOLERANCE = 1e-3
DIGITS = 6
_SAMPLE = 2**16
# Multiples of these have fractional parts that never repeat: one seed per probe, per sign pattern, per weighing.
_PROBES = (math.sqrt(2), math.sqrt(3))
_SIGNS = (math.sqrt(7), math.sqrt(11))
_WEIGHTS = (math.sqrt(5), math.sqrt(13), math.sqrt(17))


def fingerprint(a: Tensor, b: Tensor) -> tuple[float, ...]:
    """Return six numbers of A (r, in) and B (out, r), computed in float64 and rounded to six decimals.

    In order: two probes of A's directions, two of B's, and log2 of the weighted lengths of A's rows and B's columns.
    """
    return (*_side(a.detach()), *_side(b.detach().T))


def fingerprint_of_all(tensors: Sequence[Tensor]) -> tuple[float, float, float]:
    """Return three numbers of many tensors of any shape, in their order: two probes, and their weighted log2 lengths.

    Of each, up to 65,536 elements spread over its rows and columns are read, rounded to bfloat16: so the numbers are
    those of the checkpoint whether it was loaded in float32 or in bfloat16.
    """
    if not tensors:
        return (0.0, 0.0, 0.0)
    sides = []
    for tensor in tensors:
        step, columns = max(1, -(-tensor.numel() // _SAMPLE)), max(1, tensor.shape[-1] if tensor.ndim else 1)
        while math.gcd(step, columns) > 1:  # else some columns would never be read
            step += 1
        sides.append(_side(tensor.detach().reshape(-1)[::step].to("cpu", torch.bfloat16)[None]))
    columns_by_number = torch.tensor(sides, dtype=torch.float64).T  # (3, tensors)
    weighed = (torch.dot(_weights(len(sides), w), c) for w, c in zip(_WEIGHTS, columns_by_number, strict=True))
    first, second, third = (round(float(value), DIGITS) + 0.0 for value in weighed)
    return first, second, third


def agrees(expected: Sequence[float], actual: Sequence[float], *, tolerance: float = FINGERPRINT_TOLERANCE) -> bool:
    """Whether two fingerprints are of the same factors."""
    return len(expected) == len(actual) and all(
        abs(e - a) <= tolerance
        for e, a in zip(expected, actual, strict=True)  # False for NaN
    )


def _side(directions: Tensor) -> tuple[float, ...]:
    d = directions.to("cpu", torch.float64)  # (r, n)
    tiny = torch.finfo(torch.float64).tiny
    length = d.norm(dim=1)  # (r,)
    unit = d / length.clamp_min(tiny)[:, None]
    rank, size = d.shape
    probes = []
    for w, x, sign in zip(_WEIGHTS[:2], _PROBES, _SIGNS, strict=True):
        magnitude = 0.5 + _fraction(size, x)  # entries +-(0.5 .. 1.5), none near zero, so that every direction counts
        probe = torch.where(_fraction(size, sign) < 0.5, magnitude, -magnitude)
        probes.append(torch.dot(_weights(rank, w), unit @ probe))
    log_length = torch.dot(_weights(rank, _WEIGHTS[2]), length).clamp_min(tiny).log2()
    return tuple(round(float(value), DIGITS) + 0.0 for value in (*probes, log_length))  # + 0.0 turns -0.0 into 0.0


def _weights(rank: int, seed: float) -> Tensor:
    """Positive, pairwise different weights of components, of length one; shape (rank,)."""
    w = 0.5 + _fraction(rank, seed)
    return torch.div(w, w.norm())


def _fraction(size: int, seed: float) -> Tensor:
    return torch.frac(torch.mul(torch.arange(1, size + 1, dtype=torch.float64), seed))
