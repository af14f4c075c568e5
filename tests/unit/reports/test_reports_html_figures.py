"""What the figures show: every trial, the best of them, and when and where each ran."""

from __future__ import annotations

from itertools import pairwise

import pytest
from support.recorded_searches import recorded_search
from support.searched_studies import Tried, searched

from loraxs_search import figures
from loraxs_search.records import AdapterSize, TrialReport, TrialState
from loraxs_search.reports.html import read_facts, sections
from loraxs_search.reports.html.facts import computed
from loraxs_search.reports.html.figures.params import optuna_study


@pytest.fixture
def folder(fresh_home):
    return recorded_search("s", 40)


def test_figures_come_from_python_by_name(folder):
    drawn = figures("s")
    assert list(drawn) == [
        *("learning_curves", "quality_and_bytes", "history", "importances", "parallel_coordinates"),
        *("slice_rank", "slice_learning_rate", "slice_target_modules"),
        *("timeline", "utilisation", "early_stopping"),
    ]
    assert {trace.type for figure in drawn.values() for trace in figure.data} == {"scatter", "bar"}


def test_every_report_is_a_point_of_a_curve_and_stopped_ones_are_grey(folder):
    reports = folder.journal().reports
    curves = {trace.name: trace for trace in figures("s")["learning_curves"].data if trace.showlegend is not False}
    points = [y for name, trace in curves.items() if not name.startswith("best") for y in trace.y if y is not None]
    assert sorted(points) == sorted(report.metrics["accuracy"] for report in reports)
    assert curves["stopped early"].line.color == "#98a1ab"


def test_the_front_is_that_of_the_complete_trials(folder):
    front = next(trace for trace in figures("s")["quality_and_bytes"].data if trace.name == "front")
    assert list(front.x) == sorted(front.x)
    assert list(front.y) == sorted(front.y)
    assert len(front.x) > 1


def test_in_colour_are_the_best_tenth_and_of_two_objectives_the_front(folder):
    accuracies = {name: max(trace.y[0::5]) for name, trace in named(figures("s")["parallel_coordinates"]).items()}
    assert accuracies["best"] == 1.0
    assert accuracies["others"] < 1.0
    both = recorded_search("both", 40, objectives=("accuracy", "stored_bytes"))
    best = named(figures("both")["parallel_coordinates"])["best"]
    assert len(best.y) / 6 == len(read_facts(both).front_ids), "five params and objectives, and a gap"


def named(figure):
    return {trace.name: trace for trace in figure.data}


def test_optuna_knows_trials_by_our_numbers_and_only_what_varies(folder):
    study = optuna_study(read_facts(folder))
    records = folder.journal().records
    assert len(study.trials) == len(records)
    for trial in study.trials:
        record = records[f"{trial.number:05d}"]
        if record.state is TrialState.COMPLETE:
            assert trial.value == record.reports[-1].metrics["accuracy"]
            assert set(trial.params) == {"rank", "learning_rate", "target_modules"}
    assert study.best_trial.distributions["learning_rate"].log


@pytest.mark.parametrize(
    ("values", "shown"),
    [
        ([4, 8, 16, 4], "category"),  # a few whole numbers, each with its tick
        ([0.5, 1.0, 0.5, 1.0], "category"),
        ([0.0123456, 0.0134567, 0.0145678], None),  # a range of which there are only a few trials
        ([1e-4, 2e-3, 5e-2], "log"),
        (["attention", "ffn", "ffn"], "category"),
        ([True, False], "category"),
    ],
)
def test_a_parameter_is_drawn_as_what_its_values_are(values, shown, fresh_home):
    searched("s", [Tried({"p": value}, number / 10) for number, value in enumerate(values)])
    axis = figures("s")["slice_p"].layout.xaxis
    assert axis.type == shown
    if shown == "category":
        assert list(axis.ticktext) == [str(value) for value in sorted(set(values))]


def test_long_labels_are_cut_where_they_stand_side_by_side_and_stay_apart(fresh_home):
    values = [f"query+value+key&dense{number}" for number in range(3)]
    searched("s", [Tried({"p": value}, number / 10) for number, value in enumerate(values)])
    axis = figures("s")["slice_p"].layout.xaxis
    assert len(axis.categoryarray) == 3
    assert set(axis.ticktext) == {"query+value+key&amp;d…"}


# ---- when and where --------------------------------------------------------------------------------------------------
def test_no_two_trials_of_a_host_are_in_one_lane_at_a_time(folder):
    timeline = figures("s")["timeline"]
    bars = [
        (y, base, base + x) for trace in timeline.data for y, base, x in zip(trace.y, trace.base, trace.x, strict=True)
    ]
    assert len(bars) == 40
    for lane in {lane for lane, _, _ in bars}:
        spans = sorted((start, end) for y, start, end in bars if y == lane)
        assert all(end <= start + 1e-9 for (_, end), (start, _) in pairwise(spans))
    assert list(timeline.layout.yaxis.ticktext)[-2:] == ["10.0.0.1 GPU 0", "10.0.0.2 GPU 0"]


def test_the_most_trials_at_a_time_are_those_that_were_open_together(folder):
    says = {section.name: section.says for section in sections(read_facts(folder))}
    assert (
        says["timeline"]
        == "40 trials on 2 hosts, at most 8 trials at a time. A bar is a trial, from its start to its end."
    )


def test_what_an_interrupted_search_left_is_not_called_running(fresh_home):
    folder = recorded_search("s", 12, finished=False)
    assert "not ended" in {trace.name for trace in figures("s")["timeline"].data}
    with folder.lock():
        assert "running" in {trace.name for trace in figures("s")["timeline"].data}


def test_a_trial_that_moved_has_a_bar_on_each_host(fresh_home):
    folder = searched("s", [Tried({}, 0.5, state=TrialState.RUNNING)], finished=False)
    journal = folder.journal()
    for step, host in ((11, "a"), (12, "a"), (13, "b")):
        report = TrialReport("00000", step, {"accuracy": 0.5}, 0.5, step / 10, 100, AdapterSize(1, 1, 1), host=host)
        journal.trial_reported(report)
    assert list(figures("s")["timeline"].layout.yaxis.ticktext) == ["host not recorded", "a", "b"]


def test_what_devices_did_adds_up_to_the_device_time(folder):
    facts = read_facts(folder)
    seconds = sum(seconds for record in facts.records for _, seconds in computed(record))
    line = figures("s")["utilisation"].data[0]
    width_s = 60 * (line.x[-1] - line.x[0]) / (len(line.x) - 1)
    assert sum(line.y[:-1]) * width_s == pytest.approx(seconds, rel=1e-6)


def test_journals_of_earlier_versions_have_times_too(folder):
    record = folder.journal().records["00000"]
    assert len(record.reported_at) == len(record.reports)
    assert list(record.reported_at) == sorted(record.reported_at)
    assert record.started_at < record.reported_at[0] <= record.reported_at[-1] <= record.ended_at
