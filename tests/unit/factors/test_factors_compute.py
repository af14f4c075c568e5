"""Factors are the singular triplets of the weight in one form; those from elsewhere are held to what is honest."""

from __future__ import annotations

import math
import re
from dataclasses import replace

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st

from loraxs_search.errors import BaseModelError, UsageError
from loraxs_search.factors import compute
from loraxs_search.factors.compute import Factors, compute_factors, fault, resolve_driver

BASES = ("top", "middle", "bottom")


def matrix(out_features: int, in_features: int, seed: int = 0) -> torch.Tensor:
    return torch.randn(out_features, in_features, generator=torch.Generator().manual_seed(seed))


def with_spectrum(values: torch.Tensor, shape: tuple[int, int]) -> torch.Tensor:
    u, v = (torch.linalg.qr(matrix(size, len(values), seed).double()).Q for seed, size in enumerate(shape, 1))
    return (u * values) @ v.T


shapes_and_ranks = st.tuples(st.integers(1, 20), st.integers(1, 20), st.integers(0, 10**6)).flatmap(
    lambda t: st.tuples(st.just(t), st.integers(1, min(t[0], t[1])), st.integers(1, min(t[0], t[1])))
)
each_driver = pytest.mark.parametrize("driver", ["exact", "randomized"])


@settings(deadline=None, max_examples=40)
@given(shapes_and_ranks, st.sampled_from(BASES))
def test_exact_prefixes_nest_bit_for_bit(case, basis):
    shape_and_seed, *ranks = case
    small, large = (compute_factors(matrix(*shape_and_seed), rank=r, basis=basis) for r in sorted(ranks))
    r = small.rank
    assert torch.equal(small.left, large.left[:, :r])
    assert torch.equal(small.right, large.right[:r])
    for sigma in ("input", "sqrt", "output", "none"):
        for one, other in zip(small.ab(r, sigma), large.ab(r, sigma), strict=True):
            assert torch.equal(one, other)


@settings(deadline=None, max_examples=40)
@given(shapes_and_ranks, st.sampled_from(["exact", "randomized"]))
def test_the_largest_entry_of_each_left_vector_is_positive(case, driver):
    left = compute_factors(matrix(*case[0]), rank=case[1], driver=driver).left
    assert (left.gather(0, left.abs().argmax(0, keepdim=True)) > 0).all()


@each_driver
def test_threads_and_random_state_do_not_matter_and_are_left_alone(driver):
    threads = torch.get_num_threads()
    results = []
    try:
        for count, seed in ((1, 0), (2, 99)):
            torch.set_num_threads(count)
            torch.manual_seed(seed)
            state = torch.get_rng_state()
            results.append(compute_factors(matrix(96, 200), rank=16, driver=driver))
            assert torch.equal(torch.get_rng_state(), state)
            assert torch.get_num_threads() == count
    finally:
        torch.set_num_threads(threads)
    assert torch.equal(results[0].left, results[1].left)
    assert torch.equal(results[0].right, results[1].right)


@pytest.mark.parametrize("shape", [(80, 160), (160, 80)])
def test_the_randomised_driver_is_torchs_own_to_the_bit_and_finds_the_top_components(shape):
    weight = with_spectrum(0.9 ** torch.arange(80.0, dtype=torch.float64), shape)
    exact, fast = (compute_factors(weight, rank=8, driver=d) for d in ("exact", "randomized"))
    torch.testing.assert_close(fast.left, exact.left, atol=1e-4, rtol=0)
    torch.testing.assert_close(fast.right, exact.right, atol=1e-4, rtol=0)
    assert (exact.driver, fast.driver) == ("exact", "randomized")
    torch.manual_seed(compute.SEED)
    u, s, v = torch.svd_lowrank(weight, q=8 + compute.OVERSAMPLING, niter=compute.NUM_ITERATIONS)
    assert all(map(torch.equal, compute._randomized(weight, rank=8), (u, s, v.T)))


def test_every_float_dtype_is_decomposed_as_the_numbers_it_holds():
    weight = matrix(10, 14).bfloat16()
    before = weight.clone()
    factors = compute_factors(weight, rank=4)
    assert torch.equal(factors.left, compute_factors(weight.double(), rank=4).left)
    assert factors.right.dtype == torch.float32
    assert torch.equal(weight, before)


def test_auto_means_exact_up_to_1024_and_for_every_other_basis():
    assert resolve_driver("auto", "top", 1024, 4096) == "exact"
    assert resolve_driver("auto", "top", 1025, 4096) == "randomized"
    assert resolve_driver("auto", "bottom", 4096, 4096) == "exact"
    assert resolve_driver("randomized", "top", 8, 8) == "randomized"


def test_what_cannot_be_decomposed_is_refused():
    for rank in (0, 6):
        with pytest.raises(UsageError, match=rf"in 1\.\.5, but got rank={rank}"):
            compute_factors(matrix(5, 9), rank=rank)
    with pytest.raises(UsageError, match=r"in 1\.\.3"):
        compute_factors(matrix(5, 9), rank=3).ab(4)
    ints, away = torch.ones(4, 4, dtype=torch.int8), torch.empty(4, 4, device="meta")
    for weight in (torch.ones(4), ints, away, torch.tensor([[1.0, float("inf")], [0.0, 1.0]])):
        with pytest.raises(BaseModelError):
            compute_factors(weight, rank=1)
    with pytest.raises(UsageError, match="top"):
        compute_factors(matrix(5, 9), rank=2, driver="randomized", basis="bottom")


# ---- factors from elsewhere: honest ones -----------------------------------------------------------------------------
RANK = 6
each_kind = pytest.mark.parametrize(
    ("basis", "driver"), [*((basis, "exact") for basis in BASES), ("top", "randomized")]
)


def judged(weight: torch.Tensor, factors: Factors, basis: str = "top", driver: str = "exact") -> str | None:
    return fault(weight, factors, rank=factors.rank, basis=basis, driver=driver)


def turned(factors: Factors, turn: torch.Tensor) -> Factors:
    """The same subspace in another basis."""
    return replace(factors, left=(factors.left @ turn).contiguous(), right=(turn.T @ factors.right).contiguous())


@each_kind
def test_what_another_machine_computes_is_taken(basis, driver):
    """Other signs, and another rotation among nearly equal values."""
    for shape, dtype in (((20, 32), torch.float32), ((32, 20), torch.bfloat16), ((24, 24), torch.float32)):
        weight = matrix(*shape).to(dtype)
        factors = compute_factors(weight, rank=RANK, basis=basis, driver=driver)
        for signs in (torch.ones(RANK), torch.tensor([1.0, -1.0]).repeat(RANK // 2)):
            assert judged(weight, turned(factors, signs.diag()), basis, driver) is None
    for apart in (0.0, 1e-9):
        values = torch.repeat_interleave(torch.arange(12.0, 2.0, -1.0, dtype=torch.float64), 2)
        values[1::2] -= apart
        weight = with_spectrum(values, (20, 32))
        factors = compute_factors(weight, rank=RANK, basis=basis, driver=driver)
        turn, s = torch.eye(RANK), factors.singular_values
        near = [(i, j) for i in range(RANK) for j in range(i) if abs(float(s[i] - s[j])) < 1e-6]
        assert near
        for i, j in near:
            turn[i, i] = turn[j, j] = math.cos(0.7)
            turn[i, j], turn[j, i] = -math.sin(0.7), math.sin(0.7)
        assert judged(weight, turned(factors, turn), basis, driver) is None


@each_driver
def test_a_weight_that_lacks_ranks_or_gaps_has_honest_factors_too(driver):
    for values in (torch.zeros(20), torch.tensor([3.0, 2.0] + [0.0] * 18), torch.ones(20)):
        weight = with_spectrum(values.double(), (20, 32))
        assert judged(weight, compute_factors(weight, rank=RANK, driver=driver), driver=driver) is None
    flat = matrix(300, 400)  # of which the randomised driver leaves out something
    assert judged(flat, compute_factors(flat, rank=40, driver=driver), driver=driver) is None


# ---- crafted ones ----------------------------------------------------------------------------------------------------
GEOMETRIC = 0.8 ** torch.arange(20.0, dtype=torch.float64)


def chosen(weight: torch.Tensor, components: list[int], basis: str = "top", driver: str = "exact") -> Factors:
    """True triplets of the weight, those that are asked for."""
    u, s, vt = torch.linalg.svd(weight.double(), full_matrices=False)
    parts = (u[:, components], s[components], vt[components])
    return Factors(*(part.float().contiguous() for part in parts), driver=driver, basis=basis)


def _orthonormal(rows: int, columns: int) -> torch.Tensor:
    return torch.linalg.qr(matrix(columns, rows, 9)).Q.T.contiguous()


CRAFTED = {
    "wrong A": (lambda f: replace(f, right=_orthonormal(RANK, 32)), "not those of the weight"),
    "wrong B": (lambda f: replace(f, left=_orthonormal(RANK, 20).T.contiguous()), "not those of"),
    "another order": (
        lambda f: replace(
            turned(f, torch.eye(6)[[0, 2, 1, 3, 4, 5]]), singular_values=f.singular_values[[0, 2, 1, 3, 4, 5]]
        ),
        "component 1|not those of",
    ),
    "one sign": (lambda f: replace(f, left=-f.left), "not those of the weight"),
    "turned": (lambda f: turned(f, _orthonormal(RANK, RANK)), "not those of the weight"),
    "not orthonormal": (lambda f: replace(f, left=f.left * 1.001), "left vectors are not orthonormal"),
    "a vector twice": (lambda f: replace(f, right=f.right[[0, 0, 2, 3, 4, 5]]), "right vectors are not"),
    "negative values": (
        lambda f: replace(f, left=-f.left, singular_values=-f.singular_values),
        "component 0|not those of|leaves out",
    ),
    "no numbers": (lambda f: replace(f, left=f.left * math.nan), "`left` must be finite"),
    "float64": (lambda f: replace(f, right=f.right.double()), "`right` must be finite float32"),
    "another rank": (lambda f: replace(f, singular_values=f.singular_values[:3]), "`singular_values` must be"),
    "another basis": (lambda f: replace(f, basis="bottom"), "must be of basis top"),
}


@each_driver
def test_crafted_factors_are_refused(driver):
    weight = with_spectrum(GEOMETRIC, (20, 32))
    honest = compute_factors(weight, rank=RANK, driver=driver)
    for craft, (change, why) in CRAFTED.items():
        said = fault(weight, change(honest), rank=RANK, basis="top", driver=driver)
        assert said is not None and re.search(why, said), craft


@each_driver
@pytest.mark.parametrize("shape", [(20, 32), (32, 20)])
def test_a_top_vector_left_out_is_noticed(shape, driver):
    weight = with_spectrum(GEOMETRIC, shape)
    for left_out in range(RANK):
        kept = [i for i in range(RANK + 1) if i != left_out]
        said = judged(weight, chosen(weight, kept, driver=driver), driver=driver)
        assert said is not None
        assert f"component {left_out} of basis top" in said if driver == "exact" else "it leaves out" in said


@pytest.mark.parametrize("basis", BASES)
def test_true_triplets_of_another_basis_are_refused(basis):
    weight = matrix(20, 32)
    bases = {"top": range(RANK), "bottom": range(19, 13, -1), "middle": (9, 10, 8, 11, 7, 12)}
    for other, components in bases.items():
        assert (judged(weight, chosen(weight, [*components], basis), basis) is None) == (basis == other)
