"""Whose fault it is that a piece of work does not go on."""

from __future__ import annotations

from typing import Any

import pytest

from loraxs_search.errors import ClusterError, TrialDivergedError
from loraxs_search.search.hosts import pieces


class Noting:
    """A piece that notes why it failed."""

    def __init__(self) -> None:
        self.reasons: list[str] = []

    def ask(self, host: Any) -> Any:
        return "the reference"

    def take(self, answer: Any) -> bool:
        raise AssertionError("there is no answer")

    def failed(self, error: Exception) -> None:
        self.reasons.append(pieces.reason_of(error))


def spread_over_a_host_that_raises(monkeypatch: pytest.MonkeyPatch, error: Exception) -> Noting:
    def get(_: Any) -> None:
        raise error

    monkeypatch.setattr(pieces.ray, "get", get)
    monkeypatch.setattr(pieces.ray, "wait", lambda pending, **_: (pending, []))
    piece, host = Noting(), object()
    pieces.spread(lambda: [host], [piece], lambda: None)  # type: ignore[list-item]
    return piece


def test_a_node_that_is_not_fit_ends_the_search(monkeypatch: pytest.MonkeyPatch) -> None:
    """As one with other rows than the study began with: the refit is trained elsewhere once the node is gone."""
    with pytest.raises(ClusterError):
        spread_over_a_host_that_raises(monkeypatch, ClusterError("10.0.0.7 is not fit."))


def test_a_refit_that_diverges_has_failed_by_itself(monkeypatch: pytest.MonkeyPatch) -> None:
    piece = spread_over_a_host_that_raises(monkeypatch, TrialDivergedError("`training loss` must be finite."))
    assert piece.reasons == ["`training loss` must be finite."]
