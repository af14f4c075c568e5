"""The view that a driver speaks to: what fails in front of people stops no search."""

from __future__ import annotations

import logging

import pytest

from loraxs_search.search.ledger.announcer import Announcer
from loraxs_search.search.ledger.view import SilentView


class ClosedView(SilentView):
    """A view whose reader went away."""

    def __init__(self) -> None:
        self.shown = 0

    def phase(self, text: str) -> None:
        self.shown += 1
        raise BrokenPipeError("gone")

    def commanded(self, text: str, status: object = None) -> None:
        self.shown += 1


def test_a_view_that_fails_is_left_out_from_then_on(caplog: pytest.LogCaptureFixture) -> None:
    view = ClosedView()
    announcer = Announcer("s", view)
    with announcer.hearing_warnings():
        announcer.phase("loading")
        announcer.commanded("stop 00001: it stops")
        announcer.finished()
    assert view.shown == 1
    assert caplog.text.count("the search is shown no longer: BrokenPipeError: gone") == 1


def test_whoever_warns_goes_on_where_the_warning_cannot_be_passed_on(
    monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    announcer = Announcer("s", SilentView())

    def failing(_: str) -> None:
        raise ValueError("no")

    monkeypatch.setattr(announcer, "warned", failing)
    with announcer.hearing_warnings():
        logging.getLogger("loraxs_search.tracking").warning("MLflow is away")
    assert "ValueError: no" in capsys.readouterr().err
