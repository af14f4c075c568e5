"""Rank patterns: more rank in half of the layers, never more numbers than one rank for all."""

from __future__ import annotations

from typing import get_args

import pytest
from hypothesis import given
from hypothesis import strategies as st

from loraxs_search.methods._parameters import module_ranks, widest_rank
from loraxs_search.records import RankPattern

PATTERNS = get_args(RankPattern)
UNLIKE = [pattern for pattern in PATTERNS if pattern != "uniform"]


def names(num_layers: int, per_layer: int = 2) -> list[str]:
    return [f"model.layers.{i}.part{j}" for i in range(num_layers) for j in range(per_layer)]


@given(st.integers(1, 200), st.sampled_from(PATTERNS), st.integers(1, 40), st.integers(1, 7))
def test_no_pattern_has_more_numbers_than_one_rank(rank: int, pattern: str, num_layers: int, per_layer: int) -> None:
    modules = names(num_layers, per_layer)
    ranks = module_ranks(rank, pattern, modules)
    assert list(ranks) == modules
    assert sum(own**2 for own in ranks.values()) <= len(modules) * rank**2
    assert all(1 <= own <= widest_rank(rank, pattern) for own in ranks.values())


@given(st.integers(8, 200), st.sampled_from(UNLIKE), st.integers(1, 20))
def test_half_of_the_layers_have_three_quarters_of_nearly_as_many(rank: int, pattern: str, half: int) -> None:
    ranks = module_ranks(rank, pattern, names(2 * half))
    wide, narrow = max(ranks.values()), min(ranks.values())
    assert sorted(set(ranks.values())) == [narrow, wide]
    squares = [own**2 for own in ranks.values()]
    assert sum(own == wide for own in ranks.values()) == len(ranks) // 2
    assert 0.9 * len(ranks) * rank**2 < sum(squares)
    assert 0.7 < sum(own for own in squares if own == wide**2) / sum(squares) < 0.85


@pytest.mark.parametrize(
    ("pattern", "wide"),
    [("uniform", []), ("upper", [3, 4, 5]), ("lower", [0, 1, 2]), ("middle", [1, 2, 3]), ("ends", [0, 4, 5])],
)
def test_which_layers_have_more(pattern: str, wide: list[int]) -> None:
    ranks = module_ranks(8, pattern, names(6))
    assert {int(name.split(".")[2]) for name, own in ranks.items() if own == 10} == set(wide)
    assert set(ranks.values()) == ({8} if pattern == "uniform" else {10, 5})


@pytest.mark.parametrize("pattern", UNLIKE)
@pytest.mark.parametrize("modules", [["a.b", "a.c"], names(1), names(6)[:1]])
def test_one_layer_or_a_small_rank_is_uniform(pattern: str, modules: list[str]) -> None:
    assert set(module_ranks(8, pattern, modules).values()) == {8}
    assert set(module_ranks(2, pattern, names(6)).values()) == {2}
