"""The view that a driver speaks to: what fails in front of people stops no search."""

from __future__ import annotations

import logging
from pathlib import Path
from types import SimpleNamespace
from typing import cast

import pytest
from support.studies import study

from loraxs_search.records import (
    AnswerFact,
    ConstantAnswer,
    DataReadEvent,
    DataReport,
    HostInfo,
    SearchEvent,
    StandardError,
    TokenCounts,
)
from loraxs_search.search.ledger.announcer import Announcer
from loraxs_search.search.ledger.event_view import EventView
from loraxs_search.search.ledger.view import SilentView
from loraxs_search.studies import JournalEvents


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
    assert caplog.text.count("the view of the search failed, and shows no more: BrokenPipeError: gone") == 1


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


def test_what_rows_are_like_is_kept_for_who_watches(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("LORAXS_HOME", str(tmp_path))
    folder, heard = study("mine"), list[SearchEvent]()
    announcer = Announcer("mine", EventView(heard.append))
    announcer.write_to(folder.journal())
    report = DataReport(
        {"train": 8, "validation": 2, "test": 2},
        tokens={"train": TokenCounts(3, 9)},
        answers=(AnswerFact("b", {"train": 5}), AnswerFact("a", {"train": 0.5})),
        constant=ConstantAnswer("b", {"test": {"accuracy": 0.5}}),
        standard_errors={"test": {"accuracy": StandardError(0.1, 0.5)}},
    )
    announcer.data_read(folder.info.task, cast("HostInfo", SimpleNamespace(num_rows=report.num_rows, data=report)))
    (event,) = heard
    assert isinstance(event, DataReadEvent)
    assert (event.metric, event.report) == (folder.info.task.metric, report)
    assert list(JournalEvents(folder).new()) == heard
