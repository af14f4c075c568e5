"""What a search shows in a pipe: plain lines, and the words that all views use."""

from __future__ import annotations

import io
from dataclasses import replace

from support.recorded_search import FACTS, begun, ended, reported

from loraxs_search.cli._live import LiveView
from loraxs_search.cli.live_text import LinesView, time_left_in_words
from loraxs_search.log.events import DataRead, Phase, RowsScored, Warned
from loraxs_search.records.task import DataReport
from loraxs_search.records.trial import TrialState


def texts(out: io.StringIO) -> list[str]:
    return [line.split("s  ", 1)[1] for line in out.getvalue().splitlines()]


def test_lines_say_each_event_once():
    out = io.StringIO()
    lines = LinesView(out, "", began=1000.0)
    for event in (
        Phase(study="mine", at=1000.0, text="starting Ray"),
        replace(FACTS, num_trials=2, num_slots=1, num_refits=0, notes=("one thing",)),
        begun(0, 1000.0),
        reported(0, 20, 0.5, 1020.0),
        ended(0, TrialState.COMPLETE, 1020.0, "trained all 20 steps"),
        begun(1, 1001.0),
        ended(1, TrialState.FAIL, 1030.0, "no finite loss"),
        RowsScored(
            study="mine", at=1031.0, what="baseline", split="validation", name="tfidf", metrics={"pearson": 0.4}
        ),
        RowsScored(study="mine", at=1032.0, what="candidate", name="00000.1", split="test", metrics={"pearson": 0.6}),
        Warned(study="mine", at=1033.0, text="logging has said so"),
        Phase(study="mine", at=1034.0, text="done"),
    ):
        lines.happened(event)
    assert texts(out) == [
        "starting Ray",
        "study mine: 2 trials on cpu (float32), 1 slot",
        "note: one thing",
        "browse the trials: loraxs-search ui mine",
        "trial 00000  step 20  pearson 0.5000",
        "trial 00000  COMPLETE  step 20  pearson 0.5000  [1/2]  trained all 20 steps  about 80 s left",
        "trial 00001  FAIL  step 0  [2/2]  no finite loss  a few seconds left",
        "baseline tfidf  pearson 0.4000",
        "candidate 00000.1  test rows  pearson 0.6000",
        "done",
    ]
    assert out.getvalue().splitlines()[4].startswith("  20.0s  ")


def test_a_search_begins_with_what_its_rows_are_like(capsys):
    sizes = {"train": 8373, "validation": 1000, "test": 1000}
    event = DataRead(study="mine", at=1001.0, metric="accuracy", num_rows=sizes, report=DataReport(sizes))
    LinesView(out := io.StringIO(), "ui", began=1000.0).happened(event)
    with LiveView("ui") as live:
        live.happened(event)
    for said in (out.getvalue(), capsys.readouterr().err):
        assert [line.split()[-3:] for line in said.splitlines() if "rows" in line] == [["8,373", "1,000", "1,000"]]


def test_what_is_counted_has_a_line_now_and_then_and_at_its_end():
    out = io.StringIO()
    lines = LinesView(out, "http://h:1", label="mine", warns=True)
    phase = Phase(study="mine", at=100.0, text="training again", done=0, total=40, unit="steps")
    for done, at in ((0, 100.0), (10, 101.0), (20, 111.0), (30, 112.0), (40, 113.0)):
        lines.happened(replace(phase, done=done, at=at))
    lines.happened(Warned(study="mine", at=114.0, text="look"))
    assert texts(out) == [
        "mine  training again: 10 of 40 steps",
        "mine  training again: 20 of 40 steps",
        "mine  training again: 40 of 40 steps",
        "mine  warning: look",
    ]


def test_times_are_said_in_a_unit_that_fits():
    left = [time_left_in_words(seconds) for seconds in (None, 9.9, 89.4, 90.0, 5400.0)]
    assert left == ["", *(f"{it} left" for it in ("a few seconds", "about 89 s", "about 2 min", "about 1.5 h"))]
