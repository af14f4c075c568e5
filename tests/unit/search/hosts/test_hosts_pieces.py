"""Whose fault it is that a piece of work does not go on."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import pytest
from ray.exceptions import RayTaskError
from support.studies import TASK, study
from support.toys import HYPERPARAMETERS

from loraxs_search.errors import ClusterError, HomeError, TrialDivergedError
from loraxs_search.records import Identity, TrialSpec
from loraxs_search.search.driver.finishing import AlonePiece
from loraxs_search.search.hosts import pieces
from loraxs_search.search.hosts.pieces import RefitPiece


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


def spread_over_a_host_that_raises(monkeypatch: pytest.MonkeyPatch, error: Exception, piece: Any = None) -> Any:
    def get(_: Any) -> None:
        raise error

    monkeypatch.setattr(pieces.ray, "get", get)
    monkeypatch.setattr(pieces.ray, "wait", lambda pending, **_: (pending, []))
    piece, host = piece or Noting(), object()
    pieces.spread(lambda: [host], [piece], lambda: None)  # type: ignore[list-item]
    return piece


def test_a_node_that_is_not_fit_ends_the_search(monkeypatch: pytest.MonkeyPatch) -> None:
    """As one with other rows than the study began with: the refit is trained elsewhere once the node is gone."""
    with pytest.raises(ClusterError):
        spread_over_a_host_that_raises(monkeypatch, ClusterError("10.0.0.7 is not fit."))


def test_a_full_disk_of_a_node_ends_the_search_and_is_blamed_on_no_refit(
    monkeypatch: pytest.MonkeyPatch, fresh_home: Path
) -> None:
    """What failed once is not done again: nobody may be named for what is not theirs."""
    full = RayTaskError("advance", "", HomeError("On node 10.0.0.7: no space left.")).as_instanceof_cause()
    folder = study("s")
    refit = RefitPiece(TrialSpec("00000.1", {}, HYPERPARAMETERS), TASK, 2, folder)
    alone = AlonePiece(folder, Identity("base", "rows"), TASK, "validation", range(4), 0)
    for piece in (refit, alone):
        monkeypatch.setattr(type(piece), "ask", lambda *_: "the reference")
        with pytest.raises(HomeError):
            spread_over_a_host_that_raises(monkeypatch, full, piece)
    assert folder.confirmations().refit("00000.1") is None
    assert folder.confirmations().alone_failure(0) is None


def test_a_refit_that_diverges_has_failed_by_itself(monkeypatch: pytest.MonkeyPatch) -> None:
    piece = spread_over_a_host_that_raises(monkeypatch, TrialDivergedError("`training loss` must be finite."))
    assert piece.reasons == ["`training loss` must be finite."]
