"""Factors of the adapters that share a pass; what they compute is in `unit/engine/test_engine_layers.py`."""

from __future__ import annotations

import pytest
import torch
from torch import nn
from transformers.pytorch_utils import Conv1D

from loraxs_search.factors.compute import FactorKey
from loraxs_search.factors.store import FactorStore
from loraxs_search.methods.loraxs.packed import FactorPairs

IN, OUT = 8, 6


TOP = FactorKey("top", 4, "exact")


@pytest.fixture
def linears():
    layers = {"first": nn.Linear(IN, OUT), "second": Conv1D(OUT, IN)}
    return {name: layer.requires_grad_(False) for name, layer in layers.items()}


@pytest.fixture
def pairs(linears, tmp_path):
    store = FactorStore(tmp_path / "factors")
    return FactorPairs(linears, lambda: store)


def test_a_pair_is_made_once_forgotten_with_its_rank_and_zero_beyond_its_factors(linears, pairs):
    pair = pairs.pair("second", TOP, 2)
    assert pairs.pair("second", TOP, 2) is pair
    assert (pair.a.shape, pair.b_t.shape) == ((2, IN), (2, OUT))
    assert pair.a.is_contiguous() and pair.b_t.is_contiguous()
    pairs.keep(3, [])
    assert pairs.pair("second", TOP, 2) is not pair
    wide, whole = pairs.pair("first", TOP, 6), pairs.factors("first", TOP)
    assert whole.rank == 4
    torch.testing.assert_close(wide.a[:4], whole.ab(4, "none")[0])
    assert not wide.a[4:].any() and not wide.b_t[4:].any()


def test_a_pair_has_the_bases_dtype_and_a_variant_its_own_factors(linears, pairs):
    linears["first"].bfloat16()
    assert pairs.pair("first", TOP, 2).a.dtype == torch.bfloat16
    other = TOP._replace(variant="elsewhere")
    pairs.add_variant("first", other, pairs.factors("second", TOP))
    assert torch.equal(pairs.pair("first", other, 2).a, pairs.pair("second", TOP, 2).a.bfloat16())


def test_pairs_that_were_drawn_for_adapters_which_left_are_forgotten(linears, pairs):
    own = [FactorKey("gaussian", 2, "exact", str(seed)) for seed in range(2)]
    first = pairs.pair("first", own[0], 2)
    assert not torch.equal(first.a, pairs.pair("first", own[1], 2).a)
    assert pairs.pair("first", own[0], 2) is first
    pairs.keep(2, [own[0]])
    top = pairs.pair("first", TOP, 2)
    pairs.keep(2, [own[1]])
    again = pairs.pair("first", own[0], 2)
    assert again is not first and torch.equal(again.a, first.a)
    assert pairs.pair("first", TOP, 2) is top, "every trial of the base may use these"
