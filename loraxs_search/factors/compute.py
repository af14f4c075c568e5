"""From a weight W (out, in) to its factors: W = U S V^T, cut to k components, in one canonical form.

Both drivers work in float64 on one thread and round to float32 at the end. In float32 the columns of U move by up to
2e-3 with the number of threads (measured at rank 64, where singular values lie close); in float64 they keep their bits.

Factors from another machine are checked against the weight: a checksum proves only that they arrived unchanged. An
exact decomposition is checked in full: the vectors are orthonormal, each triplet is one of the weight, and the singular
values are the ones that the basis names, in its order. Signs, and rotations among equal singular values, are free:
LAPACK leaves them open. The randomised driver finds the largest values up to a few percent, so there, the values left
out must not be larger than those kept.
"""

from __future__ import annotations

import secrets
from dataclasses import dataclass
from typing import Literal, NamedTuple

import torch
from torch import Tensor

from loraxs_search.errors import BaseModelError, UsageError
from loraxs_search.machine import single_thread
from loraxs_search.records.codec import SVD_BASES, Basis, Sigma

Driver = Literal["auto", "exact", "randomized"]

MAX_EXACT_SIZE = 1024  # smaller side of the largest weight that `auto` decomposes in full: 2 s on one core
OVERSAMPLING = 16
NUM_ITERATIONS = 10
SEED = 0


class FactorKey(NamedTuple):
    """Which factors of a weight: those of one key are cut from the same matrices.

    Args:
        rank: At which they are stored.
        variant: Names another machine's factors where this one's are not those of the training; empty means this one's.
            Of the basis `gaussian`, the seed that A and B are drawn from.
    """

    basis: Basis
    rank: int
    driver: Literal["exact", "randomized"]
    variant: str = ""


@dataclass(frozen=True, eq=False)
class Factors:
    """k singular triplets of one weight, ordered by their basis; any prefix is the factors at a smaller rank.

    Args:
        left: U, shape (out, k), float32, orthonormal columns; the largest |entry| of each is positive.
        singular_values: Shape (k,), float32.
        right: V^T, shape (k, in), float32, orthonormal rows.
        driver: `exact` or `randomized`, never `auto`.
    """

    left: Tensor
    singular_values: Tensor
    right: Tensor
    driver: str
    basis: str

    @property
    def rank(self) -> int:
        """Number of stored components."""
        return self.singular_values.shape[0]

    def ab(self, rank: int, sigma: Sigma = "input") -> tuple[Tensor, Tensor]:
        """Return A (rank, in) and B (out, rank), float32 and contiguous, of the update `scale * B R A`.

        `sigma` places the singular values: `input` A = S V^T, B = U (the paper's); `sqrt` on both sides; `output`
        A = V^T, B = U S; `none` A = V^T, B = U.

        Raises:
            UsageError: `rank` is outside 1..k.
        """
        _check_rank(rank, self.rank)
        u, s, vt = self.left[:, :rank], self.singular_values[:rank], self.right[:rank]  # (out, r), (r,), (r, in)
        root = s.sqrt()
        on_a = {"input": s, "sqrt": root}.get(sigma)
        on_b = {"output": s, "sqrt": root}.get(sigma)
        a = vt.clone() if on_a is None else on_a[:, None] * vt
        b = u.clone() if on_b is None else u * on_b
        return a.contiguous(), b.contiguous()


def resolve_driver(driver: Driver, basis: Basis, out_features: int, in_features: int) -> Literal["exact", "randomized"]:
    """Return the driver that `auto` means for a weight of this shape.

    Raises:
        UsageError: a basis other than `top` is asked of the randomised driver.
    """
    assert basis in SVD_BASES  # `gaussian` is drawn, not computed
    if basis != "top" and driver == "randomized":
        raise UsageError(
            f"`basis` must be 'top' with the randomized driver, but got basis={basis!r}.",
            hint="the randomized driver finds only the largest singular values; use driver='exact'",
        )
    if driver == "auto":
        return "exact" if basis != "top" or min(out_features, in_features) <= MAX_EXACT_SIZE else "randomized"
    return driver


def _check_rank(rank: int, limit: int) -> None:
    if not 1 <= rank <= limit:
        raise UsageError(f"`rank` must be in 1..{limit}, but got rank={rank}.")


def checked_driver(weight: Tensor, *, rank: int, basis: Basis, driver: Driver) -> Literal["exact", "randomized"]:
    """Return the driver that decomposes a weight, after checking what can be checked without reading its numbers.

    Raises:
        BaseModelError: the weight is not a float matrix.
        UsageError: as `compute_factors`.
    """
    if weight.ndim != 2 or not weight.is_floating_point() or weight.is_meta:
        where = "meta (no numbers)" if weight.is_meta else str(weight.device)
        raise BaseModelError(
            "A weight must be a float matrix (out, in) to be decomposed, "
            f"but got shape={tuple(weight.shape)} dtype={weight.dtype} device={where}.",
            hint="adapt linear layers only, after their weights are loaded, of a base that is not quantised",
        )
    _check_rank(rank, min(weight.shape))
    return resolve_driver(driver, basis, *weight.shape)


@torch.no_grad()
def compute_factors(weight: Tensor, *, rank: int, basis: Basis = "top", driver: Driver = "auto") -> Factors:
    """Decompose a weight on the CPU; the same weight gives the same bits on one machine, whatever ran before.

    W = U S V^T, keeping `rank` triplets chosen by `basis`. The exact driver's triplets do not depend on `rank`; the
    randomised driver's do, slightly, so factors are kept at one rank and cut.

    Args:
        weight: Base weight, shape (out, in), any float dtype and device; read, not changed.
        basis: `top` (largest singular values), `bottom` (smallest first), `middle` (from the centre outwards).
        driver: `exact` (LAPACK), `randomized` (torch.svd_lowrank), or `auto` by size.
    Returns:
        Factors of rank `rank`, float32, contiguous, on the CPU.
    Raises:
        UsageError: `rank` is outside 1..min(out, in), or the randomised driver finds no such `basis`.
        BaseModelError: the weight is not a finite float matrix.
    Source: arXiv 2405.17604, section 3; differs in oversampling (16 columns) and sign, which the paper leaves open.
    """
    resolved = checked_driver(weight, rank=rank, basis=basis, driver=driver)
    w = weight.detach().to("cpu", torch.float64)
    if not torch.isfinite(w).all():
        raise BaseModelError("A weight must be finite to be decomposed, but got NaN or infinity in it.")
    with single_thread():
        u, s, vt = torch.linalg.svd(w, full_matrices=False) if resolved == "exact" else _randomized(w, rank)
    chosen = _component_order(len(s), basis)[:rank]
    u, s, vt = u[:, chosen], s[chosen], vt[chosen]
    peak = u.gather(0, u.abs().argmax(dim=0, keepdim=True))  # (1, k)
    sign = torch.where(peak < 0, -1.0, 1.0).to(u.dtype)
    left, values, right = (part.to(torch.float32).contiguous() for part in (u * sign, s, vt * sign.T))
    return Factors(left, values, right, driver=resolved, basis=basis)


def _randomized(w: Tensor, rank: int) -> tuple[Tensor, Tensor, Tensor]:
    """Do what `torch.svd_lowrank` does with its seed at `SEED`, to the bit, and without the generator of the process.

    Source: Halko et al., arXiv 0909.4061, algorithms 4.4 and 5.1.
    """
    tall = w if w.shape[0] >= w.shape[1] else w.T
    generator = torch.Generator().manual_seed(SEED)
    columns = min(rank + OVERSAMPLING, *w.shape)
    q = torch.linalg.qr(tall @ torch.randn(tall.shape[1], columns, dtype=w.dtype, generator=generator)).Q
    for _ in range(NUM_ITERATIONS):
        q = torch.linalg.qr(tall.T @ q).Q
        q = torch.linalg.qr(tall @ q).Q
    u, s, vt = torch.linalg.svd(q.T @ tall, full_matrices=False)
    u = q @ u
    return (u, s, vt) if tall is w else (vt.T, s, u.T)


def _component_order(size: int, basis: Basis) -> Tensor:
    """Return a permutation of 0..size-1 whose every prefix is the basis at that rank."""
    ascending = torch.arange(size)
    if basis == "bottom":
        return ascending.flip(0)
    if basis == "middle":
        # |2 i - (size - 1)| is twice the distance from the centre; the stable sort takes the larger value first.
        return torch.argsort((2 * ascending - (size - 1)).abs(), stable=True)
    return ascending


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
        along_v, along_u = ((x - y).norm(dim=0).max() for x, y in ((w @ vt.T, u * s), (w.T @ u, vt.T * s)))
        wrong = None
        if driver == "exact":
            # All singular values, largest first, to some 1e-8 of the largest: from W W^T, ten times quicker.
            squares: Tensor = torch.linalg.eigvalsh(w @ w.T if w.shape[0] <= w.shape[1] else w.T @ w)
            spectrum = squares.flip(0).clamp_min(0).sqrt()
            limit = _SPECTRUM_TOLERANCE * spectrum[0]
            named = spectrum[_component_order(len(spectrum), basis)[: len(s)]]
            if not max(along_v, along_u) <= limit:
                wrong = _NO_TRIPLETS
            elif not (named - s).abs().max() <= limit:
                at = int((named - s).abs().argmax())
                wrong = f"component {at} of basis {basis} has singular value {named[at]:.6g}, not {s[at]:.6g}"
            return wrong
        limit = _SPECTRUM_TOLERANCE * s[0]
        # The side on which the driver projects last is exact, the other only as good as its subspace.
        if not (along_u if w.shape[0] >= w.shape[1] else along_v) <= limit or (s.diff() > limit).any():
            return _NO_TRIPLETS
        # A lower bound, some percent below it, of the largest singular value that U and V leave out: by power
        # iterations from a start that nobody can foresee, and so hide a vector from.
        generator = torch.Generator().manual_seed(secrets.randbits(63))
        x = torch.randn(w.shape[1], _COLUMNS, dtype=w.dtype, generator=generator)
        for _ in range(_ITERATIONS):
            x = torch.linalg.qr(x - vt.T @ (vt @ x)).Q
            y = w @ x
            y = y - u @ (u.T @ y)
            x = w.T @ y
        if not (left_out := float(torch.linalg.matrix_norm(y, ord=2))) <= SLACK * s[-1] + limit:
            wrong = f"it leaves out a singular value of {left_out:.6g} or more, and keeps one of {s[-1]:.6g}"
        return wrong
