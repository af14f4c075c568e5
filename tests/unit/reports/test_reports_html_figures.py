"""What the figures show: every trial, and the best of them."""

from __future__ import annotations

from dataclasses import replace

import pytest
from support.recorded_searches import recorded_search
from support.searched_studies import Tried, searched
from support.studies import TASK

from loraxs_search import figures
from loraxs_search.records.promotion import Baseline
from loraxs_search.records.trial import TrialState
from loraxs_search.reports.html.figures import optuna_study
from loraxs_search.reports.html.summary import read_facts


@pytest.fixture
def folder(fresh_home):
    return recorded_search("s", 40)


def test_figures_come_from_python_by_name(folder):
    drawn = figures("s")
    assert list(drawn) == [
        *("learning_curves", "quality_and_bytes", "history", "importances"),
        *("slice_rank", "slice_learning_rate", "slice_target_modules"),
    ]
    assert {trace.type for figure in drawn.values() for trace in figure.data} == {"scatter", "bar"}


def test_every_report_is_a_point_of_a_curve_and_stopped_ones_are_grey(folder):
    reports = folder.journal().reports
    curves = {trace.name: trace for trace in figures("s")["learning_curves"].data if trace.showlegend is not False}
    points = [y for name, trace in curves.items() if not name.startswith("best") for y in trace.y if y is not None]
    assert sorted(points) == sorted(report.metrics["accuracy"] for report in reports)
    assert curves["stopped early"].line.color == "#98a1ab"


def test_names_of_baselines_with_nearly_one_score_do_not_overlap(folder):
    scores = {"constant": 0.2, "tfidf": 0.7, "features": 0.7, "mine": 0.7001}
    folder.write_baselines([Baseline(name, {"accuracy": score}) for name, score in scores.items()])
    (names,) = (trace for trace in figures("s")["learning_curves"].data if trace.mode == "text")
    assert list(names.text) == ["mine<br>tfidf<br>features", "constant"]


def test_the_front_is_that_of_the_complete_trials(folder):
    front = next(trace for trace in figures("s")["quality_and_bytes"].data if trace.name == "front")
    assert list(front.x) == sorted(front.x)
    assert list(front.y) == sorted(front.y)
    assert len(front.x) > 1


def test_the_best_is_on_top_where_less_is_better(fresh_home):
    for name, direction in (("more", "maximize"), ("less", "minimize")):
        task = replace(TASK, report_metric="loss", report_direction=direction)
        searched(name, [Tried({}, 0.3, 100), Tried({}, 0.2, 200)], task=task)
    turned = [figures(name)["quality_and_bytes"].layout.yaxis.autorange for name in ("more", "less")]
    assert turned == [None, "reversed"]


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
