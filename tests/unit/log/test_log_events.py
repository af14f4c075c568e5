"""Each kind of event is a line, and is read back from it; lines of other versions."""

from __future__ import annotations

from pathlib import Path
from typing import get_args

import pytest

from loraxs_search.log.events import (
    AdapterWritten,
    Answered,
    BaselinesMeasured,
    Commanded,
    DataRead,
    DriverStarted,
    LoggedEvent,
    Phase,
    Reopened,
    ReportWritten,
    RowsScored,
    SearchFinished,
    SearchStarted,
    Steered,
    TrainingEnded,
    TrialContinued,
    TrialEnded,
    TrialReported,
    TrialStarted,
    Warned,
)
from loraxs_search.log.study_log import read_events
from loraxs_search.records.search import Baseline, Command, SearchPlan
from loraxs_search.records.trial import AdapterSize, Proposal, TrialReport, TrialState

REPORT = TrialReport(
    "00000", 40, {"accuracy": 0.5}, 0.7, 1.5, 100, AdapterSize(16, 4, 80), {"00001": (40, 0.4)}, host="a"
)
PROPOSAL = Proposal({"rank": 8}, {"rank": {"name": "x", "attributes": {"choices": [8, 4]}}}, {"cma:0": "ab"})
EVENTS: list[LoggedEvent] = [
    DriverStarted(at=1.0, since=0.5),
    TrialStarted(at=2.0, trial_id="00000", params={"rank": 8, "bias": True, "head": "full", "rate": 0.1}),
    TrialStarted(at=2.0, trial_id="00001", params={}, command="c", lineage="00000", proposal=PROPOSAL),
    TrialReported(at=3.0, report=REPORT),
    TrialContinued(at=4.5, trial_id="00000"),
    TrialEnded(at=4.0, trial_id="00000", state=TrialState.PRUNED, reason="weak"),
    TrainingEnded(at=5.0, notice=""),
    Reopened(at=6.0, number=2),
    Commanded(at=7.0, command=Command("c", "stop", ("00000",), {"now": True}, {"rank": 4}, "ann", 6.5)),
    Answered(at=8.0, command_id="c", state="done", text="it stops", facts={"step": 3}),
    Phase(at=9.0, text="scoring", done=1, total=2, unit="rows"),
    Warned(at=9.0, text="look"),
    Steered(at=9.0, text="finish: no more", finishing="finished by a person"),
    RowsScored(at=9.0, what="candidate", name="00000.1", split="test", metrics={"accuracy": 0.5}),
    AdapterWritten(at=9.0, trial_id="00000.1", folder="adapters/00000.1", run_of="00000", scores={"test.f1": 0.5}),
    BaselinesMeasured(at=9.0, baselines=(Baseline("constant", {"accuracy": 0.5}, answer=1),)),
    ReportWritten(at=9.0, path="report.html"),
    SearchFinished(at=9.0, state="KILLED", summary={"wall_s": 1.5, "notice": "so"}),
]


@pytest.fixture
def path(tmp_path):
    return tmp_path / "journal.jsonl"


def write(path: Path, *events: LoggedEvent) -> None:
    path.write_bytes(b"".join(event.to_line() for event in events))


def read(path: Path) -> list[LoggedEvent]:
    return [event for event, _ in read_events(path, None) if event is not None]


def test_every_event_is_read_back_from_its_line(path):
    run = {"space_yaml": "task: t\n", "plan": SearchPlan(trials=3), "params": {"a": 1}, "tags": {"b": "c"}}
    told = [*EVENTS, DriverStarted(at=1.0, since=0.5, **run)]
    write(path, *told)
    assert len(path.read_bytes().splitlines()) == len(told)
    assert read(path) == told
    # `test_log_view.py` reads back what is said of rows and plan.
    assert {type(event) for event in EVENTS} >= set(get_args(LoggedEvent)) - {DataRead, SearchStarted}


def test_the_order_of_parameters_stays(path):
    """Samplers go by it: sorted, the next proposal would be another one."""
    event = TrialStarted(at=1.0, trial_id="00000", params={"b": 1, "a": 2}, proposal=Proposal({"b": 1, "a": 2}, {}))
    write(path, event)
    (again,) = read(path)
    assert isinstance(again, TrialStarted)
    assert list(again.params) == list(again.proposal.params) == ["b", "a"]


def test_a_text_with_half_a_character_spoils_no_log(path):
    """Python names files so whose names are no UTF-8."""
    write(path, *(Warned(at=9.0, text=text) for text in ("caf\udce9.csv", "caf\u00e9 \U0001f600")))
    assert [event.text for event in read(path) if isinstance(event, Warned)] == ["caf?.csv", "caf\u00e9 \U0001f600"]


def test_readers_go_on_from_their_offsets(path):
    write(path, *EVENTS[:2])
    (first, behind), (second, end) = read_events(path, "s")
    assert first is not None
    assert (first.study, end) == ("s", path.stat().st_size)
    assert list(read_events(path, "s", behind)) == [(second, end)]
    assert list(read_events(path, "s", end)) == []


# ---- other lines -----------------------------------------------------------------------------------------------------
def test_an_unknown_kind_is_passed_over_with_a_warning(path, caplog):
    path.write_text('{"event": "unheard_of", "at": 1.0}\n{"event": "Warned", "text": "so", "at": 1.0}\n')
    assert [type(event).__name__ for event in read(path)] == ["Warned"]
    assert next(read_events(path, None))[1] == len(path.read_text().partition("\n")[0]) + 1, "and not read again"
    assert "unheard_of" in caplog.text
