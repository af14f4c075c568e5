"""Entries of a seam by name, and the name that somebody may have meant."""

from __future__ import annotations

from types import SimpleNamespace

import pytest
from support.plugins import write_distribution

from loraxs_search.errors import UsageError, meant
from loraxs_search.plugins import EntryPoints

GROUP = "loraxs_search.test_entries"
OWN = SimpleNamespace(name="own")


@pytest.fixture
def registry(tmp_path, monkeypatch):
    """One entry of the package's own, and a distribution that brings three, of which one cannot be imported."""
    entries = {"theirs": "WORD", "gone": "NOTHING", "own": "WORD"}
    write_distribution(tmp_path / "site", "toy_entries", "WORD = 'from outside'\n", {GROUP: entries})
    monkeypatch.syspath_prepend(str(tmp_path / "site"))
    return EntryPoints("toy", GROUP, OWN)


def test_entries_are_had_by_their_names_and_the_packages_own_cannot_be_taken(registry):
    assert registry.names() == ["own", "theirs", "gone"]
    assert (registry.get("own"), registry.get("theirs")) == (OWN, "from outside")
    with pytest.raises(ValueError, match=r"`toy`.*'own'"):
        registry.register("own", "another")
    registry.register("mine", "registered")
    registry.register("mine", "registered")  # as when a notebook's cell runs twice
    assert registry.names() == ["own", "theirs", "mine", "gone"]
    assert registry.get("mine") == "registered"
    assert registry.importable() == {"own": OWN, "mine": "registered", "theirs": "from outside"}


def test_what_is_unknown_or_cannot_be_imported_is_refused(registry):
    with pytest.raises(UsageError, match=r"`toy`.*: theirs, gone, own, .*'their'"):
        registry.get("their")
    with pytest.raises(UsageError, match=r"`toy` gone .*toy_entries:NOTHING"):
        registry.get("gone")


def test_a_module_that_fails_in_any_way_holds_up_no_other_entry(tmp_path, monkeypatch):
    write_distribution(tmp_path / "site", "toy_broken", "def broken(:", {GROUP: {"broken": "WORD"}})
    monkeypatch.syspath_prepend(str(tmp_path / "site"))
    registry = EntryPoints("toy", GROUP, OWN)
    assert registry.importable() == {"own": OWN}
    with pytest.raises(UsageError, match=r"`toy` broken .*toy_broken:WORD, but: SyntaxError: "):
        registry.get("broken")


def test_the_one_that_is_nearly_the_same_is_meant():
    for name, known, near in [
        ("learnin_rate", ["learning_rate", "head_learning_rate"], "learning_rate"),  # clearly nearer than the other one
        ("movie_review", ["movie_reviews", "movie_reviews_text"], "movie_reviews"),
        ("reviewz", ["reviews", "reviewx"], ""),
        ("label-5", [f"label-{number:03d}" for number in range(500)], ""),
        ("POSITIVE", ["negative", "positive"], "positive"),
        ("7", ["00006", "00007"], "00007"),
        ("00008", ["00007"], ""),  # another number is another thing
        ("reviews:9", ["reviews:1", "reviews@c"], ""),  # nor is what is like it in another way
        ("sst", ["sst2"], "sst2"),
    ]:
        assert meant(name, known) == near, name
