"""Entries of a seam by name."""

from __future__ import annotations

from types import SimpleNamespace

import pytest
from support.plugins import write_distribution

from loraxs_search.errors import UsageError
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


def test_own_entries_come_first_and_cannot_be_taken(registry):
    assert registry.names() == ["own", "theirs", "gone"]
    assert registry.get("own") is OWN
    with pytest.raises(ValueError, match=r"`toy`.*'own'"):
        registry.register("own", "another")


def test_what_a_distribution_brings_is_had_by_its_name(registry):
    assert registry.get("theirs") == "from outside"


def test_what_is_registered_here_is_had_too(registry):
    registry.register("mine", "registered")
    registry.register("mine", "registered")  # as when a notebook's cell runs twice
    assert registry.names() == ["own", "mine", "theirs", "gone"]
    assert registry.get("mine") == "registered"


def test_an_unknown_name_is_refused_with_the_nearest_first(registry):
    with pytest.raises(UsageError, match=r"`toy`.*: theirs, gone, own, .*'their'"):
        registry.get("their")


def test_an_entry_that_cannot_be_imported_says_from_where(registry):
    with pytest.raises(UsageError, match=r"`toy` gone .*toy_entries:NOTHING"):
        registry.get("gone")


@pytest.mark.parametrize(
    ("source", "error"),
    [
        ("raise RuntimeError('no GPU')", "RuntimeError: no GPU"),
        ("open('/nowhere')", "FileNotFoundError: "),
        ("def broken(:", "SyntaxError: "),
    ],
)
def test_a_module_that_fails_in_any_way_holds_up_no_other_entry(source, error, tmp_path, monkeypatch):
    write_distribution(tmp_path / "site", "toy_broken", source, {GROUP: {"broken": "WORD"}})
    monkeypatch.syspath_prepend(str(tmp_path / "site"))
    registry = EntryPoints("toy", GROUP, OWN)
    assert registry.importable() == {"own": OWN}
    with pytest.raises(UsageError, match=rf"`toy` broken .*toy_broken:WORD, but: {error}"):
        registry.get("broken")


def test_what_cannot_be_imported_is_left_out_of_the_importable(registry):
    assert registry.importable() == {"own": OWN, "theirs": "from outside"}
