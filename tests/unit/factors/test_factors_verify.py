"""Factors from elsewhere are taken where they are the weight's in any honest form, and in no other case.

A fingerprint moves with every change of basis that would make R mean another model, and not with rounding.
"""

from __future__ import annotations

import dataclasses
import itertools
import logging
import math
import re
from pathlib import Path

import pytest
import torch

from loraxs_search.errors import IntegrityError
from loraxs_search.factors import store as store_module
from loraxs_search.factors.compute import Factors, compute_factors, fault
from loraxs_search.factors.store import (
    FINGERPRINT_TOLERANCE,
    FactorStore,
    _content_key,
    agrees,
    checksum,
    fingerprint,
    write_factors,
)
from loraxs_search.home import factor_path

RANK = 6
BASES = ("top", "middle", "bottom")
KINDS = [(basis, "exact") for basis in BASES] + [("top", "randomized")]
SHAPES = [(20, 32), (32, 20), (24, 24)]


def matrix(shape: tuple[int, int] = (20, 32), seed: int = 0) -> torch.Tensor:
    return torch.randn(shape, generator=torch.Generator().manual_seed(seed))


def with_spectrum(values: torch.Tensor, shape: tuple[int, int]) -> torch.Tensor:
    u, _ = torch.linalg.qr(matrix((shape[0], len(values)), 1).double())
    v, _ = torch.linalg.qr(matrix((shape[1], len(values)), 2).double())
    return (u * values) @ v.T


def judged(weight: torch.Tensor, factors: Factors, basis: str = "top", driver: str = "exact") -> str | None:
    return fault(weight, factors, rank=RANK, basis=basis, driver=driver)


def chosen(weight: torch.Tensor, components: list[int], basis: str = "top", driver: str = "exact") -> Factors:
    """True triplets of the weight, those that are asked for."""
    u, s, vt = torch.linalg.svd(weight.double(), full_matrices=False)
    parts = (u[:, components], s[components], vt[components])
    return Factors(*(part.float().contiguous() for part in parts), driver=driver, basis=basis)


# ---- honest ones -----------------------------------------------------------------------------------------------------
@pytest.mark.parametrize(("basis", "driver"), KINDS)
def test_what_another_machine_computes_is_taken(basis, driver):
    for shape, dtype in zip(SHAPES, (torch.float32, torch.bfloat16, torch.float32), strict=True):
        weight = matrix(shape).to(dtype)
        factors = compute_factors(weight, rank=RANK, basis=basis, driver=driver)
        assert judged(weight, factors, basis, driver) is None
        signs = torch.tensor([1.0, -1.0]).repeat(RANK // 2)
        other = dataclasses.replace(factors, left=factors.left * signs, right=factors.right * signs[:, None])
        assert judged(weight, other, basis, driver) is None


@pytest.mark.parametrize(("basis", "driver"), KINDS)
def test_a_rotation_among_nearly_equal_values_is_taken(basis, driver):
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
        left, right = (factors.left @ turn).contiguous(), (turn.T @ factors.right).contiguous()
        assert judged(weight, dataclasses.replace(factors, left=left, right=right), basis, driver) is None


@pytest.mark.parametrize("driver", ["exact", "randomized"])
def test_a_weight_that_lacks_ranks_or_gaps_has_honest_factors_too(driver):
    for values in (torch.zeros(20), torch.tensor([3.0, 2.0] + [0.0] * 18), torch.ones(20)):
        weight = with_spectrum(values.double(), (20, 32))
        assert judged(weight, compute_factors(weight, rank=RANK, driver=driver), driver=driver) is None


def test_what_the_randomised_driver_leaves_out_of_a_flat_spectrum_is_within_its_slack():
    weight = matrix((300, 400))
    factors = compute_factors(weight, rank=40, driver="randomized")
    assert fault(weight, factors, rank=40, basis="top", driver="randomized") is None


# ---- crafted ones ----------------------------------------------------------------------------------------------------
def _orthonormal(rows: int, columns: int) -> torch.Tensor:
    return torch.linalg.qr(matrix((columns, rows), 9)).Q.T.contiguous()


def _turned(factors: Factors) -> Factors:
    turn = _orthonormal(RANK, RANK)
    return dataclasses.replace(
        factors, left=(factors.left @ turn).contiguous(), right=(turn.T @ factors.right).contiguous()
    )


def _in_another_order(factors: Factors) -> Factors:
    order = torch.tensor([0, 2, 1, 3, 4, 5])
    return dataclasses.replace(
        factors,
        left=factors.left[:, order].contiguous(),
        singular_values=factors.singular_values[order].contiguous(),
        right=factors.right[order].contiguous(),
    )


CRAFTED = {
    "wrong A": (lambda f: dataclasses.replace(f, right=_orthonormal(RANK, 32)), "not those of the weight"),
    "wrong B": (lambda f: dataclasses.replace(f, left=_orthonormal(RANK, 20).T.contiguous()), "not those of"),
    "another order": (_in_another_order, "component 1|not those of"),
    "one sign": (lambda f: dataclasses.replace(f, left=-f.left), "not those of the weight"),
    "turned": (_turned, "not those of the weight"),
    "not orthonormal": (lambda f: dataclasses.replace(f, left=f.left * 1.001), "left vectors are not orthonormal"),
    "a vector twice": (lambda f: dataclasses.replace(f, right=f.right[[0, 0, 2, 3, 4, 5]]), "right vectors are not"),
    "negative values": (
        lambda f: dataclasses.replace(f, left=-f.left, singular_values=-f.singular_values),
        "component 0|not those of|leaves out",
    ),
    "no numbers": (lambda f: dataclasses.replace(f, left=f.left * math.nan), "`left` must be finite"),
    "float64": (lambda f: dataclasses.replace(f, right=f.right.double()), "`right` must be finite float32"),
    "another rank": (
        lambda f: dataclasses.replace(f, singular_values=f.singular_values[:3]),
        "`singular_values` must be",
    ),
    "another basis": (lambda f: dataclasses.replace(f, basis="bottom"), "must be of basis top"),
}


@pytest.mark.parametrize("driver", ["exact", "randomized"])
def test_crafted_factors_are_refused(driver):
    weight = with_spectrum(0.8 ** torch.arange(20.0, dtype=torch.float64), (20, 32))
    honest = compute_factors(weight, rank=RANK, driver=driver)
    for craft, (change, why) in CRAFTED.items():
        said = judged(weight, change(honest), driver=driver)
        assert said is not None and re.search(why, said), craft


@pytest.mark.parametrize("driver", ["exact", "randomized"])
@pytest.mark.parametrize("shape", SHAPES[:2])
def test_a_top_vector_left_out_is_noticed(shape, driver):
    weight = with_spectrum(0.8 ** torch.arange(20.0, dtype=torch.float64), shape)
    for left_out in range(RANK):
        kept = [i for i in range(RANK + 1) if i != left_out]
        said = judged(weight, chosen(weight, kept, driver=driver), driver=driver)
        assert said is not None
        assert f"component {left_out} of basis top" in said if driver == "exact" else "it leaves out" in said


@pytest.mark.parametrize("basis", BASES)
def test_true_triplets_of_another_basis_are_refused(basis):
    weight = matrix()
    bases = {"top": range(RANK), "bottom": range(19, 13, -1), "middle": (9, 10, 8, 11, 7, 12)}
    for other, components in bases.items():
        assert (judged(weight, chosen(weight, [*components], basis), basis) is None) == (basis == other)


# ---- in the store ----------------------------------------------------------------------------------------------------
@pytest.fixture
def brought(tmp_path):
    """Put factors aside as a pull does; returns where."""

    def bring(weight: torch.Tensor, factors: Factors) -> Path:
        key = _content_key(weight, rank=RANK, basis=factors.basis, driver=factors.driver)
        path = factor_path(key, tmp_path, checksum(factors), is_checked=False)
        write_factors(path, factors)
        return path

    return bring


def flipped(factors: Factors) -> Factors:
    return dataclasses.replace(factors, left=-factors.left, right=-factors.right)


def test_honest_factors_become_the_machines_own_where_it_has_none(tmp_path, brought, monkeypatch):
    weight = matrix()
    honest = flipped(compute_factors(weight, rank=RANK))
    aside = brought(weight, honest)

    def computed(*_args, **_request):
        raise AssertionError("they were computed again")

    with monkeypatch.context() as patch:
        patch.setattr(store_module, "compute_factors", computed)
        assert torch.equal(FactorStore(tmp_path).get(weight, rank=RANK).left, honest.left)
    assert not aside.exists()
    key, said = FactorStore(tmp_path).identify(weight, rank=RANK)
    assert said == checksum(honest)
    assert factor_path(key, tmp_path).exists()


def test_honest_factors_lie_beside_the_machines_own_where_it_has_some(tmp_path, brought):
    weight, store = matrix(), FactorStore(tmp_path)
    own = store.get(weight, rank=RANK)
    honest = flipped(own)
    aside = brought(weight, honest)
    for _ in range(2):
        ((name, found),) = store.variants(weight, rank=RANK)
        assert (name, torch.equal(found.left, honest.left)) == (checksum(honest)[:16], True)
    assert not aside.exists()
    assert factor_path(store.identify(weight, rank=RANK)[0], tmp_path, checksum(honest)).exists()
    assert torch.equal(FactorStore(tmp_path).get(weight, rank=RANK).left, own.left)


@pytest.mark.parametrize("has_own", [False, True])
def test_crafted_factors_are_never_used_and_removed_with_a_word(tmp_path, brought, caplog, has_own):
    weight, store = matrix(), FactorStore(tmp_path)
    expected = compute_factors(weight, rank=RANK)
    if has_own:
        store.get(weight, rank=RANK)
    crafted = _turned(expected)
    aside = brought(weight, crafted)
    with caplog.at_level(logging.WARNING):
        assert torch.equal(store.get(weight, rank=RANK).left, expected.left)
        with pytest.raises(IntegrityError, match="must be of its weight") as refused:
            list(store.variants(weight, rank=RANK))
    assert f"must be of its weight, but {aside.name} is not" in caplog.text
    assert "tell whoever keeps the registry" in str(refused.value.hint)
    assert [path for path in tmp_path.rglob("*.safetensors") if checksum(crafted)[:16] in path.name] == []


def test_what_was_put_aside_and_damaged_since_is_removed(tmp_path, brought, caplog):
    weight = matrix()
    aside = brought(weight, compute_factors(weight, rank=RANK))
    aside.write_bytes(b"cut sho")
    FactorStore(tmp_path).get(weight, rank=RANK)
    assert "must be of its weight" in caplog.text
    assert not aside.exists()


PROBED_RANK = 16
Pair = tuple[torch.Tensor, torch.Tensor]


def weight(kind: str) -> torch.Tensor:
    if kind == "axis-aligned":
        return torch.diag(torch.arange(40.0, 0.0, -1.0))
    return torch.randn(40, 56, generator=torch.Generator().manual_seed(3))


@pytest.fixture(params=["random", "axis-aligned"])
def pair(request):
    return compute_factors(weight(request.param), rank=PROBED_RANK).ab(PROBED_RANK)


def distance(one: Pair, other: Pair) -> float:
    return max(abs(x - y) for x, y in zip(fingerprint(*one), fingerprint(*other), strict=True))


def turned(pair: Pair, turn: torch.Tensor) -> Pair:
    """B A is the same, B R A is not."""
    a, b = pair
    return turn @ a, b @ turn.T


def test_every_flipped_sign_swap_and_rotation_of_neighbours_shows(pair):
    for i in range(PROBED_RANK):
        flip = torch.eye(PROBED_RANK)
        flip[i, i] = -1
        both = turned(pair, flip)
        for changed in (both, (both[0], pair[1]), (pair[0], both[1])):
            assert distance(pair, changed) > 5 * FINGERPRINT_TOLERANCE
    for i, j in itertools.combinations(range(PROBED_RANK), 2):
        swap = torch.eye(PROBED_RANK)
        swap[[i, j]] = swap[[j, i]]
        assert distance(pair, turned(pair, swap)) > 5 * FINGERPRINT_TOLERANCE
    for i, angle in itertools.product(range(PROBED_RANK - 1), (0.05, 0.5)):
        rotation = torch.eye(PROBED_RANK)
        c, s = math.cos(angle), math.sin(angle)
        rotation[i : i + 2, i : i + 2] = torch.tensor([[c, -s], [s, c]])
        assert distance(pair, turned(pair, rotation)) > FINGERPRINT_TOLERANCE


def test_another_sigma_basis_or_weight_shows():
    w = weight("random")
    factors = compute_factors(w, rank=PROBED_RANK)
    numbers = {fingerprint(*factors.ab(PROBED_RANK, sigma)) for sigma in ("input", "sqrt", "output", "none")}
    numbers |= {
        fingerprint(*compute_factors(w, rank=PROBED_RANK, basis=b).ab(PROBED_RANK)) for b in ("middle", "bottom")
    }
    numbers.add(fingerprint(*compute_factors(w + 0.01, rank=PROBED_RANK).ab(PROBED_RANK)))
    assert len(numbers) == 7


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


def test_agreement_is_of_as_many_numbers_within_the_tolerance():
    for actual in ([1.0, 2.5], [1.0], [1.0, math.nan], []):
        assert not agrees([1.0, 2.0], actual)
    assert agrees([1.0, 2.0], [1.0 + FINGERPRINT_TOLERANCE / 2, 2.0])
    assert agrees([1.0, 2.0], [1.4, 2.0], tolerance=0.5)
