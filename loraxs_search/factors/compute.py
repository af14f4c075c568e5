"""From a weight W (out, in) to its factors: W = U S V^T, cut to k components, in one canonical form.

Both drivers work in float64 on one thread and round to float32 at the end. In float32 the columns of U move by up to
2e-3 with the number of threads (measured at rank 64, where singular values lie close); in float64 they keep their bits.
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import Literal

import torch
from torch import Tensor

from loraxs_search.errors import BaseModelError, RankError, UsageError
from loraxs_search.machine import single_thread
from loraxs_search.records.literals import SVD_BASES, Basis, Sigma, factor_bucket


def check_rank(rank: int, limit: int) -> None:
    """Raise RankError unless 1 <= rank <= limit."""
    if not 1 <= rank <= limit:
        raise RankError(f"`rank` must be in 1..{limit}, but got rank={rank}.")


def check_weight(weight: Tensor) -> None:
    """Raise BaseModelError unless `weight` is a float matrix that holds numbers."""
    if weight.ndim != 2 or not weight.is_floating_point() or weight.is_meta:
        where = "meta (no numbers)" if weight.is_meta else str(weight.device)
        raise BaseModelError(
            "A weight must be a float matrix (out, in) to be decomposed, "
            f"but got shape={tuple(weight.shape)} dtype={weight.dtype} device={where}.",
            hint="adapt linear layers only, after their weights are loaded (dequantised when quantised)",
        )


Driver = Literal["auto", "exact", "randomized"]

MAX_EXACT_SIZE = 1024  # smaller side of the largest weight that `auto` decomposes in full: 2 s on one core
OVERSAMPLING = 16
NUM_ITERATIONS = 10
SEED = 0


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
            RankError: `rank` is outside 1..k.
        """
        check_rank(rank, self.rank)
        u, s, vt = self.left[:, :rank], self.singular_values[:rank], self.right[:rank]  # (out, r), (r,), (r, in)
        root = s.sqrt()
        on_a = {"input": s, "sqrt": root}.get(sigma)
        on_b = {"output": s, "sqrt": root}.get(sigma)
        a = vt.clone() if on_a is None else on_a[:, None] * vt
        b = u.clone() if on_b is None else u * on_b
        return a.contiguous(), b.contiguous()


def default_factor_rank(rank: int, out_features: int, in_features: int) -> int:
    """Return the rank at which factors are stored for an adapter of `rank`: `factor_bucket`, at most min(out, in)."""
    check_rank(rank, min(out_features, in_features))
    return min(factor_bucket(rank), out_features, in_features)


def resolve_driver(driver: Driver, basis: Basis, out_features: int, in_features: int) -> Literal["exact", "randomized"]:
    """Return the driver that `auto` means for a weight of this shape.

    Raises:
        UsageError: a basis other than `top` is asked of the randomised driver.
    """
    assert basis in SVD_BASES  # `gaussian` is drawn, not computed
    if basis != "top":
        if driver == "randomized":
            raise UsageError(
                f"`basis` must be 'top' with the randomized driver, but got basis={basis!r}.",
                hint="the randomized driver finds only the largest singular values; use driver='exact'",
            )
        return "exact"
    if driver == "auto":
        return "exact" if min(out_features, in_features) <= MAX_EXACT_SIZE else "randomized"
    return driver


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
        RankError: `rank` is outside 1..min(out, in).
        BaseModelError: the weight is not a finite float matrix.
        UsageError: the randomised driver finds no such `basis`.
    Source: arXiv 2405.17604, section 3; differs in oversampling (16 columns) and sign, which the paper leaves open.
    """
    check_weight(weight)
    resolved = resolve_driver(driver, basis, *weight.shape)
    check_rank(rank, min(weight.shape))
    w = weight.detach().to("cpu", torch.float64)
    if not torch.isfinite(w).all():
        raise BaseModelError("A weight must be finite to be decomposed, but got NaN or infinity in it.")
    left, singular_values, right = decompose(w, rank=rank, driver=resolved, basis=basis)
    return Factors(left, singular_values, right, driver=resolved, basis=basis)


def gaussian_factors(out_features: int, in_features: int, *, rank: int, generator: torch.Generator) -> Factors:
    """Draw A (rank, in) and B (out, rank) at random, in place of singular vectors; all singular values are one.

    Each entry is normal with variance 1 / fan-in (Kaiming): in for A, rank for B, so the ranks do not nest.

    Source: arXiv 2405.17604, the control of its ablation; its code draws uniformly, with the variances of Kaiming too.
    """
    a = torch.randn(rank, in_features, dtype=torch.float64, generator=generator) / in_features**0.5
    b = torch.randn(out_features, rank, dtype=torch.float64, generator=generator) / rank**0.5
    return Factors(b.float(), torch.ones(rank), a.float(), driver="exact", basis="gaussian")


def decompose(w: Tensor, *, rank: int, driver: str, basis: Basis = "top") -> tuple[Tensor, Tensor, Tensor]:
    """Return U, S and V^T of a float64 matrix on the CPU in their canonical form, float32, cut to `rank`."""
    with single_thread():
        u, s, vt = torch.linalg.svd(w, full_matrices=False) if driver == "exact" else _randomized(w, rank)
    chosen = component_order(s.shape[0], basis)[:rank]
    u, s, vt = u[:, chosen], s[chosen], vt[chosen]
    peak = u.gather(0, u.abs().argmax(dim=0, keepdim=True))  # (1, k)
    sign = torch.where(peak < 0, -1.0, 1.0).to(u.dtype)
    u, vt = u * sign, vt * sign.T
    return u.to(torch.float32).contiguous(), s.to(torch.float32).contiguous(), vt.to(torch.float32).contiguous()


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


def component_order(size: int, basis: Basis) -> Tensor:
    """Return a permutation of 0..size-1 whose every prefix is the basis at that rank."""
    ascending = torch.arange(size)
    if basis == "bottom":
        return ascending.flip(0)
    if basis == "middle":
        # |2 i - (size - 1)| is twice the distance from the centre; the stable sort takes the larger value first.
        return torch.argsort((2 * ascending - (size - 1)).abs(), stable=True)
    return ascending
