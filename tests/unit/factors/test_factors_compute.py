"""Factors are the singular triplets of the weight, in one form, whatever the rank, dtype, threads or random state."""

from __future__ import annotations

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st

from loraxs_search.errors import BaseModelError, UsageError
from loraxs_search.factors import compute
from loraxs_search.factors.compute import compute_factors, resolve_driver

SIGMAS = ("input", "sqrt", "output", "none")
BASES = ("top", "middle", "bottom")


def matrix(out_features: int, in_features: int, seed: int = 0) -> torch.Tensor:
    return torch.randn(out_features, in_features, generator=torch.Generator().manual_seed(seed))


shapes_and_ranks = st.tuples(st.integers(1, 20), st.integers(1, 20), st.integers(0, 10**6)).flatmap(
    lambda t: st.tuples(st.just(t), st.integers(1, min(t[0], t[1])), st.integers(1, min(t[0], t[1])))
)


@settings(deadline=None, max_examples=40)
@given(shapes_and_ranks, st.sampled_from(BASES))
def test_exact_prefixes_nest_bit_for_bit(case, basis):
    (out_features, in_features, seed), *ranks = case
    weight = matrix(out_features, in_features, seed)
    small, large = (compute_factors(weight, rank=r, basis=basis) for r in sorted(ranks))
    r = small.rank
    assert torch.equal(small.left, large.left[:, :r])
    assert torch.equal(small.right, large.right[:r])
    for sigma in SIGMAS:
        for one, other in zip(small.ab(r, sigma), large.ab(r, sigma), strict=True):
            assert torch.equal(one, other)


@settings(deadline=None, max_examples=40)
@given(shapes_and_ranks, st.sampled_from(["exact", "randomized"]))
def test_the_largest_entry_of_each_left_vector_is_positive(case, driver):
    (out_features, in_features, seed), rank, _ = case
    left = compute_factors(matrix(out_features, in_features, seed), rank=rank, driver=driver).left
    assert (left.gather(0, left.abs().argmax(0, keepdim=True)) > 0).all()


@pytest.mark.parametrize("driver", ["exact", "randomized"])
def test_threads_and_random_state_do_not_matter_and_are_left_alone(driver):
    weight = matrix(96, 200)
    threads = torch.get_num_threads()
    results = []
    try:
        for count, seed in ((1, 0), (2, 99)):
            torch.set_num_threads(count)
            torch.manual_seed(seed)
            state = torch.get_rng_state()
            results.append(compute_factors(weight, rank=16, driver=driver))
            assert torch.equal(torch.get_rng_state(), state)
            assert torch.get_num_threads() == count
    finally:
        torch.set_num_threads(threads)
    assert torch.equal(results[0].left, results[1].left)
    assert torch.equal(results[0].right, results[1].right)


@pytest.mark.parametrize("shape", [(80, 160), (160, 80)])
def test_the_randomised_driver_finds_the_top_components(shape):
    u, _ = torch.linalg.qr(matrix(shape[0], 80))
    v, _ = torch.linalg.qr(matrix(shape[1], 80, seed=1))
    weight = u @ torch.diag(0.9 ** torch.arange(80.0)) @ v.T
    exact, fast = (compute_factors(weight, rank=8, driver=d) for d in ("exact", "randomized"))
    torch.testing.assert_close(fast.left, exact.left, atol=1e-4, rtol=0)
    torch.testing.assert_close(fast.right, exact.right, atol=1e-4, rtol=0)
    assert (exact.driver, fast.driver) == ("exact", "randomized")


def test_every_float_dtype_is_decomposed_as_the_numbers_it_holds():
    weight = matrix(10, 14).bfloat16()
    before = weight.clone()
    factors = compute_factors(weight, rank=4)
    same_numbers = compute_factors(weight.double(), rank=4)
    assert torch.equal(factors.left, same_numbers.left)
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


@pytest.mark.parametrize("shape", [(40, 64), (64, 40)])
def test_the_randomised_driver_is_torchs_own_to_the_bit(shape):
    weight = torch.randn(shape, generator=torch.Generator().manual_seed(3), dtype=torch.float64)
    state = torch.get_rng_state()
    found = compute._randomized(weight, rank=8)
    assert torch.equal(torch.get_rng_state(), state), "nobody else's draws are touched"
    torch.manual_seed(compute.SEED)
    u, s, v = torch.svd_lowrank(weight, q=8 + compute.OVERSAMPLING, niter=compute.NUM_ITERATIONS)
    for ours, theirs in zip(found, (u, s, v.T), strict=True):
        assert torch.equal(ours, theirs)
