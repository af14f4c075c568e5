"""Whose fault it is that a piece of work does not go on."""

from __future__ import annotations

from typing import Any

import pytest

from loraxs_search.errors import ClusterError, TrialDivergedError
from loraxs_search.search.hosts import pieces


class Kept:
    """A piece that notes why it failed."""

    def __init__(self) -> None:
        self.reasons: list[str] = []

    def ask(self, host: Any) -> Any:
        raise AssertionError("nobody is asked here")

    def take(self, answer: Any) -> bool:
        raise AssertionError("there is no answer")

    def failed(self, error: Exception) -> None:
        self.reasons.append(pieces.why(error))


def answered_with(monkeypatch: pytest.MonkeyPatch, error: Exception) -> None:
    def raises(_: Any) -> None:
        raise error

    monkeypatch.setattr(pieces.ray, "get", raises)


def test_a_node_that_is_not_fit_ends_the_search_and_fails_no_piece(monkeypatch: pytest.MonkeyPatch) -> None:
    """As one with other rows than the study began with: the refit is trained elsewhere once the node is gone."""
    kept = Kept()
    answered_with(monkeypatch, ClusterError("10.0.0.7 is not fit."))
    with pytest.raises(ClusterError):
        pieces._taken(kept, "answer")
    assert not kept.reasons


def test_a_refit_that_diverges_has_failed_by_itself(monkeypatch: pytest.MonkeyPatch) -> None:
    kept = Kept()
    answered_with(monkeypatch, TrialDivergedError("`training loss` must be finite."))
    assert not pieces._taken(kept, "answer")
    assert kept.reasons == ["`training loss` must be finite."]
