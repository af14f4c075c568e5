"""One weight, one good file: found again by content, shared by processes, rebuilt when damaged.

Factors of a registry are used where they are the weight's. A fingerprint moves with every change of basis that would
make R mean another model, and not with rounding.
"""

from __future__ import annotations

import dataclasses
import itertools
import math
from pathlib import Path

import pytest
import torch

from loraxs_search.errors import BaseModelError, HomeError, IntegrityError, UsageError
from loraxs_search.factors import compute
from loraxs_search.factors import store as store_module
from loraxs_search.factors.compute import Factors, compute_factors
from loraxs_search.factors.store import FINGERPRINT_TOLERANCE, FactorStore, checksum, fingerprint, write_factors
from loraxs_search.home import factor_path

RANK = 6


def matrix(seed: int = 0, shape: tuple[int, int] = (24, 32)) -> torch.Tensor:
    return torch.randn(shape, generator=torch.Generator().manual_seed(seed))


def files(root: Path) -> list[Path]:
    return [path for path in root.rglob("*") if path.is_file()]


def same(one: Factors, other: Factors) -> bool:
    tensors = [(f.left, f.singular_values, f.right) for f in (one, other)]
    return all(torch.equal(x, y) for x, y in zip(*tensors, strict=True)) and one.basis == other.basis


def test_what_is_read_is_what_was_computed(tmp_path):
    made = FactorStore(tmp_path).get(matrix(), rank=8, basis="middle")
    (file,) = files(tmp_path)
    written = file.stat().st_ino  # a use marks the time, and a second writing makes a new file
    read = FactorStore(tmp_path).get(matrix(), rank=8, basis="middle")
    assert same(made, read)
    assert same(read, compute_factors(matrix(), rank=8, basis="middle"))
    assert read.driver == "exact"
    assert file.stat().st_ino == written


def test_a_second_call_with_the_same_tensor_touches_no_disk_and_a_changed_one_is_another_weight(tmp_path):
    store, weight = FactorStore(tmp_path), matrix()
    first = store.get(weight, rank=8)
    files(tmp_path)[0].unlink()
    assert store.get(weight, rank=8) is first
    assert store.get(weight.detach(), rank=8) is first  # tied weights share their memory
    assert not files(tmp_path)
    assert same(store.get(weight.T, rank=8), compute_factors(weight.T.contiguous(), rank=8))
    for change in (lambda w: w.mul_(2), lambda w: w.data.mul_(2)):
        before = store.get(weight, rank=8)
        change(weight)
        assert not same(store.get(weight, rank=8), before)
        assert same(store.get(weight, rank=8), compute_factors(weight, rank=8))


def test_freed_memory_is_not_mistaken_for_the_old_weight(tmp_path):
    store = FactorStore(tmp_path)
    for seed in range(8):
        weight = matrix(seed)
        assert same(store.get(weight, rank=8), compute_factors(weight, rank=8))
        del weight
    assert len(store._memory) <= 2


def test_the_name_depends_on_everything_that_moves_the_numbers(tmp_path):
    store, weight = FactorStore(tmp_path), matrix()
    requests = [
        (weight, {"rank": 8}),
        (weight, {"rank": 9}),
        (weight, {"rank": 8, "basis": "bottom"}),
        (weight, {"rank": 8, "driver": "randomized"}),
        (weight.bfloat16(), {"rank": 8}),
        (weight.half(), {"rank": 8}),
        (weight.half().view(torch.bfloat16), {"rank": 8}),  # the same bytes
        (weight.reshape(32, 24), {"rank": 8}),
        (weight + 1e-6, {"rank": 8}),
    ]
    for tensor, request in requests:
        store.get(tensor, **request)
    assert len(files(tmp_path)) == len(requests)
    store.get(weight, rank=8, driver="exact")  # what `auto` means
    assert len(files(tmp_path)) == len(requests)


def flip_a_number(content: bytes) -> bytes:
    return content[:-3] + bytes([content[-3] ^ 1]) + content[-2:]


@pytest.mark.parametrize("damage", [lambda content: content[:-9], flip_a_number, lambda _: b"not a factor file at all"])
def test_a_damaged_file_is_computed_again_with_a_warning(tmp_path, caplog, damage):
    made = FactorStore(tmp_path).get(matrix(), rank=8)
    (file,) = files(tmp_path)
    good = file.read_bytes()
    file.write_bytes(damage(good))
    assert same(FactorStore(tmp_path).get(matrix(), rank=8), made)
    assert str(file) in caplog.text
    assert file.read_bytes() == good


def test_the_folder_follows_the_home_variable_and_one_that_cannot_be_made_is_a_home_error(tmp_path, monkeypatch):
    store = FactorStore()
    monkeypatch.setenv("LORAXS_HOME", str(tmp_path / "own"))
    store.get(matrix(), rank=8)
    assert files(tmp_path / "own" / "factors")
    (tmp_path / "file").write_text("in the way")
    with pytest.raises(HomeError, match="must be writable"):
        FactorStore(tmp_path / "file" / "factors").get(matrix(), rank=8)


def test_prepare_fits_the_rank_to_small_weights(tmp_path):
    small, store = matrix(2, (8, 64)), FactorStore(tmp_path)
    store.prepare([matrix(1, (40, 64)), small], rank=16)
    assert len(files(tmp_path)) == 2
    assert store.get(small, rank=8).rank == 8
    assert len(files(tmp_path)) == 2


@pytest.mark.parametrize("driver", ["exact", "randomized"])
def test_weights_that_are_prepared_side_by_side_keep_the_bits_they_have_alone(tmp_path, monkeypatch, driver):
    monkeypatch.setattr(compute, "MAX_EXACT_SIZE", 96 if driver == "exact" else 0)
    weights = [matrix(seed, (96, 160)) for seed in range(12)]
    together = FactorStore(tmp_path)
    threads = torch.get_num_threads()
    torch.set_num_threads(4)
    try:
        together.prepare(weights, rank=32)
        assert torch.get_num_threads() == 4
    finally:
        torch.set_num_threads(threads)
    for weight in weights:
        alone = compute_factors(weight, rank=32, driver=driver)
        assert same(together.get(weight, rank=32, driver=driver), alone)


def test_a_wrong_request_and_a_fault_of_one_weight_among_many_store_nothing_of_it(tmp_path):
    store = FactorStore(tmp_path)
    with pytest.raises(UsageError):
        store.get(matrix(), rank=25)
    with pytest.raises(BaseModelError, match="finite"):
        store.get(torch.full((4, 4), torch.nan), rank=2)
    assert not files(tmp_path)
    with pytest.raises(BaseModelError, match="finite"):
        store.prepare([matrix(1), torch.full((24, 32), torch.nan)], rank=4)


def flipped(factors: Factors) -> Factors:
    return dataclasses.replace(factors, left=-factors.left, right=-factors.right)


def test_factors_of_another_machine_are_found_beside_this_ones(tmp_path):
    store = FactorStore(tmp_path)
    own = store.get(matrix(), rank=3)
    key, said = store.identify(matrix(), rank=3)
    assert list(store.variants(matrix(), rank=3)) == []
    write_factors(factor_path(key, tmp_path, "ab" * 32), flipped(own))
    (factor_path(key, tmp_path).parent / f"{key}.damaged.safetensors").write_bytes(b"cut")
    ((name, found),) = store.variants(matrix(), rank=3)
    assert name == "ab" * 8
    assert same(found, flipped(own))
    assert FactorStore(tmp_path).identify(matrix(), rank=3) == (key, said), "its own are still those it computes"


@pytest.mark.parametrize("half", [torch.bfloat16, torch.float16])
def test_a_weight_in_half_precision_has_the_same_factors_where_it_is_held_in_float32(half, tmp_path):
    weight, whole = matrix().to(half), FactorStore(tmp_path / "whole").identify(matrix(), rank=3)
    said = FactorStore(tmp_path / "half").identify(weight, rank=3)
    assert FactorStore(tmp_path / "float32").identify(weight.float(), rank=3) == said != whole


# ---- from a registry -------------------------------------------------------------------------------------------------
@pytest.fixture
def brought(tmp_path):
    """Put factors aside as a pull does; returns where."""

    def bring(weight: torch.Tensor, factors: Factors) -> Path:
        key = store_module._content_key(weight, rank=RANK, basis=factors.basis, driver=factors.driver)
        path = factor_path(key, tmp_path, checksum(factors), is_checked=False)
        write_factors(path, factors)
        return path

    return bring


def test_honest_factors_become_the_machines_own_where_it_has_none(tmp_path, brought, monkeypatch):
    weight = matrix()
    honest = flipped(compute_factors(weight, rank=RANK))
    aside = brought(weight, honest)

    with monkeypatch.context() as patch:
        patch.delattr(store_module, "compute_factors")  # they are not computed again
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
def test_crafted_and_damaged_factors_are_never_used_and_removed_with_a_word(tmp_path, brought, caplog, has_own):
    weight, store = matrix(), FactorStore(tmp_path)
    expected = compute_factors(weight, rank=RANK)
    if has_own:
        store.get(weight, rank=RANK)
    crafted = dataclasses.replace(expected, left=expected.left.roll(1, 1))
    aside = brought(weight, crafted)
    assert torch.equal(store.get(weight, rank=RANK).left, expected.left)
    with pytest.raises(IntegrityError, match="must be of its weight") as refused:
        list(store.variants(weight, rank=RANK))
    assert f"must be of its weight, but {aside.name} is not" in caplog.text
    assert "tell whoever keeps the registry" in str(refused.value.hint)
    assert [path for path in tmp_path.rglob("*.safetensors") if checksum(crafted)[:16] in path.name] == []
    (aside := brought(matrix(1), expected)).write_bytes(b"cut sho")
    caplog.clear()
    store.get(matrix(1), rank=RANK)
    assert "must be of its weight" in caplog.text
    assert not aside.exists()


# ---- fingerprints ----------------------------------------------------------------------------------------------------
PROBED_RANK = 16
Pair = tuple[torch.Tensor, torch.Tensor]


WEIGHT = matrix(3, (40, 56))


@pytest.fixture(params=[WEIGHT, torch.diag(torch.arange(40.0, 0.0, -1.0))], ids=["random", "axis-aligned"])
def pair(request):
    return compute_factors(request.param, rank=PROBED_RANK).ab(PROBED_RANK)


def distance(one: Pair, other: Pair) -> float:
    return max(abs(x - y) for x, y in zip(fingerprint(*one), fingerprint(*other), strict=True))


def turned(pair: Pair, turn: torch.Tensor) -> Pair:
    """B A is the same, B R A is not."""
    a, b = pair
    return turn @ a, b @ turn.T


def test_every_flipped_sign_swap_and_rotation_of_neighbours_shows_and_rounding_does_not(pair):
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
    noise = torch.Generator().manual_seed(0)
    a, b = (t * (1 + 3e-7 * torch.randn(t.shape, generator=noise)) for t in pair)
    assert distance(pair, (a, b)) < 1e-5


def test_another_sigma_basis_or_weight_shows():
    factors = compute_factors(WEIGHT, rank=PROBED_RANK)
    pairs = [factors.ab(PROBED_RANK, sigma) for sigma in ("input", "sqrt", "output", "none")]
    pairs += [compute_factors(WEIGHT, rank=PROBED_RANK, basis=b).ab(PROBED_RANK) for b in ("middle", "bottom")]
    pairs.append(compute_factors(WEIGHT + 0.01, rank=PROBED_RANK).ab(PROBED_RANK))
    assert len({fingerprint(*own) for own in pairs}) == 7


def test_the_rule_is_fixed_and_its_numbers_are_finite():
    # Every adapter carries such numbers, so another rule would refuse them all. Worked out in plain Python floats from
    # the fractional parts; the last of each three is log2 of the weighted length: 1 for A, 2 for B.
    golden = (0.507223, 0.51466, 0.494193, 0.507223, 0.51466, 1.494193)
    assert fingerprint(torch.eye(2, 3), 2 * torch.eye(3, 2)) == golden
    assert all(math.isfinite(x) for x in fingerprint(torch.zeros(2, 3), torch.zeros(4, 2)))


def test_agreement_is_of_as_many_numbers_within_the_tolerance():
    for actual in ([1.0, 2.5], [1.0], [1.0, math.nan], []):
        assert not store_module.agrees([1.0, 2.0], actual)
    assert store_module.agrees([1.0, 2.0], [1.0 + FINGERPRINT_TOLERANCE / 2, 2.0])
    assert store_module.agrees([1.0, 2.0], [1.4, 2.0], tolerance=0.5)
