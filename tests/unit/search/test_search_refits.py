"""Whose fault it is that a refit does not go on."""

from __future__ import annotations

from typing import Any

import pytest

from loraxs_search.errors import ClusterError, TrialDivergedError
from loraxs_search.records import Hyperparameters, TrialSpec
from loraxs_search.search import refits

SPEC = TrialSpec("00000.1", {}, Hyperparameters(4, ("q",), learning_rate=1e-3, head_learning_rate=1e-3))


class Keeping:
    def __init__(self) -> None:
        self.reasons: list[str] = []

    def failed(self, spec: TrialSpec, reason: str) -> None:
        self.reasons.append(reason)


def answers(monkeypatch: pytest.MonkeyPatch, error: Exception) -> Any:
    def raises(_: Any) -> None:
        raise error

    monkeypatch.setattr(refits.ray, "get", raises)
    return Keeping()


def test_a_node_that_is_not_fit_ends_the_search_and_fails_no_recipe(monkeypatch: pytest.MonkeyPatch) -> None:
    """As one with other rows than the study began with: the refit is trained elsewhere once the node is gone."""
    keeping = answers(monkeypatch, ClusterError("10.0.0.7 is not fit."))
    with pytest.raises(ClusterError):
        refits._taken_up("answer", SPEC, keeping)
    assert not keeping.reasons


def test_a_refit_that_diverges_has_failed_of_itself(monkeypatch: pytest.MonkeyPatch) -> None:
    keeping = answers(monkeypatch, TrialDivergedError("`training loss` must be finite."))
    assert not refits._taken_up("answer", SPEC, keeping)
    assert keeping.reasons == ["`training loss` must be finite."]
