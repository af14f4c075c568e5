"""One weight, one good file: found again by content, shared by processes, rebuilt when damaged."""

from __future__ import annotations

import dataclasses
import logging
from pathlib import Path

import pytest
import torch

from loraxs_search.errors import BaseModelError, HomeError, UsageError
from loraxs_search.factors import compute
from loraxs_search.factors.compute import Factors, compute_factors
from loraxs_search.factors.store import FactorStore, write_factors
from loraxs_search.home import factor_path


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


def test_a_second_call_with_the_same_tensor_touches_no_disk(tmp_path):
    store, weight = FactorStore(tmp_path), matrix()
    first = store.get(weight, rank=8)
    files(tmp_path)[0].unlink()
    assert store.get(weight, rank=8) is first
    assert store.get(weight.detach(), rank=8) is first  # tied weights share their memory
    assert not files(tmp_path)


def test_a_transposed_view_is_another_weight(tmp_path):
    store, weight = FactorStore(tmp_path), matrix()
    store.get(weight, rank=8)
    assert same(store.get(weight.T, rank=8), compute_factors(weight.T.contiguous(), rank=8))
    assert len(files(tmp_path)) == 2


@pytest.mark.parametrize("change", [lambda w: w.mul_(2), lambda w: w.data.mul_(2)])
def test_a_weight_changed_in_place_is_another_weight(tmp_path, change):
    store, weight = FactorStore(tmp_path), matrix()
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


def cut(content: bytes) -> bytes:
    return content[: len(content) // 2]


def flip_a_number(content: bytes) -> bytes:
    return content[:-3] + bytes([content[-3] ^ 1]) + content[-2:]


@pytest.mark.parametrize("damage", [cut, flip_a_number, lambda _: b"", lambda _: b"not a factor file at all"])
def test_a_damaged_file_is_computed_again_with_a_warning(tmp_path, caplog, damage):
    made = FactorStore(tmp_path).get(matrix(), rank=8)
    (file,) = files(tmp_path)
    good = file.read_bytes()
    file.write_bytes(damage(good))
    with caplog.at_level(logging.WARNING):
        assert same(FactorStore(tmp_path).get(matrix(), rank=8), made)
    assert str(file) in caplog.text
    assert file.read_bytes() == good


def test_a_folder_that_cannot_be_made_is_a_home_error(tmp_path):
    (tmp_path / "file").write_text("in the way")
    with pytest.raises(HomeError, match="must be writable"):
        FactorStore(tmp_path / "file" / "factors").get(matrix(), rank=8)


def test_the_default_folder_follows_the_home_variable(tmp_path, monkeypatch):
    store = FactorStore()
    monkeypatch.setenv("LORAXS_HOME", str(tmp_path))
    store.get(matrix(), rank=8)
    assert files(tmp_path / "factors")


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
    state, threads = torch.get_rng_state(), torch.get_num_threads()
    torch.set_num_threads(4)
    try:
        together.prepare(weights, rank=32)
        assert torch.get_num_threads() == 4
    finally:
        torch.set_num_threads(threads)
    for weight in weights:
        expected = compute_factors(weight, rank=32, driver=driver)
        found = together.get(weight, rank=32, driver=driver)
        assert torch.equal(found.left, expected.left)
        assert torch.equal(found.right, expected.right)
    assert torch.equal(torch.get_rng_state(), state)


def test_a_fault_of_one_weight_ends_the_preparation(tmp_path):
    weights = [matrix(1), torch.full((24, 32), torch.nan)]
    with pytest.raises(BaseModelError, match="finite"):
        FactorStore(tmp_path).prepare(weights, rank=4)


def test_a_wrong_request_stores_nothing(tmp_path):
    store = FactorStore(tmp_path)
    with pytest.raises(UsageError):
        store.get(matrix(), rank=25)
    with pytest.raises(BaseModelError):
        store.get(torch.full((4, 4), torch.nan), rank=2)
    assert not files(tmp_path)


def test_factors_of_another_machine_are_found_beside_this_ones(tmp_path):
    store = FactorStore(tmp_path)
    weight = torch.randn(8, 6, generator=torch.Generator().manual_seed(0))
    own = store.get(weight, rank=3)
    key, checksum = store.identify(weight, rank=3)
    assert list(store.variants(weight, rank=3)) == []
    other = dataclasses.replace(own, left=-own.left, right=-own.right)
    write_factors(factor_path(key, tmp_path, "ab" * 32), other)
    (factor_path(key, tmp_path).parent / f"{key}.damaged.safetensors").write_bytes(b"cut")
    ((name, found),) = store.variants(weight, rank=3)
    assert name == "ab" * 8
    torch.testing.assert_close(found.left, other.left, atol=0, rtol=0)
    assert FactorStore(tmp_path).identify(weight, rank=3) == (key, checksum), "its own are still those it computes"
