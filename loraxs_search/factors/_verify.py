"""Checks that factors from another machine belong to a weight: a checksum proves only that they arrived unchanged.

An exact decomposition is checked in full: the vectors are orthonormal, each triplet is one of the weight, and the
singular values are the ones that the basis names, in its order. Signs, and rotations among equal singular values, are
free: LAPACK leaves them open. The randomised driver finds the largest values up to a few percent, so there, the
values left out must not be larger than those kept.
"""

from __future__ import annotations

import secrets

import torch
from torch import Tensor

from loraxs_search.factors._compute import Factors, component_order
from loraxs_search.records import Basis
from loraxs_search.torch_threads import single_thread

TOLERANCE = 1e-5  # of the largest singular value; float32 rounding moves honest factors by less than 1e-7
SLACK = 1.15  # what the randomised driver leaves out may exceed what it keeps by this; 1.04 was seen, flat spectra
_COLUMNS, _ITERATIONS = 8, 12


@torch.no_grad()
def fault(weight: Tensor, factors: Factors, *, rank: int, basis: Basis, driver: str) -> str | None:
    """Return what is wrong with factors of a weight (out, in) that were computed elsewhere; None when nothing is."""
    if malformed := _malformed(weight, factors, rank, basis, driver):
        return malformed
    w = weight.detach().to("cpu", torch.float64)
    u, s, vt = (t.to(torch.float64) for t in (factors.left, factors.singular_values, factors.right))
    with single_thread():
        for name, vectors in (("left", u.T), ("right", vt)):
            if not (vectors @ vectors.T - torch.eye(rank, dtype=w.dtype)).abs().max() <= TOLERANCE:
                return f"its {name} vectors are not orthonormal"
        if driver == "exact":
            return _exact_fault(w, u, s, vt, basis)
        return _randomized_fault(w, u, s, vt)


def _malformed(weight: Tensor, factors: Factors, rank: int, basis: Basis, driver: str) -> str | None:
    out_features, in_features = weight.shape
    expected = {"left": (out_features, rank), "singular_values": (rank,), "right": (rank, in_features)}
    for name, shape in expected.items():
        tensor: Tensor = getattr(factors, name)
        if tuple(tensor.shape) != shape or tensor.dtype != torch.float32 or not torch.isfinite(tensor).all():
            return f"`{name}` must be finite float32 of shape {shape}, but is {tensor.dtype} of {tuple(tensor.shape)}"
    if (factors.basis, factors.driver) != (basis, driver):
        return f"it must be of basis {basis} and driver {driver}, but says {factors.basis} and {factors.driver}"
    return None


def _exact_fault(w: Tensor, u: Tensor, s: Tensor, vt: Tensor, basis: Basis) -> str | None:
    spectrum = _singular_values(w)
    limit = TOLERANCE * spectrum[0]
    if not max(_distance(w @ vt.T, u * s), _distance(w.T @ u, vt.T * s)) <= limit:
        return _NO_TRIPLETS
    named = spectrum[component_order(len(spectrum), basis)[: len(s)]]
    if not (named - s).abs().max() <= limit:
        at = int((named - s).abs().argmax())
        return f"component {at} of basis {basis} has singular value {float(named[at]):.6g}, not {float(s[at]):.6g}"
    return None


def _randomized_fault(w: Tensor, u: Tensor, s: Tensor, vt: Tensor) -> str | None:
    limit = TOLERANCE * s[0]
    # The side on which the driver projects last is exact, the other only as good as its subspace.
    tall = w.shape[0] >= w.shape[1]
    if not (_distance(w.T @ u, vt.T * s) if tall else _distance(w @ vt.T, u * s)) <= limit or (s.diff() > limit).any():
        return _NO_TRIPLETS
    left_out = _largest_left_out(w, u, vt)
    if not left_out <= SLACK * s[-1] + limit:
        return f"it leaves out a singular value of {left_out:.6g} or more, and keeps one of {float(s[-1]):.6g}"
    return None


_NO_TRIPLETS = "its vectors and singular values are not those of the weight"


def _singular_values(w: Tensor) -> Tensor:
    """Return all singular values, largest first, to some 1e-8 of the largest: from W W^T, ten times quicker."""
    gram = w @ w.T if w.shape[0] <= w.shape[1] else w.T @ w
    squares: Tensor = torch.linalg.eigvalsh(gram)
    return squares.flip(0).clamp_min(0).sqrt()


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
