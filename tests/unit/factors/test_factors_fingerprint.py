"""A fingerprint moves with every change of basis that would make R mean another model, and not with rounding."""

from __future__ import annotations

import itertools
import math

import pytest
import torch

from loraxs_search.errors import FactorMismatchError
from loraxs_search.factors import check_fingerprint, compute_factors, fingerprint
from loraxs_search.factors._verify import FINGERPRINT_TOLERANCE

RANK = 16
Pair = tuple[torch.Tensor, torch.Tensor]


def weight(kind: str) -> torch.Tensor:
    if kind == "axis-aligned":
        return torch.diag(torch.arange(40.0, 0.0, -1.0))
    return torch.randn(40, 56, generator=torch.Generator().manual_seed(3))


@pytest.fixture(params=["random", "axis-aligned"])
def pair(request: pytest.FixtureRequest) -> Pair:
    return compute_factors(weight(request.param), rank=RANK).ab(RANK)


def distance(one: Pair, other: Pair) -> float:
    return max(abs(x - y) for x, y in zip(fingerprint(*one), fingerprint(*other), strict=True))


def turned(pair: Pair, turn: torch.Tensor) -> Pair:
    """B A is the same, B R A is not."""
    a, b = pair
    return turn @ a, b @ turn.T


def test_every_flipped_sign_shows(pair):
    for i in range(RANK):
        flip = torch.eye(RANK)
        flip[i, i] = -1
        both = turned(pair, flip)
        for changed in (both, (both[0], pair[1]), (pair[0], both[1])):
            assert distance(pair, changed) > 5 * FINGERPRINT_TOLERANCE


def test_every_swap_shows(pair):
    for i, j in itertools.combinations(range(RANK), 2):
        swap = torch.eye(RANK)
        swap[[i, j]] = swap[[j, i]]
        assert distance(pair, turned(pair, swap)) > 5 * FINGERPRINT_TOLERANCE


@pytest.mark.parametrize("angle", [0.05, 0.5])
def test_every_rotation_of_neighbours_shows(pair, angle):
    for i in range(RANK - 1):
        rotation = torch.eye(RANK)
        c, s = math.cos(angle), math.sin(angle)
        rotation[i : i + 2, i : i + 2] = torch.tensor([[c, -s], [s, c]])
        assert distance(pair, turned(pair, rotation)) > FINGERPRINT_TOLERANCE


def test_another_sigma_basis_or_weight_shows():
    w = weight("random")
    factors = compute_factors(w, rank=RANK)
    numbers = {fingerprint(*factors.ab(RANK, sigma)) for sigma in ("input", "sqrt", "output", "none")}
    numbers |= {fingerprint(*compute_factors(w, rank=RANK, basis=b).ab(RANK)) for b in ("middle", "bottom", "random")}
    numbers.add(fingerprint(*compute_factors(w + 0.01, rank=RANK).ab(RANK)))
    assert len(numbers) == 8


def test_rounding_does_not_show(pair):
    noise = torch.Generator().manual_seed(0)
    a, b = (t * (1 + 3e-7 * torch.randn(t.shape, generator=noise)) for t in pair)
    assert distance(pair, (a, b)) < 1e-5


def test_the_rule_is_fixed():
    # Every adapter carries such numbers, so another rule would refuse them all. Worked out in plain Python floats from
    # the fractional parts; the last of each three is log2 of the weighted length: 1 for A, 2 for B.
    golden = (0.507223, 0.51466, 0.494193, 0.507223, 0.51466, 1.494193)
    assert fingerprint(torch.eye(2, 3), 2 * torch.eye(3, 2)) == golden


def test_zero_factors_have_finite_numbers():
    assert all(math.isfinite(x) for x in fingerprint(torch.zeros(2, 3), torch.zeros(4, 2)))


def test_a_mismatch_names_the_module_the_numbers_and_the_remedy():
    with pytest.raises(FactorMismatchError) as caught:
        check_fingerprint([1.0, 2.0], [1.0, 2.5], module="encoder.layer.3.query")
    assert "encoder.layer.3.query" in caught.value.message
    assert "[1, 2.5]" in caught.value.message
    assert "[1, 2]" in caught.value.message
    assert "base model" in caught.value.hint


@pytest.mark.parametrize("actual", [[1.0], [1.0, math.nan], []])
def test_incomplete_or_undefined_numbers_never_agree(actual):
    with pytest.raises(FactorMismatchError):
        check_fingerprint([1.0, 2.0], actual, module="m")


def test_agreement_is_within_the_tolerance():
    check_fingerprint([1.0, 2.0], [1.0 + FINGERPRINT_TOLERANCE / 2, 2.0], module="m")
    check_fingerprint([1.0, 2.0], [1.4, 2.0], module="m", tolerance=0.5)
