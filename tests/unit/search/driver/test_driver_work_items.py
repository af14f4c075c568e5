"""The items of a search's end, without a cluster: which rows are left, and what answers add up to."""

from __future__ import annotations

import itertools
import math
from dataclasses import replace
from types import SimpleNamespace
from typing import Any

import pytest
from hypothesis import given
from hypothesis import strategies as st
from ray.exceptions import RayTaskError
from safetensors.numpy import save
from support.studies import TASK as SST2
from support.studies import study
from support.toys import HYPERPARAMETERS, TASK

from loraxs_search.errors import ClusterError, HomeError, TaskDataError, TrialDivergedError
from loraxs_search.records.adapter import ClassScores, Sample
from loraxs_search.records.codec import to_json
from loraxs_search.records.host import Answers
from loraxs_search.records.trial import AdapterSize, TrialReport, TrialSpec
from loraxs_search.search.driver import work_items
from loraxs_search.search.driver.work_items import (
    Trained,
    WorkItem,
    answer_work,
    class_report,
    joined,
    reason_of,
    refit_spec,
    refit_work,
    row_parts,
    slices_of,
    validation_work,
)
from loraxs_search.studies.confirmations import Confirmations

SPEC = TrialSpec("00001", {}, HYPERPARAMETERS)


@given(st.integers(1, 3000), st.lists(st.integers(0, 3000), max_size=8))
def test_every_row_is_answered_once_also_after_a_kill(num_rows, cuts):
    edges = sorted({cut for cut in cuts if cut <= num_rows})
    done = [range(a, b) for a, b in list(itertools.pairwise(edges))[::2]]
    lacking = row_parts(num_rows, done)
    assert sorted(row for part in (*done, *lacking) for row in part) == list(range(num_rows))


def test_parts_are_small_enough_to_show_how_far_the_work_is():
    assert row_parts(1000, []) == [range(start, min(start + 128, 1000)) for start in range(0, 1000, 128)]
    assert row_parts(1000, [range(1000)]) == []


def test_answers_of_several_hosts_add_up(tmp_path):
    confirmed = Confirmations(tmp_path)
    confirmed.write_answers("00001.2", range(2, 3), Answers((1,), (1,), 0.5))
    confirmed.write_answers("00001.2", range(2), Answers((0, 1), (0, 0), 1.0))
    confirmed.write_answers("00001", range(9), Answers((0,) * 9, (1,) * 9, 9.0))
    found = confirmed.answers("00001.2")
    assert list(found) == [range(2), range(2, 3)]
    metrics, rows = joined(list(found.values()), replace(TASK, metrics=("accuracy",)))
    assert metrics == {"accuracy": pytest.approx(2 / 3), "loss": 0.5}
    assert (rows.predictions.tolist(), rows.labels.tolist()) == ([0, 1, 1], [0, 0, 1])
    groups = [("a", "b"), ("a",)]
    parts = [replace(part, slices={"group": own}) for part, own in zip(found.values(), groups, strict=True)]
    task = replace(TASK, metrics=("accuracy",), metric="accuracy", slices=("group",))
    assert joined(parts, task)[1].slices["group"].tolist() == ["a", "b", "a"]
    assert [(each.value, each.score) for each in slices_of(parts, task)] == [("a", 1.0), ("b", 0.0)]
    assert slices_of([*parts, Answers((), (), math.nan)], task) == (), "some are not finite"


@pytest.mark.parametrize("asked", ["validation", "test"])
def test_an_adapter_whose_numbers_are_not_finite_has_no_score_and_ends_no_search(fresh_home, asked):
    """What else goes wrong is put right, and then done by the search that continues."""
    folder = study("s")
    trained, confirmed = Trained(SPEC, folder, {}, AdapterSize(1, 1, 1)), folder.confirmed
    item: Any = validation_work(trained, TASK) if asked == "validation" else answer_work(trained, range(2), TASK)
    with pytest.raises(TaskDataError):
        item.failed(TaskDataError("elsewhere"))
    assert (confirmed.validation("00001").read(), confirmed.answers("00001")) == (None, {})
    item.failed(TrialDivergedError("Logits must be finite."))
    if asked == "validation":
        assert confirmed.validation("00001").read() == {}
        return
    confirmed.write_answers("00001", range(2, 3), Answers((1,), (1,), 0.5))
    metrics, _ = joined(list(confirmed.answers("00001").values()), TASK)
    assert all(math.isnan(value) for value in metrics.values())


def test_a_refit_that_is_late_is_left_out(fresh_home):
    folder, late = study("s"), list[bool]()
    refit = refit_work(refit_spec(SPEC, 1), TASK, 2, folder, is_late=lambda: bool(late))
    report = TrialReport("00001.1", 2, {}, 0.5, 1.0, 1, AdapterSize(1, 1, 1))
    state = save({}, {"trial": to_json({"trial_id": "00001.1"})})
    assert refit.take((report, state))
    late.append(True)
    assert not refit.take((report, state))
    assert folder.confirmed.refit("00001.1").read() is None


def no_answer(_: Any) -> bool:
    raise AssertionError("there is no answer")


def spread_over_a_host_that_raises(monkeypatch: pytest.MonkeyPatch, error: Exception, item: Any) -> None:
    def get(_: Any) -> None:
        raise error

    monkeypatch.setattr(work_items.ray, "get", get)
    monkeypatch.setattr(work_items.ray, "wait", lambda pending, **_: (pending, []))
    pool: Any = SimpleNamespace(hosts=lambda: [object()])
    work_items.map_over_hosts(pool, [replace(item, ask=lambda _: "the reference")], lambda: None)


@pytest.mark.parametrize(
    "error",
    [
        ClusterError("10.0.0.7 is not fit."),  # as one with other rows than the study began with
        RayTaskError("advance", "", HomeError("On node 10.0.0.7: no space left.")).as_instanceof_cause(),
    ],
    ids=type,
)
def test_a_fault_of_a_node_ends_the_search_and_is_blamed_on_no_refit(error, monkeypatch, fresh_home):
    """What failed once is not done again: nobody may be named for what is not theirs."""
    folder = study("s")
    with pytest.raises(type(error)):
        spread_over_a_host_that_raises(monkeypatch, error, refit_work(refit_spec(SPEC, 1), TASK, 2, folder))
    assert folder.confirmed.refit("00001.1").read() is None


def test_a_refit_that_diverges_has_failed_by_itself(monkeypatch):
    reasons = list[str]()
    item: WorkItem[Any] = WorkItem(no_answer, no_answer, lambda error: reasons.append(reason_of(error)))
    spread_over_a_host_that_raises(monkeypatch, TrialDivergedError("`training loss` must be finite."), item)
    assert reasons == ["`training loss` must be finite."]


TASK_OF_THREE = replace(SST2, labels=("Law", "News", "Sports"))
WRONG = Sample("a text", "Law", "News")


def test_classes_are_counted_over_all_parts():
    parts = [Answers((1, 1), (0, 1), 0.0, wrong=(WRONG,)), Answers((1, 2), (0, 2), 0.0, wrong=(WRONG,) * 30)]
    report = class_report(parts, TASK_OF_THREE)
    assert report is not None
    law, news, sports = report.classes
    assert law == ClassScores("Law", 2, None, 0.0, 0.0), "no answer counts for its precision"
    assert (news.rows, news.precision, news.recall, news.f1) == (1, pytest.approx(1 / 3), 1.0, 0.5)
    assert (sports.precision, sports.recall, sports.f1) == (1.0, 1.0, 1.0)
    assert report.confusion == ((0, 2, 0), (0, 1, 0), (0, 0, 1))
    assert report.never_answered == ["Law"]
    assert report.wrong == (WRONG,) * 20


def test_numbers_have_no_classes():
    assert class_report([Answers((0.5,), (0.25,), 0.0)], replace(TASK, labels=())) is None
