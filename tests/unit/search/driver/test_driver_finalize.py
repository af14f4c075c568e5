"""The end of a search: which trials are candidates, what there is time for, and what is sealed."""

from __future__ import annotations

import math
from collections.abc import Sequence
from contextlib import nullcontext
from dataclasses import replace
from types import SimpleNamespace
from typing import Any, cast

import pytest
from safetensors.numpy import save
from support.studies import Tried, confirm, do_all, searched
from support.toys import HYPERPARAMETERS, manifest_of, measured
from support.toys import TASK as TOY

from loraxs_search.errors import TaskDataError, TrialDivergedError
from loraxs_search.manifest import folder_digest, sealed, verify
from loraxs_search.records.adapter import Answers, ClassScores, Sample
from loraxs_search.records.codec import Split, to_json
from loraxs_search.records.search import Baseline, PromotionRule, SearchPlan
from loraxs_search.records.task import BaseModel, BaseModelRef, DataReport, DataSource, Task
from loraxs_search.records.trial import AdapterSize, TrialRecord, TrialReport, TrialSpec, TrialState
from loraxs_search.registry.evidence import ScoredRows
from loraxs_search.search.driver import finalize
from loraxs_search.search.driver.finalize import Finalization, candidate_trials, class_report
from loraxs_search.search.driver.work_items import WorkItem
from loraxs_search.steering import steered
from loraxs_search.studies.folder import StudyFolder

TASK = Task("t", "regression", DataSource(), "text", "label", "pearson", "maximize", ("pearson", "mse"))


def trials(*points: tuple[float, int], metric: str = "pearson") -> list[TrialRecord]:
    """Return complete trials, which are best first."""
    records = []
    for number, (score, stored) in enumerate(points):
        name = f"{number:05d}"
        report = replace(measured(name, 8, {metric: score}), size=AdapterSize(1, 1, stored))
        records.append(TrialRecord(name, {}, TrialState.COMPLETE, reports=(report,)))
    return records


def test_candidates_follow_the_rule():
    """A tolerance of the metric says nothing about a loss: then candidates are spread over the sizes."""
    found = trials((0.90, 9000), (0.895, 9500), (0.89, 6000), (0.885, 3000), (0.885, 3000), (0.8, 2000), (0.5, 1000))
    small = PromotionRule(choose="smallest", tolerance=0.02, candidates=3)
    mse = replace(TASK, metric="mse", direction="minimize")
    by_loss = replace(TASK, report_metric="loss", report_direction="minimize")
    losses = ((0.1, 9000), (0.11, 8500), (0.12, 8000), (0.2, 3000), (0.3, 1000))
    for rule, task, records, expected in (
        (PromotionRule(), TASK, found, [0, 1, 2]),
        (PromotionRule(max_bytes=5000), TASK, found, [3, 4, 5]),
        (PromotionRule(max_bytes=10), TASK, found, [0, 1, 2]),  # none fits, which the rule will say
        (replace(small, candidates=9), TASK, found, [0, 3, 2, 5, 6, 1, 4]),  # filled up with the others, best first
        (small, TASK, found, [0, 3, 2]),
        (replace(small, tolerance=0.001), TASK, found, [0, 2, 3]),  # nothing is within it but the best
        (replace(small, max_bytes=5000, tolerance=0.1), TASK, found, [3, 5, 6]),
        (small, mse, trials((0.1, 9000), (0.11, 3000), (0.3, 1000), metric="mse"), [0, 1, 2]),
        (small, by_loss, trials(*losses, metric="loss"), [0, 2, 4]),
        (small, by_loss, [], []),
        (small, TASK, [], []),
    ):
        chosen = candidate_trials(records, rule, task, SearchPlan())
        assert [int(record.trial_id) for record in chosen] == expected, (rule, task)


# ---- the work of the end ---------------------------------------------------------------------------------------------
SPACE = "task: sst2\nbase_model: org/base\nparameters: {rank: {choice: [4, 8, 16]}, learning_rate: 0.01}\n"
TRIED = [Tried({"rank": 4}, 0.7), Tried({"rank": 8}, 0.9), Tried({"rank": 16}, 0.8)]
FREE: Any = SimpleNamespace(left_s=None, fitting=lambda *_: None)


class Hosts:
    """Hosts whose trials report .91 at each step, or raise an error, and score as many validation rows."""

    def __init__(self, num_rows: int, error: Exception | None = None) -> None:
        self.error, self.asked = error, list[tuple[str, int]]()
        self.serve = SimpleNamespace(remote=lambda work, *_: work(self))
        rows, base = {"validation": num_rows, "test": 2}, BaseModel("b", "", "digest")
        self.info = SimpleNamespace(
            num_rows=rows, data_fingerprint="d", test_fingerprint="t", base=base, data=DataReport()
        )

    def map_over(self, _pool: object, items: Sequence[WorkItem], *_: object, **__: object) -> None:
        do_all(items, self)

    def advance(self, spec: TrialSpec, until: int, _snapshot: object, _task: object) -> tuple[TrialReport, bytes]:
        self.asked.append((spec.trial_id, until))
        if self.error is not None:
            raise self.error
        report = measured(spec.trial_id, until, {"accuracy": 0.91})
        return report, state(spec.trial_id, report)


def state(trial_id: str, *reports: TrialReport) -> bytes:
    return save({}, {"trial": to_json({"study": "s", "trial_id": trial_id, "reports": reports})})


def ending(
    folder: StudyFolder, hosts: Hosts, monkeypatch: pytest.MonkeyPatch, *, seeds: int = 2,
    counted: Any = lambda *_: None, **task: Any,
) -> Finalization:  # fmt: skip
    """Return the end of a study on these hosts."""
    monkeypatch.setattr(finalize, "map_over_hosts", hosts.map_over)
    hyper = replace(HYPERPARAMETERS, max_steps=20)
    space: Any = SimpleNamespace(
        task=replace(folder.info.task, **task),
        search=folder.info.search,
        promotion=PromotionRule(seeds=seeds, choose="best"),
        method_of=lambda _: SimpleNamespace(name="lora-xs", has_adapter=False),
        may_be_candidate=bool,
    )
    actors: Any = SimpleNamespace(
        info=hosts.info,
        pool=SimpleNamespace(config=SimpleNamespace(max_trials=4)),
        spec=lambda name, params: TrialSpec(name, params, hyper),
    )
    study = steered(folder, folder.journal())
    monkeypatch.setattr(study.journal, "phase", lambda text="", **done: text or counted(*done.values()))
    return Finalization(study, space, actors, lambda: None)


@pytest.fixture
def folder(fresh_home):
    made = searched("s", TRIED, finished=False, space=SPACE)
    for name, record in made.journal().records.items():
        made.snapshots.write(name, state(name, *record.reports))
    return made


def test_of_equal_scores_the_smallest_trial_comes_first_then_the_oldest(fresh_home, monkeypatch):
    tried = [Tried({"rank": 4}, score, stored_bytes=size) for score, size in ((0.5, 500), (0.9, 900), (0.9, 300))]
    made = searched("s", [*tried, tried[-1]], finished=False, space=SPACE)
    found = ending(made, Hosts(5), monkeypatch).trials
    assert [record.trial_id for record in found] == ["00002", "00003", "00001", "00000"]


def test_refits_that_do_not_fit_into_the_time_budget_are_left_out_and_said(folder, monkeypatch, caplog):
    """The others count their steps, also between reports, and are not trained again after a kill."""
    hosts, counted = Hosts(10), list[tuple[Any, ...]]()
    budget: Any = SimpleNamespace(left_s=65.0, fitting=lambda *_: (2, 3))
    end = ending(folder, hosts, monkeypatch, counted=lambda *done: counted.append(done))
    found = [each.trial_id for each in end.validate(budget)]
    assert hosts.asked == [(f"{trial}.1", step) for trial in ("00001", "00002", "00000") for step in (10, 20)]
    assert found == ["00000.1", "00001.1", "00002.1", "00001", "00002", "00000"]
    assert "no room for 3 of 6 refits" in caplog.text
    assert counted == [(steps, 60, "steps") for steps in range(0, 70, 10)]
    end.reached({"00001.1": 7, "00007": 9})
    assert len(counted) == 7, "of what is behind, or no refit, nothing is said"
    again = ending(folder, hosts, monkeypatch)
    first, *others = again.validate(FREE)
    names = [f"{trial}.{n}" for trial in ("00000", "00001", "00002") for n in (1, 2)]
    assert [each.trial_id for each in (first, *others)][:6] == names
    assert len(hosts.asked) == 12
    assert [refit.seed - HYPERPARAMETERS.seed for refit in first.refits] == [0, 2 << 32]


def test_of_candidates_that_wait_for_their_scores_the_best_are_scored_as_far_as_time_allows(folder, monkeypatch):
    folder.confirmed.validation("00000").write({"accuracy": 0.71})
    hosts, budget = Hosts(5), cast("Any", SimpleNamespace(left_s=2.0, fitting=lambda *_: (2, 1)))
    end = ending(folder, hosts, monkeypatch, seeds=1, validation_rows=5)
    assert [each.trial_id for each in end.validate(budget)] == ["00001", "00001.1", "00000"]
    assert hosts.asked == [("00001.1", 10), ("00001.1", 20), ("00001", 20), ("00001.1", 20)]
    assert {each.trial_id[:5] for each in end.validate(FREE)} == {"00000", "00001", "00002"}


def test_a_baseline_that_was_measured_after_the_finalist_was_sealed_stands_in_its_folder(folder, monkeypatch):
    confirm(folder, "00000", [0.9], [1, 0], [1, 1])
    found = folder.confirmed.finalist("00000")
    assert found is not None
    made = manifest_of(TOY, BaseModelRef("b"), HYPERPARAMETERS, "00000", test_metrics={TOY.metric: 0.5})
    folder.write_adapter("00000", sealed({"adapter_model.safetensors": b"R"}, made))
    folder.write_baselines([Baseline("zero-shot", {TOY.metric: 0.4}, {TOY.metric: 0.4321})])
    end = ending(folder, Hosts(5), monkeypatch)
    (chosen,) = end.seal([found])
    path = folder.adapter_path("00000")
    assert verify(path).baselines == chosen.baselines == folder.baselines()
    assert "0.4321" in (path / "README.md").read_text()
    digest = folder_digest(path)
    end.seal([found])
    assert folder_digest(path) == digest, "nothing is new"


def test_numbers_that_are_not_finite_are_no_score_and_what_else_goes_wrong_ends_the_search(folder, monkeypatch):
    end = ending(folder, Hosts(5, TaskDataError("elsewhere")), monkeypatch, seeds=0, validation_rows=5)
    with pytest.raises(TaskDataError):
        end.validate(FREE)
    assert folder.confirmed.validation("00001").read() is None, "nobody is blamed"
    broken = Hosts(5, TrialDivergedError("`training loss` must be finite."))
    found = ending(folder, broken, monkeypatch, seeds=1, validation_rows=5).validate(FREE)
    assert [(each.trial_id, each.validation_metrics) for each in found] == [(f"0000{n}", {}) for n in range(3)]
    refit = folder.confirmed.refit("00001.1").read()
    assert refit is not None
    assert refit.failed == "`training loss` must be finite."


def test_a_refit_that_is_late_is_left_out(folder, monkeypatch):
    hosts, late = Hosts(10), cast("Any", SimpleNamespace(left_s=0.0, fitting=lambda *_: None))
    found = ending(folder, hosts, monkeypatch, seeds=1).validate(late)
    assert {until for _, until in hosts.asked} == {10}, "it had begun"
    assert [each.trial_id for each in found] == ["00001", "00002", "00000"]
    assert folder.confirmed.refit("00001.1").read() is None


def test_all_validation_rows_choose_the_finalists_thresholds_and_those_answered_before_a_kill_are_not_asked_again(
    folder, monkeypatch
):
    hosts, asked = Hosts(10), list[tuple[Split, range]]()
    hosts.info.data = DataReport(num_rows={"validation": 200, "test": 50})  # more than reports score

    def answer(_: TrialSpec, __: bytes, rows: range, ___: Task, split: Split) -> Answers:
        asked.append((split, rows))
        if len(asked) == 2:
            raise KeyboardInterrupt
        sure = tuple(0.9 if row < 180 else 0.6 for row in rows)
        return Answers((1,) * len(rows), tuple(int(own > 0.8) for own in sure), 0.5, confidences=sure)

    hosts.answer = answer  # type: ignore[attr-defined]
    hosts.confirm = lambda *_: "confirmed"  # type: ignore[attr-defined]
    monkeypatch.setattr(finalize, "verify", lambda _: SimpleNamespace(baselines=(), test_metrics={}))
    written = list[Any]()
    for is_killed in (True, False):
        end = ending(folder, hosts, monkeypatch, seeds=0)
        monkeypatch.setattr(end, "_write", lambda *given: written.append(given))
        with pytest.raises(KeyboardInterrupt) if is_killed else nullcontext():
            finalist = end.seal(end.validate(FREE))[0]
    assert asked == [("test", range(50)), *[("validation", range(128))] * 2, ("validation", range(128, 200))]
    points = finalist.operating_points
    assert [(it.point, it.threshold, it.validation_rows, it.coverage) for it in points] == [
        (0.9, 0.9, 200, 1.0),
        (0.95, 0.9, 200, 1.0),
        (0.99, None, 200, None),
    ]
    assert next(it for it in written if it[2].test_metrics)[2].operating_points == points
    assert folder.confirmed.finalist("00001") == finalist
    stored = ScoredRows.from_bytes(folder.confirmed.rows_path("00001").read_bytes())
    assert stored.confidences is not None
    assert set(stored.confidences) == {0.9}
    assert finalist.test_metrics["calibration_error"] == pytest.approx(0.1)


def test_test_rows_are_answered_once_and_the_finalist_is_sealed_with_what_they_show(folder, monkeypatch):
    """Some were answered before a kill; not finite ones are an answer, too."""
    hosts = Hosts(10)
    hosts.info.num_rows["test"] = 300
    asked = list[range]()

    def answer(spec: TrialSpec, _: bytes, rows: range, task: Task, split: Split) -> Answers:
        assert (spec.trial_id, task.validation_rows) == ("00001", None)
        asked.extend([rows] if split == "test" else [])
        if rows.start == 256:
            raise TrialDivergedError("Logits must be finite.")
        return Answers((1,) * len(rows), (1,) * len(rows), 0.5)

    hosts.answer = answer  # type: ignore[attr-defined]
    written = list[Any]()
    end = ending(folder, hosts, monkeypatch, seeds=0)
    monkeypatch.setattr(end, "_write", lambda *given: written.append(given))
    hosts.confirm = lambda *_: "confirmed"  # type: ignore[attr-defined]
    monkeypatch.setattr(finalize, "verify", lambda _: SimpleNamespace(baselines=(), test_metrics={}))
    folder.confirmed.write_answers("00001", range(128), Answers((1,) * 128, (1,) * 128, 0.5))
    found = end.seal(end.validate(FREE))
    assert asked == [range(128, 256), range(256, 300)]
    assert math.isnan(found[0].test_metrics["accuracy"])
    assert [each[0] for each in written if each[2].test_metrics] == ["00001"]
    assert {each[0] for each in written} == {"00000", "00001", "00002"}
    assert folder.confirmed.finalists() == ("00001",)
    assert end.seal(end.validate(FREE))[0].earlier_finalists == (), "it is not one that came before itself"


# ---- test rows -------------------------------------------------------------------------------------------------------
def test_classes_are_counted_over_all_parts():
    task, wrong = replace(TOY, labels=("Law", "News", "Sports")), Sample("a text", "Law", "News")
    parts = [Answers((1, 1), (0, 1), 0.0, wrong=(wrong,)), Answers((1, 2), (0, 2), 0.0, wrong=(wrong,) * 30)]
    report = class_report(parts, task)
    assert report is not None
    law, news, sports = report.classes
    assert law == ClassScores("Law", 2, None, 0.0, 0.0), "no answer counts for its precision"
    assert (news.rows, news.precision, news.recall, news.f1) == (1, pytest.approx(1 / 3), 1.0, 0.5)
    assert (sports.precision, sports.recall, sports.f1) == (1.0, 1.0, 1.0)
    assert report.confusion == ((0, 2, 0), (0, 1, 0), (0, 0, 1))
    assert report.wrong == (wrong,) * 20
    assert class_report([Answers((0.5,), (0.25,), 0.0)], replace(task, labels=())) is None, "numbers have no classes"
    several = replace(task, kind="multi-label", labels=("a", "b", "c"))
    report = class_report([Answers(("a|b", ""), ("b", "a"), 0.0), Answers(("b|c",), ("b|c",), 0.0)], several)
    assert report is not None and not report.confusion
    assert [(it.rows, it.precision, it.recall) for it in report.classes] == [
        (1, 0.0, 0.0),
        (2, 1.0, 1.0),
        (1, 1.0, 1.0),
    ]
