"""LoRA-XS for many adapters in one pass: rows, gradients and factors are those of each adapter alone."""

from __future__ import annotations

import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st
from torch import nn
from transformers.pytorch_utils import Conv1D

from loraxs_search.engine.layers import RowMap, RowSegment
from loraxs_search.factors.compute import FactorKey
from loraxs_search.factors.store import FactorStore
from loraxs_search.methods.loraxs import ModuleSettings, packed
from loraxs_search.methods.loraxs.packed import FactorPairs, _FactorPair, _TrainedCores, add_core_update_

IN, OUT = 8, 6


def a_pair(rank: int) -> _FactorPair:
    return _FactorPair(torch.randn(rank, IN, dtype=torch.float64), torch.randn(rank, OUT, dtype=torch.float64))


@given(st.lists(st.integers(1, 3), min_size=1, max_size=5), st.integers(1, 4), st.permutations(range(6)), st.booleans())
def test_rows_of_one_position_get_their_own_slots_core(sizes, rank, order, many):
    """Few rows are computed by every core at once, many slot by slot; a slot that has diverged harms no other."""
    pair, cores = a_pair(rank), torch.randn(6, rank, rank, dtype=torch.float64)
    cores[order[len(sizes)]] = torch.nan
    edges = [sum(sizes[:i]) for i in range(len(sizes) + 1)]
    segments = [RowSegment(order[i], edges[i], edges[i + 1]) for i in range(len(sizes))]
    x, y = torch.randn(edges[-1], IN, dtype=torch.float64), torch.randn(edges[-1], OUT, dtype=torch.float64)
    slots = torch.tensor(order[: len(sizes)]).repeat_interleave(torch.tensor(sizes))
    expected = y.clone()
    z = add_core_update_(x, expected, pair, cores[slots])
    update = _TrainedCores(cores, torch.zeros(1), [pair], (0,) * 6)
    with pytest.MonkeyPatch.context() as patch:
        if many:
            patch.setattr(packed, "_MOST_BY_EVERY_CORE", 0)
        (saved,) = update.add_(x, y, RowMap(segments, torch.device("cpu")))
    torch.testing.assert_close(y, expected)
    torch.testing.assert_close(saved, z)


def settings(rank: int, basis: str = "top", sigma: str = "input", scale: float = 1.0) -> ModuleSettings:
    return ModuleSettings(rank, scale, sigma, FactorKey(basis, 4, "exact"))


@pytest.fixture
def linears():
    layers = {"first": nn.Linear(IN, OUT), "second": Conv1D(OUT, IN)}
    return {name: layer.requires_grad_(False) for name, layer in layers.items()}


@pytest.fixture
def pairs(linears, tmp_path):
    store = FactorStore(tmp_path / "factors")
    return FactorPairs(linears, lambda: store)


def test_a_pair_is_made_once_forgotten_with_its_rank_and_zero_beyond_its_factors(linears, pairs):
    key = settings(2).factor_key
    pair = pairs.pair("second", key, 2)
    assert pairs.pair("second", key, 2) is pair
    assert (pair.a.shape, pair.b_t.shape) == ((2, IN), (2, OUT))
    assert pair.a.is_contiguous() and pair.b_t.is_contiguous()
    pairs.keep(3, [])
    assert pairs.pair("second", key, 2) is not pair
    wide, whole = pairs.pair("first", key, 6), pairs.factors("first", key)
    assert whole.rank == 4
    torch.testing.assert_close(wide.a[:4], whole.ab(4, "none")[0])
    assert not wide.a[4:].any() and not wide.b_t[4:].any()


def test_a_pair_has_the_bases_dtype_and_a_variant_its_own_factors(linears, pairs):
    linears["first"].bfloat16()
    key = settings(2).factor_key
    assert pairs.pair("first", key, 2).a.dtype == torch.bfloat16
    other = key._replace(variant="elsewhere")
    pairs.add_variant("first", other, pairs.factors("second", key))
    assert torch.equal(pairs.pair("first", other, 2).a, pairs.pair("second", key, 2).a.bfloat16())


def test_pairs_that_were_drawn_for_adapters_which_left_are_forgotten(linears, pairs):
    own = [FactorKey("gaussian", 2, "exact", str(seed)) for seed in range(2)]
    first = pairs.pair("first", own[0], 2)
    assert not torch.equal(first.a, pairs.pair("first", own[1], 2).a)
    assert pairs.pair("first", own[0], 2) is first
    pairs.keep(2, [own[0]])
    top = pairs.pair("first", settings(2).factor_key, 2)
    pairs.keep(2, [own[1]])
    again = pairs.pair("first", own[0], 2)
    assert again is not first and torch.equal(again.a, first.a)
    assert pairs.pair("first", settings(2).factor_key, 2) is top, "every trial of the base may use these"
