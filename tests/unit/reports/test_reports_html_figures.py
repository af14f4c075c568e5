"""What the figures show: every trial, and the best of them."""

from __future__ import annotations

from dataclasses import replace

import pytest
from support.searched_studies import Tried, recorded_search, searched
from support.studies import TASK

from loraxs_search import figures
from loraxs_search.records.search import Baseline
from loraxs_search.records.trial import TrialState


@pytest.fixture
def folder(fresh_home):
    return recorded_search("s", 40)


def test_each_figure_comes_from_python_by_name_and_shows_every_trial(folder):
    folder.write_baselines([Baseline("constant", {"accuracy": 0.2}), Baseline("<b>mine", {"accuracy": 0.7})])
    drawn = figures("s")
    assert list(drawn) == [
        *("learning_curves", "quality_and_bytes", "history", "importances"),
        *("slice_rank", "slice_learning_rate", "slice_target_modules"),
    ]
    curves = {trace.name: trace for trace in drawn["learning_curves"].data if trace.mode != "lines"}
    points = [y for name, trace in curves.items() if not name.startswith("best") for y in trace.y if y is not None]
    assert sorted(points) == sorted(report.metrics["accuracy"] for report in folder.journal().reports)
    assert curves["stopped early"].line.color == "#98a1ab"
    levels = [trace for trace in drawn["learning_curves"].data if trace.mode == "lines"]
    assert [(trace.name, *trace.y) for trace in levels] == [("constant", 0.2, 0.2), ("&lt;b&gt;mine", 0.7, 0.7)]
    assert levels[0].line.dash != levels[1].line.dash

    front = next(trace for trace in drawn["quality_and_bytes"].data if trace.name == "front")
    assert list(front.x) == sorted(front.x)
    assert list(front.y) == sorted(front.y)
    assert len(front.x) > 1

    complete = [record for record in folder.journal().records.values() if record.state is TrialState.COMPLETE]
    scores = [record.reports[-1].metrics["accuracy"] for record in complete]
    trials, so_far = drawn["history"].data
    assert (list(trials.x), list(trials.y)) == ([int(record.trial_id) for record in complete], scores)
    assert list(so_far.y) == [max(scores[: count + 1]) for count in range(len(scores))]
    assert list(drawn["slice_rank"].data[0].y) == scores
    assert list(drawn["slice_rank"].layout.xaxis.ticktext) == ["4", "8", "16"]
    assert drawn["slice_learning_rate"].layout.xaxis.type == "log"


def test_the_best_is_on_top_where_less_is_better(fresh_home):
    for name, direction in (("more", "maximize"), ("less", "minimize")):
        task = replace(TASK, report_metric="loss", report_direction=direction)
        searched(name, [Tried({}, 0.3, 100), Tried({}, 0.2, 200)], task=task)
    turned = [figures(name)["quality_and_bytes"].layout.yaxis.autorange for name in ("more", "less")]
    assert turned == [None, "reversed"]


def test_long_labels_are_cut_where_they_stand_side_by_side_and_stay_apart(fresh_home):
    values = [f"query+value+key&dense{number}" for number in range(3)]
    searched("s", [Tried({"p": value}, number / 10) for number, value in enumerate(values)])
    axis = figures("s")["slice_p"].layout.xaxis
    assert len(axis.categoryarray) == 3
    assert set(axis.ticktext) == {"query+value+key&amp;d…"}


def test_a_parameter_that_no_complete_trial_has_is_left_out(fresh_home):
    stopped = Tried({"p": "a", "q": "a"}, 0.1, state=TrialState.PRUNED)
    searched("s", [*(Tried({"p": value}, number / 10) for number, value in enumerate("abc")), stopped])
    assert [name for name in figures("s") if name.startswith("slice")] == ["slice_p"]


def test_each_complete_trial_is_a_point_and_few_values_stand_side_by_side(fresh_home):
    searched("s", [Tried({"rank": rank, "p": p}, p) for rank, p in ((16, 0.5), ("auto", 0.6), (4, 0.002), (8, 0.5))])
    plots = figures("s")
    assert plots["slice_rank"].data[0].x == ("16", "auto", "4", "8")
    assert plots["slice_rank"].layout.xaxis.categoryarray == ("4", "8", "16", "auto")
    assert plots["slice_p"].layout.xaxis.ticktext == ("0.002", "0.5", "0.6")
