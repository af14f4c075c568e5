"""Whether factors are those of a weight, and those that an R was trained in.

Factors from another machine are checked against the weight: a checksum proves only that they arrived unchanged. An
exact decomposition is checked in full: the vectors are orthonormal, each triplet is one of the weight, and the singular
values are the ones that the basis names, in its order. Signs, and rotations among equal singular values, are free:
LAPACK leaves them open. The randomised driver finds the largest values up to a few percent, so there, the values left
out must not be larger than those kept.

R has a meaning only between the factors it was trained in, so a few numbers identify a pair A, B. Each is w^T D x: D
holds the directions (rows of A, columns of B, each scaled to length one), x is a probe over features and w weighs the
components, both from fixed fractional parts. All are of order one whatever the rank and the size, so one absolute
tolerance serves. A flipped sign, a swap or a rotation moves them by far more than rounding does.
"""

from __future__ import annotations

import math
import secrets
from collections.abc import Sequence

import torch
from torch import Tensor

from loraxs_search.factors.compute import Factors, component_order
from loraxs_search.machine import single_thread
from loraxs_search.records.literals import Basis

_SPECTRUM_TOLERANCE = 1e-5  # of the largest singular value; float32 rounding moves honest factors by less than 1e-7
SLACK = 1.15  # what the randomised driver leaves out may exceed what it keeps by this; 1.04 was seen, flat spectra
_COLUMNS, _ITERATIONS = 8, 12
_NO_TRIPLETS = "its vectors and singular values are not those of the weight"


@torch.no_grad()
def fault(weight: Tensor, factors: Factors, *, rank: int, basis: Basis, driver: str) -> str | None:
    """Return what is wrong with factors of a weight (out, in) that were computed elsewhere; None when nothing is."""
    out_features, in_features = weight.shape
    expected = {"left": (out_features, rank), "singular_values": (rank,), "right": (rank, in_features)}
    for name, shape in expected.items():
        tensor: Tensor = getattr(factors, name)
        if tuple(tensor.shape) != shape or tensor.dtype != torch.float32 or not torch.isfinite(tensor).all():
            return f"`{name}` must be finite float32 of shape {shape}, but is {tensor.dtype} of {tuple(tensor.shape)}"
    if (factors.basis, factors.driver) != (basis, driver):
        return f"it must be of basis {basis} and driver {driver}, but says {factors.basis} and {factors.driver}"
    w = weight.detach().to("cpu", torch.float64)
    u, s, vt = (t.to(torch.float64) for t in (factors.left, factors.singular_values, factors.right))
    with single_thread():
        for name, vectors in (("left", u.T), ("right", vt)):
            if not (vectors @ vectors.T - torch.eye(rank, dtype=w.dtype)).abs().max() <= _SPECTRUM_TOLERANCE:
                return f"its {name} vectors are not orthonormal"
        along_v, along_u = _distance(w @ vt.T, u * s), _distance(w.T @ u, vt.T * s)
        wrong = None
        if driver == "exact":
            # All singular values, largest first, to some 1e-8 of the largest: from W W^T, ten times quicker.
            squares: Tensor = torch.linalg.eigvalsh(w @ w.T if w.shape[0] <= w.shape[1] else w.T @ w)
            spectrum = squares.flip(0).clamp_min(0).sqrt()
            limit = _SPECTRUM_TOLERANCE * spectrum[0]
            named = spectrum[component_order(len(spectrum), basis)[: len(s)]]
            if not max(along_v, along_u) <= limit:
                wrong = _NO_TRIPLETS
            elif not (named - s).abs().max() <= limit:
                at = int((named - s).abs().argmax())
                wrong = f"component {at} of basis {basis} has singular value {named[at]:.6g}, not {s[at]:.6g}"
            return wrong
        limit = _SPECTRUM_TOLERANCE * s[0]
        # The side on which the driver projects last is exact, the other only as good as its subspace.
        if not (along_u if w.shape[0] >= w.shape[1] else along_v) <= limit or (s.diff() > limit).any():
            wrong = _NO_TRIPLETS
        elif not (left_out := _largest_left_out(w, u, vt)) <= SLACK * s[-1] + limit:
            wrong = f"it leaves out a singular value of {left_out:.6g} or more, and keeps one of {s[-1]:.6g}"
        return wrong


def _largest_left_out(w: Tensor, u: Tensor, vt: Tensor) -> float:
    """Return a lower bound, some percent below it, of the largest singular value of what U and V do not span.

    By power iterations from a start that nobody can foresee, and so hide a vector from.
    """
    generator = torch.Generator().manual_seed(secrets.randbits(63))
    x = torch.randn(w.shape[1], _COLUMNS, dtype=w.dtype, generator=generator)
    for _ in range(_ITERATIONS):
        x = torch.linalg.qr(x - vt.T @ (vt @ x)).Q
        y = w @ x
        y = y - u @ (u.T @ y)
        x = w.T @ y
    return float(torch.linalg.matrix_norm(y, ord=2))


def _distance(a: Tensor, b: Tensor) -> Tensor:
    """Return how far the furthest column of one is from that of the other."""
    lengths: Tensor = (a - b).norm(dim=0)
    return lengths.max()


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
