"""Factor sets: registered once for a base, brought where they lack, and what they hold is what they say."""

from __future__ import annotations

import dataclasses
from pathlib import Path

import pytest
import torch

from loraxs_search.errors import IntegrityError
from loraxs_search.factors.store import FactorStore, write_factors
from loraxs_search.home import factor_path
from loraxs_search.records.search import PromotionRule
from loraxs_search.registry.changes import Promoter
from loraxs_search.registry.factor_sets import factors_at, install_factors
from loraxs_search.registry.pull import pull
from loraxs_search.registry.store import Registry
from loraxs_search.tracking.store import connect

WEIGHT = torch.randn(12, 10, generator=torch.Generator().manual_seed(3))


def sources(uri: str) -> list[str]:
    """Where the sets of all bases lie."""
    tags = Registry(uri).experiment_tags("loraxs-search factors")
    return [value for name, value in tags.items() if name.startswith("mlflow.loraxs.factors.")]


@pytest.fixture
def elsewhere(monkeypatch, tmp_path):
    """Go to another machine: another home."""

    def go(name="elsewhere"):
        monkeypatch.setenv("LORAXS_HOME", str(tmp_path / name))

    return go


@pytest.fixture
def promote(store_uri, task, candidate, make_folder):
    def promote(trial_id, accuracy, factors):
        folder = make_folder(trial_id, factors=factors)
        Promoter(store_uri, "movie-reviews").promote(
            PromotionRule(confidence=0, require="constant"), task, [candidate(trial_id, accuracy)], {trial_id: folder}
        )

    return promote


def test_pulling_brings_the_factors_that_lack_and_they_are_used(promote, elsewhere, store_uri):
    key, checksum_here = FactorStore().identify(WEIGHT, rank=4)
    promote("t0", 0.8, {key: checksum_here})
    elsewhere()
    assert not factors_at(key, checksum_here, unchecked=True)
    pull("movie-reviews", uri=store_uri)
    assert factors_at(key, checksum_here, unchecked=True)
    assert factors_at(key, checksum_here) is None, "nobody has checked it yet"
    assert FactorStore().identify(WEIGHT, rank=4) == (key, checksum_here)


def test_a_set_is_one_for_all_adapters_and_only_grows(promote, store_uri):
    key, first = FactorStore().identify(WEIGHT, rank=4)
    promote("t0", 0.8, {key: first})
    second_key, second = FactorStore().identify(WEIGHT.T.contiguous(), rank=4)
    promote("t1", 0.9, {key: first, second_key: second})
    (source,) = sources(store_uri)
    files = {path.name for path in Path(source).iterdir()}
    assert files == {f"{key}-{first[:16]}.safetensors", f"{second_key}-{second[:16]}.safetensors"}
    assert [model.name for model in connect(store_uri).search_registered_models()] == ["movie-reviews"]


def test_a_file_that_a_killed_promoter_left_short_is_sent_again_by_the_next(promote, elsewhere, store_uri):
    key, said = FactorStore().identify(WEIGHT, rank=4)
    promote("t0", 0.8, {key: said})
    (source,) = sources(store_uri)
    file = Path(source) / f"{key}-{said[:16]}.safetensors"
    whole = file.read_bytes()
    file.write_bytes(whole[:100])
    promote("t1", 0.9, {key: said})
    assert file.read_bytes() == whole
    elsewhere()
    pull("movie-reviews", uri=store_uri)
    assert factors_at(key, said, unchecked=True)


def test_factors_that_are_not_what_they_say_are_not_kept(promote, elsewhere, store_uri):
    key, said = FactorStore().identify(WEIGHT, rank=4)
    promote("t0", 0.8, {key: said})
    (source,) = sources(store_uri)
    file = Path(source) / f"{key}-{said[:16]}.safetensors"
    whole = bytearray(file.read_bytes())
    for change in (-1, 30):
        damaged = whole.copy()
        damaged[change] ^= 1
        file.write_bytes(damaged)
        elsewhere(f"elsewhere{change}")
        with pytest.raises(IntegrityError):
            pull("movie-reviews", uri=store_uri)
        assert not factors_at(key, said, unchecked=True)
    known = FactorStore().get(WEIGHT, rank=4)  # turned as another machine may find them
    write_factors(file, dataclasses.replace(known, left=-known.left, right=-known.right))
    elsewhere("another")
    with pytest.raises(IntegrityError, match="must have checksum"):
        pull("movie-reviews", uri=store_uri)


def test_a_key_or_a_checksum_that_could_lead_elsewhere_is_refused(tmp_path):
    key, known = FactorStore().identify(WEIGHT, rank=4)
    content = factor_path(key).read_bytes()
    for odd in ("", "../../etc", "A" * 64):
        with pytest.raises(IntegrityError, match="factor key"):
            factors_at(odd, known)
        with pytest.raises(IntegrityError, match="factor checksum"):
            factors_at(key, odd)
        for unchecked in (False, True):
            with pytest.raises(IntegrityError, match="factor key"):
                install_factors(odd, content, tmp_path, unchecked=unchecked)


def test_a_promoter_without_the_files_says_so_and_promotes(promote, store_uri, caplog):
    promote("t0", 0.8, {"0" * 64: "1" * 64})
    assert "1 factor files of org/base are not on this machine" in caplog.text
    assert pull("movie-reviews", uri=store_uri).is_dir()
