"""The items of a search's end, without a cluster: which rows are left, and what answers add up to."""

from __future__ import annotations

import itertools
import math
from dataclasses import replace
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import pytest
from hypothesis import given
from hypothesis import strategies as st
from ray.exceptions import RayTaskError
from safetensors.numpy import save
from support import studies
from support.searched_studies import Tried, confirm, searched
from support.studies import TASK as SST2
from support.studies import study
from support.toys import HYPERPARAMETERS, TASK

from loraxs_search.errors import ClusterError, HomeError, TaskDataError, TrialDivergedError
from loraxs_search.records.adapter import ClassScores, Manifest, ReferenceLogits, Sample
from loraxs_search.records.base import BaseModel, BaseModelRef, Identity
from loraxs_search.records.codec import to_json
from loraxs_search.records.host import Answers
from loraxs_search.records.promotion import Baseline, PromotionRule, Refit
from loraxs_search.records.trial import AdapterSize, TrialReport, TrialSpec
from loraxs_search.registry.manifest import folder_digest, sealed, verify
from loraxs_search.search.driver import work_items
from loraxs_search.search.driver.finalize import Finalization
from loraxs_search.search.driver.work_items import (
    Trained,
    WorkItem,
    answer_work,
    base_answer_work,
    class_report,
    joined,
    raised,
    reason_of,
    refit_work,
    row_parts,
    slices_of,
    validation_work,
)
from loraxs_search.studies.confirmations import Confirmations

SPACE = "task: sst2\nbase_model: org/base\nparameters: {rank: {choice: [4, 8, 16]}, learning_rate: 0.01}\n"


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


def test_what_is_done_is_found_again(tmp_path):
    confirmed = Confirmations(tmp_path)
    assert confirmed.refit("00001.1") is None
    assert confirmed.validation("00001") is None
    confirmed.write_refit("00001.1", Refit(7, {"accuracy": 0.5}))
    confirmed.write_validation("00001", {})
    assert confirmed.refit("00001.1") == Refit(7, {"accuracy": 0.5})
    assert confirmed.validation("00001") == {}, "it was tried, and has no score"


def test_a_finalist_whose_answers_are_not_finite_has_no_score_and_ends_no_search(tmp_path, monkeypatch):
    monkeypatch.setenv("LORAXS_HOME", str(tmp_path))
    study = studies.study("s")
    trained = Trained(TrialSpec("00001", {}, HYPERPARAMETERS), study, {}, AdapterSize(1, 1, 1))
    item = answer_work(trained, range(2), TASK)
    item.failed(TrialDivergedError("Logits must be finite."))
    with pytest.raises(TaskDataError):
        item.failed(TaskDataError("elsewhere"))
    study.confirmations().write_answers("00001", range(2, 3), Answers((1,), (1,), 0.5))
    metrics, _ = joined(list(study.confirmations().answers("00001").values()), TASK)
    assert all(math.isnan(value) for value in metrics.values())


def test_only_divergence_leaves_a_candidate_without_validation_scores(tmp_path, monkeypatch):
    monkeypatch.setenv("LORAXS_HOME", str(tmp_path))
    study = studies.study("s")
    item = validation_work(Trained(TrialSpec("00001", {}, HYPERPARAMETERS), study, {}, AdapterSize(1, 1, 1)), TASK)
    with pytest.raises(TaskDataError):
        item.failed(TaskDataError("elsewhere"))
    assert study.confirmations().validation("00001") is None, "it is scored by the search that goes on"
    item.failed(TrialDivergedError("Logits must be finite."))
    assert study.confirmations().validation("00001") == {}


def test_a_baseline_that_was_measured_after_the_finalist_was_sealed_stands_in_its_folder(tmp_path, monkeypatch):
    monkeypatch.setenv("LORAXS_HOME", str(tmp_path))
    folder = searched("s", [Tried({"rank": 4}, 0.9)], finished=False, space=SPACE)
    confirm(folder, "00000", [0.9], [1, 0], [1, 1])
    found = folder.confirmations().candidate("00000")
    made = Manifest(
        task=TASK, base_model=BaseModelRef("b"), base_digest="base", data_fingerprint="data", study="s",
        trial_id="00000", params={}, hyperparameters=HYPERPARAMETERS, validation_metrics={}, size=AdapterSize(1, 1, 1),
        test_metrics={TASK.metric: 0.5}, probe=ReferenceLogits((), ()), versions={}, created_at="2026-01-01",
    )  # fmt: skip
    folder.write_adapter("00000", sealed({"adapter_model.safetensors": b"R"}, made))
    folder.write_baselines([Baseline("zero-shot", {TASK.metric: 0.4}, {TASK.metric: 0.4321})])
    space = SimpleNamespace(promotion=PromotionRule(), task=folder.info.task)
    actors = SimpleNamespace(pool=SimpleNamespace(hosts=[], config=SimpleNamespace(max_trials=1)))
    finish = Finalization(actors, folder, space, (), bool)
    (chosen,) = finish.seal([found], lambda _: None)
    path = folder.adapter_path("00000")
    assert verify(path).baselines == chosen.baselines == folder.baselines()
    assert "0.4321" in (path / "README.md").read_text()
    digest = folder_digest(path)
    finish.seal([found], lambda _: None)
    assert folder_digest(path) == digest, "nothing is new"


def test_a_refit_that_is_late_is_left_out(tmp_path, monkeypatch):
    monkeypatch.setenv("LORAXS_HOME", str(tmp_path))
    study, late = studies.study("s"), list[bool]()
    refit = refit_work(TrialSpec("00001.1", {}, HYPERPARAMETERS), TASK, 2, study, is_late=lambda: bool(late))
    report = TrialReport("00001.1", 2, {}, 0.5, 1.0, 1, AdapterSize(1, 1, 1))
    state = save({}, {"trial": to_json({"trial_id": "00001.1"})})
    assert refit.take((report, state))
    late.append(True)
    assert not refit.take((report, state))
    assert study.confirmations().refit("00001.1") is None


def test_of_candidates_that_wait_for_their_scores_the_best_are_scored_as_far_as_time_allows(tmp_path, monkeypatch):
    monkeypatch.setenv("LORAXS_HOME", str(tmp_path))
    tried = [Tried({"rank": 4}, 0.7), Tried({"rank": 8}, 0.9), Tried({"rank": 16}, 0.8)]
    folder = searched("s", tried, finished=False, space=SPACE)
    folder.confirmations().write_validation("00000", {"accuracy": 0.71})
    info = SimpleNamespace(
        num_rows={"validation": 5}, data_fingerprint="d", test_fingerprint="t", base=BaseModel("b", "", "digest")
    )
    actors = SimpleNamespace(info=info, spec=lambda name, params: TrialSpec(name, params, HYPERPARAMETERS))
    space = SimpleNamespace(
        promotion=PromotionRule(seeds=0, choose="best"), task=replace(folder.info.task, validation_rows=5),
        search=folder.info.search, method_of=lambda _: SimpleNamespace(name="lora-xs"), may_be_candidate=bool,
    )  # fmt: skip
    asked = list[str]()

    def score(self, items, **_):
        for item in items:
            report = item.ask(host)
            asked.append(report.trial_id)
            item.take((report, b""))

    def advance(spec, until, snapshot, task):
        return TrialReport(spec.trial_id, until, {"accuracy": 0.91}, 0.5, 1.0, 1, AdapterSize(1, 1, 1))

    host = SimpleNamespace(advance=SimpleNamespace(remote=advance))
    for name in ("00001", "00002"):
        trained = TrialReport(name, 8, {}, 0.5, 1.0, 1, AdapterSize(1, 1, 1))
        folder.snapshots.write(
            name, save({}, {"trial": to_json({"study": "s", "trial_id": name, "reports": [trained]})})
        )
    monkeypatch.setattr(Finalization, "_map_over_hosts", score)
    records = sorted(folder.journal().records.values(), key=lambda record: -record.reports[-1].metrics["accuracy"])
    finish = Finalization(actors, folder, space, records, bool)
    assert [each.trial_id for each in finish.validate(2)] == ["00001", "00000"]
    assert asked == ["00001"]
    assert [each.trial_id for each in finish.validate()] == ["00001", "00002", "00000"]


def no_answer(_: Any) -> bool:
    raise AssertionError("there is no answer")


def spread_over_a_host_that_raises(monkeypatch: pytest.MonkeyPatch, error: Exception, item: Any) -> None:
    def get(_: Any) -> None:
        raise error

    monkeypatch.setattr(work_items.ray, "get", get)
    monkeypatch.setattr(work_items.ray, "wait", lambda pending, **_: (pending, []))
    pool: Any = SimpleNamespace(hosts=lambda: [object()])
    work_items.map_over_hosts(pool, [replace(item, ask=lambda _: "the reference")], lambda: None)


def test_a_node_that_is_not_fit_ends_the_search(monkeypatch: pytest.MonkeyPatch) -> None:
    """As one with other rows than the study began with: the refit is trained elsewhere once the node is gone."""
    with pytest.raises(ClusterError):
        spread_over_a_host_that_raises(
            monkeypatch, ClusterError("10.0.0.7 is not fit."), WorkItem(no_answer, no_answer, raised)
        )


def test_a_full_disk_of_a_node_ends_the_search_and_is_blamed_on_no_refit(
    monkeypatch: pytest.MonkeyPatch, fresh_home: Path
) -> None:
    """What failed once is not done again: nobody may be named for what is not theirs."""
    full = RayTaskError("advance", "", HomeError("On node 10.0.0.7: no space left.")).as_instanceof_cause()
    folder = study("s")
    refit = refit_work(TrialSpec("00000.1", {}, HYPERPARAMETERS), TASK, 2, folder)
    alone = base_answer_work(folder, Identity("base", "rows"), TASK, "validation", range(4), 0)
    for item in (refit, alone):
        with pytest.raises(HomeError):
            spread_over_a_host_that_raises(monkeypatch, full, item)
    assert folder.confirmations().refit("00000.1") is None
    assert folder.confirmations().base_failure(0) is None


def test_a_refit_that_diverges_has_failed_by_itself(monkeypatch: pytest.MonkeyPatch) -> None:
    reasons = list[str]()
    item: WorkItem[Any] = WorkItem(no_answer, no_answer, lambda error: reasons.append(reason_of(error)))
    spread_over_a_host_that_raises(monkeypatch, TrialDivergedError("`training loss` must be finite."), item)
    assert reasons == ["`training loss` must be finite."]


TASK_OF_THREE = replace(SST2, labels=("Law", "News", "Sports"))
WRONG = Sample("a text", "Law", "News")


def test_classes_are_counted_over_all_parts() -> None:
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


def test_numbers_have_no_classes() -> None:
    assert class_report([Answers((0.5,), (0.25,), 0.0)], replace(TASK, labels=())) is None
