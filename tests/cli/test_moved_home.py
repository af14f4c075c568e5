"""A home that was moved: its studies still name the MLflow database by the old path, and nobody makes an empty one."""

from __future__ import annotations

from collections.abc import Callable

import pytest
from support.said import Said
from support.searched_studies import Tried, confirm, searched

Say = Callable[..., Said]


@pytest.fixture
def moved(fresh_home, store_uri, tmp_path, say, monkeypatch):
    """Return the new home; it has a finished study, whose records are in MLflow."""
    folder = searched("done", [Tried({"rank": 4, "learning_rate": 1e-3}, 0.9)])
    confirm(folder, "00000", [0.9, 0.8], [0, 1], [0, 1])
    assert "complete" in say("sync").ok
    new = fresh_home.rename(tmp_path / "larger-disk")
    monkeypatch.setenv("LORAXS_HOME", str(new))
    return new


def test_what_needs_the_store_says_how_to_lead_to_it(moved, fresh_home, say):
    law = f"The store that study 'done' records in must be there, but {fresh_home / 'mlflow.db'} is not"
    for verb in (("resume", "done"), ("studies", "rm", "done", "--runs"), ("ui", "done", "--no-open")):
        assert say(*verb).is_error(1, law, f"ln -s {moved} {fresh_home}")
        assert not fresh_home.exists()
        assert (moved / "studies" / "done").is_dir()
    said = say("sync", "--json")
    assert said.code == 1
    assert '"waiting"' in said.out and f"ln -s {moved} {fresh_home}" in said.out
    assert not fresh_home.exists()
    fresh_home.symlink_to(moved)
    assert "complete" in say("sync").ok
    assert "done" in say("resume", "done").err
    assert "2 runs" in say("studies", "rm", "done", "--runs").ok
