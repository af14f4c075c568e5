"""A team's key: what it did not sign is not pulled."""

from __future__ import annotations

import pytest

from loraxs_search.errors import IntegrityError, RegistryError
from loraxs_search.records import PromotionRule
from loraxs_search.registry import Registry, pull
from loraxs_search.registry._client import connect
from loraxs_search.registry.signature import ENV_KEY, check_signature, sign


@pytest.fixture
def key(tmp_path, monkeypatch):
    def use(content: str | None = "a key of the team's own"):
        if content is None:
            monkeypatch.delenv(ENV_KEY, raising=False)
        else:
            (tmp_path / "key").write_text(content)
            monkeypatch.setenv(ENV_KEY, str(tmp_path / "key"))

    return use


@pytest.fixture
def promote(store_uri, task, candidate, make_folder):
    def settle(trial_id="t0", accuracy=0.8):
        Registry(store_uri).settle(
            PromotionRule(confidence=0), task, [candidate(trial_id, accuracy)], {trial_id: make_folder(trial_id)}
        )

    return settle


def test_what_the_team_signed_is_pulled(key, promote, store_uri):
    key()
    promote()
    pulled = pull("movie-reviews", uri=store_uri)
    assert pull("movie-reviews", uri=store_uri) == pulled
    key(None)
    assert pull("movie-reviews", uri=store_uri) == pulled  # who has no key asks for no signature


@pytest.mark.parametrize("cached", [False, True])
def test_unsigned_and_foreign_adapters_are_refused_cached_or_not(key, promote, store_uri, cached):
    key(None)
    promote()
    if cached:
        pull("movie-reviews", uri=store_uri)
    key()
    with pytest.raises(IntegrityError, match="but it has none"):
        pull("movie-reviews", uri=store_uri)
    connect(store_uri).set_model_version_tag("movie-reviews", "1", "loraxs.signature", "0" * 64)
    with pytest.raises(IntegrityError, match="of another key"):
        pull("movie-reviews", uri=store_uri)


def test_a_signature_fits_one_key_one_task_and_one_content(key):
    key()
    signature = sign("task", "digest")
    check_signature("task", "digest", signature)
    for task, digest in (("other", "digest"), ("task", "other")):
        with pytest.raises(IntegrityError):
            check_signature(task, digest, signature)
    key("another key, as long as it")
    with pytest.raises(IntegrityError):
        check_signature("task", "digest", signature)


def test_a_key_that_is_none_is_said(key, tmp_path):
    key("short")
    with pytest.raises(RegistryError, match="at least 16 bytes"):
        sign("task", "digest")
    (tmp_path / "key").unlink()
    with pytest.raises(RegistryError, match="must be readable"):
        sign("task", "digest")
