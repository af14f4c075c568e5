"""Whole searches on Ray, Optuna and MLflow in this process, on real rows and a tiny base."""

from __future__ import annotations

import contextlib
import os
import re
import signal
import threading
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from support.said import Said

import loraxs_search
from loraxs_search.assets import PROBE
from loraxs_search.cli._main import run
from loraxs_search.cli.launch import show_results
from loraxs_search.cli.live_text import LinesView
from loraxs_search.errors import SearchInterruptedError, StudyError
from loraxs_search.log.events import (
    DriverStarted,
    Phase,
    SearchStarted,
    ShownEvent,
    TrialContinued,
    TrialReported,
    TrialStarted,
)
from loraxs_search.log.study_log import SearchView
from loraxs_search.records.trial import TrialState
from loraxs_search.registry.evidence import ScoredRows
from loraxs_search.registry.finalist import choose
from loraxs_search.registry.manifest import verify
from loraxs_search.search.driver import session
from loraxs_search.search.driver.launch import launch, resume
from loraxs_search.search.hosts import pool
from loraxs_search.search.tune import loop
from loraxs_search.search.tune.time_budget import TimeBudget
from loraxs_search.steering import extend_study
from loraxs_search.studies.folder import StudyFolder
from loraxs_search.tracking.store import connect

REVIEWS_TEST = Path(__file__).parents[2] / "search_spaces" / "data" / "movie_reviews" / "test.jsonl.gz"
pytestmark = [pytest.mark.slow, pytest.mark.filterwarnings("ignore::ResourceWarning", "ignore::DeprecationWarning")]


@pytest.fixture(scope="module")
def whole(ray_here, search_home, tiny_space_text):
    """The one search that several tests look at."""
    (search_home / "whole.yaml").write_text(tiny_space_text)
    overrides = {
        "promotion.seeds": 2,
        "task.slices": ["sentiment"],
        "promotion.guards": {"slice_loss": 0.05},
        "parameters.learning_rate": {"log_uniform": [2.0e-2, 1.0e-1]},
    }
    with pytest.MonkeyPatch.context() as patch:
        patch.setenv("LORAXS_HOME", str(search_home))
        space = str(search_home / "whole.yaml")
        return loraxs_search.launch(space, name="whole", overrides=overrides, progress=True)


@pytest.fixture(scope="module")
def promoted(whole, search_home):
    """What the first promotion of that search decided."""
    with pytest.MonkeyPatch.context() as patch:
        patch.setenv("LORAXS_HOME", str(search_home))
        return loraxs_search.promote("whole", force=True)


def test_a_search_ends_with_records_that_agree_and_candidates_that_hold(whole, in_search_home, agree):
    result = whole
    agree("whole", 6)
    states = [trial.state for trial in result.trials]
    assert TrialState.COMPLETE in states
    assert TrialState.FAIL not in states
    recipes = min(2, states.count(TrialState.COMPLETE))
    assert sorted(c.trial_id.count(".") for c in result.candidates) == [0] * recipes + [1] * 2 * recipes
    assert sum(bool(c.test_metrics) for c in result.candidates) == 1, "the finalist alone"
    folder = StudyFolder.open("whole")
    linear_probe = folder.assets()[PROBE]
    assert folder.read_asset(linear_probe)
    for candidate in result.candidates:
        manifest = verify(folder.adapter_path(candidate.trial_id))
        assert (manifest.hyperparameters.head_init, manifest.hyperparameters.linear_probe) == ("probe", linear_probe)
        assert manifest.test_metrics == candidate.test_metrics
        assert manifest.validation_metrics == candidate.validation_metrics
        assert manifest.refits == candidate.refits
        assert len({refit.seed for refit in candidate.refits} | {manifest.hyperparameters.seed}) == 3
        assert len(manifest.factors) == len(manifest.hyperparameters.target_modules)
        assert manifest.size.r_parameters == sum(
            manifest.hyperparameters.rank**2 for _ in manifest.hyperparameters.target_modules
        )
    finalist = next(c for c in result.candidates if c.test_metrics)
    assert choose(folder.info.promotion, folder.info.task, result.candidates)[0] == finalist
    rows = ScoredRows.from_bytes(folder.confirmed.rows_path(finalist.trial_id).read_bytes())
    assert finalist.test_metrics["accuracy"] == pytest.approx(float((rows.predictions == rows.labels).mean()))
    names = folder.info.task.labels
    assert rows.slices["sentiment"].tolist() == [names[label] for label in rows.labels]
    shares = [float((rows.predictions == rows.labels)[rows.labels == label].mean()) for label in (0, 1)]
    for trial_id in (candidate.trial_id for candidate in result.candidates):
        slices = verify(folder.adapter_path(trial_id)).slices
        assert [each.score for each in slices] == (pytest.approx(shares) if trial_id == finalist.trial_id else [])


@pytest.mark.long(part="search")
def test_rows_that_splits_share_are_logged_and_recorded(search, tmp_path, caplog):
    train, test = tmp_path / "train.csv", tmp_path / "test.csv"
    lines = [f"film {i},{i % 2}\n" for i in range(60)]
    train.write_text("sentence,label\n" + "".join(lines))
    test.write_text("sentence,label\n" + "".join(lines[:30]) + "Film  31,1\n" + "another,0\n")
    files = (f"task.data.data_files.train={train}", f"task.data.data_files.test={test}")
    result = search("shared", "search.trials=1", "search.max_steps=2", "promotion.seeds=0", *files)
    assert [(c.trial_id, c.refits) for c in result.candidates] == [("00000", ())], "no refit where none is wanted"
    (warning,) = [record.getMessage() for record in caplog.records if "are also in" in record.getMessage()]
    assert warning.startswith("task tiny-reviews: 31 of 32 test rows are also in train (30 letter for letter, ")
    (parent,) = search_runs("shared")
    counts = {name: value for name, value in parent.data.params.items() if "_rows_in_" in name}
    assert (counts.pop("test_rows_in_train"), counts.pop("test_rows_in_train_folded")) == ("30", "31")
    assert set(counts.values()) == {"0"}


def search_runs(study: str) -> list[Any]:
    """Return the runs of a study's search, of which there must be one."""
    info = StudyFolder.open(study).info
    client = connect(info.tracking_uri)
    experiment = client.get_experiment_by_name(info.task.name)
    where = f"tags.`loraxs.study` = '{study}' and tags.`loraxs.kind` = 'search'"
    return list(client.search_runs([experiment.experiment_id], where))


def test_a_finished_study_resumes_to_the_same_result(whole, in_search_home):
    second = resume("whole")
    assert second.trials == whole.trials
    assert second.candidates == whole.candidates


def test_the_same_seed_gives_the_same_search(simulated):
    plan = ("search.trials=4", "search.concurrent=1")  # of trials at once, who reports first decides
    first, second = simulated("seed-a", *plan), simulated("seed-b", *plan)
    shown = [
        [(t.trial_id, t.params, t.state, [r.metrics for r in t.reports]) for t in r.trials] for r in (first, second)
    ]
    assert shown[0] == shown[1]


@pytest.mark.long(part="search")
def test_a_packed_search_trains_the_same_trials_and_refits(search, agree):
    # The probe of a tiny base has weights in the thousands, and rounds as they do.
    plan = ("search.trials=4", "search.scheduler=none", "parameters.head_init=random")
    lone, packed = search("lone", *plan, "search.pack_size=1"), search("packed", *plan, "search.pack_size=3")
    agree("packed", 4)
    for a, b in zip(lone.trials, sorted(packed.trials, key=lambda t: t.trial_id), strict=True):
        assert (a.trial_id, a.params, a.state) == (b.trial_id, b.params, b.state)
        assert [r.metrics["loss"] for r in b.reports] == pytest.approx([r.metrics["loss"] for r in a.reports], rel=1e-4)
    refits = [{c.trial_id: c.refits for c in result.candidates} for result in (lone, packed)]
    assert refits[0].keys() == refits[1].keys()
    for trial_id, own in refits[0].items():
        for one, other in zip(own, refits[1][trial_id], strict=True):
            assert one.seed == other.seed
            assert other.validation_metrics["loss"] == pytest.approx(one.validation_metrics["loss"], rel=1e-4)


def test_a_search_whose_trials_all_fail_stops_names_the_cause_and_is_gone_on_with(simulated, agree):
    with pytest.raises(StudyError, match=r"5 of the latest trials failed for the same reason: .* finite") as failed:
        simulated("doomed", "parameters.learning_rate=1.0e+38", "search.trials=8", "search.concurrent=1")
    assert "loraxs-search resume doomed" in (failed.value.hint or "")
    assert StudyFolder.open("doomed").candidates() is None
    before = StudyFolder.open("doomed").journal().records
    assert len(before) < 8
    with pytest.raises(StudyError, match=r"found nothing: each of its 8 trials failed, 8 with: .* finite") as failed:
        resume("doomed")  # fewer are left than it takes to tell
    assert "loraxs-search extend doomed --trials N" in (failed.value.hint or "")
    agree("doomed", 8)
    assert StudyFolder.open("doomed").journal().records.items() >= before.items()
    assert StudyFolder.open("doomed").candidates() is None


def test_the_time_budget_ends_a_search_with_trials_pruned_not_lost(simulated, agree):
    result = simulated(
        "late", "search.trials=500", "search.time_budget=3s", "search.max_steps=2000", "search.report_every=10"
    )
    agree("late", len(result.trials))
    assert len(result.trials) < 500
    assert "time budget" in result.notice


class Reports(SearchView):
    """Counts the reports of trials."""

    num_reports = 0

    def happened(self, event: ShownEvent) -> None:
        self.num_reports += isinstance(event, TrialReported)


def test_trials_that_the_time_budget_has_cut_continue_first_once_there_is_more(
    simulated, tiny_space, agree, monkeypatch, capsys
):
    view = Reports()

    class OverWithTheReports(TimeBudget):
        @property
        def left_s(self) -> float | None:
            return 0.0 if view.num_reports >= 2 else 3600.0

    plan = ("search.trials=4", "search.time_budget=1h", "search.max_steps=100", "search.report_every=10")
    with monkeypatch.context() as patch:
        patch.setattr(session, "TimeBudget", OverWithTheReports)
        cut = launch(str(tiny_space), name="cut", overrides=(*plan, "search.scheduler=none"), view=view)
    assert {trial.state for trial in cut.trials} == {TrialState.PRUNED}
    assert 0 < len(cut.trials) < 4
    show_results([cut], as_json=False)
    said = capsys.readouterr().err
    assert re.search(r"One takes about \d+ min", said)
    assert "extend cut --time" in said
    extend_study("cut", time="1h")
    result = resume("cut")
    agree("cut", 4)
    assert {trial.state for trial in result.trials} == {TrialState.COMPLETE}
    assert [trial.reports[-1].step for trial in result.trials] == [100] * 4
    events = list(StudyFolder.open("cut").journal().history())
    kinds = [type(event) for event in events if isinstance(event, (TrialContinued, TrialStarted))]
    assert kinds == [TrialStarted] * len(cut.trials) + [TrialContinued] * len(cut.trials) + [TrialStarted] * (
        4 - len(cut.trials)
    )
    assert any(candidate.test_metrics for candidate in result.candidates)


class Freezing(SearchView):
    """At the first report, has the process of the newest host stand still: it lives, and says nothing."""

    def __init__(self, descendants: Callable[[int, str], list[int]]) -> None:
        self._descendants, self.frozen = descendants, 0

    def happened(self, event: ShownEvent) -> None:
        if isinstance(event, TrialReported) and not self.frozen:
            self.frozen = max(self._descendants(os.getpid(), "HostActor"))
            os.kill(self.frozen, signal.SIGSTOP)


@pytest.mark.long(part="search")
def test_a_host_that_stands_still_does_not_hold_a_search_whose_time_is_over(
    simulated, tiny_space, agree, descendants, monkeypatch
):
    class OverAsItFreezes(TimeBudget):
        @property
        def left_s(self) -> float | None:
            return 0.0 if view.frozen else super().left_s

    monkeypatch.setattr(loop, "GRACE_S", 1.0)
    monkeypatch.setattr(session, "TimeBudget", OverAsItFreezes)
    view = Freezing(descendants)
    plan = ("search.trials=4", "search.time_budget=1h", "search.max_steps=2000", "search.report_every=10")
    try:
        result = launch(str(tiny_space), name="frozen", overrides=plan, view=view)
    finally:
        with contextlib.suppress(ProcessLookupError):  # a process that hears nothing may outlive Ray's wish
            os.kill(view.frozen, signal.SIGKILL)
    agree("frozen", len(result.trials))
    assert {trial.state for trial in result.trials} == {TrialState.PRUNED}
    assert any(trial.reports for trial in result.trials)


def test_the_time_budget_is_that_of_all_drivers_together(simulated, tiny_space, agree, monkeypatch):
    """One that searched for an hour and was killed has left nothing of half an hour, the next day or whenever."""
    stop = threading.Event()

    class Stopping(SearchView):
        def happened(self, event: ShownEvent) -> None:
            if isinstance(event, SearchStarted):
                stop.set()

    plan = ("search.trials=500", "search.time_budget=30m")
    with pytest.raises(SearchInterruptedError):
        launch(str(tiny_space), name="spent", overrides=plan, view=Stopping(), stop=stop)
    journal = StudyFolder.open("spent").journal()
    with monkeypatch.context() as patch:
        patch.setattr("loraxs_search.log.clock.steady_time", lambda: 3600.0)
        journal.append(DriverStarted(since=0.0))
    assert journal.spent_s > 3600
    result = resume("spent")
    assert result.trials == ()
    assert result.notice == "the time budget of 1800 s is used up"
    assert 3600 < result.wall_s < 2 * 3600, "the hour counts once"


def test_a_promoted_adapter_gives_the_trials_own_logits_and_predicts(promoted, in_search_home):
    """In a fresh process, and merged, they are in tests/numerics/test_adapter_equivalence.py."""
    assert promoted.promoted
    path = loraxs_search.pull("tiny-reviews")
    assert path == loraxs_search.pull("tiny-reviews")
    probe, model = verify(path).probe, loraxs_search.load_adapter("tiny-reviews")
    with torch.no_grad():
        logits = model(input_ids=torch.tensor(probe.input_ids)).logits
    head = [value.abs().max() for name, value in model.named_parameters() if "modules_to_save" in name]
    largest = float(max([torch.tensor(1.0), *head]))  # a probe of a tiny base has large weights
    assert (logits / largest).tolist() == pytest.approx(np.array(probe.logits) / largest, abs=1e-5)
    (prediction,) = loraxs_search.predict("tiny-reviews", ["a moving, funny film"])
    assert prediction.label in ("negative", "positive")
    again = loraxs_search.promote("whole")
    assert not again.promoted
    assert [d.promoted for d in loraxs_search.history("tiny-reviews")] == [True, False]


@pytest.mark.long(part="search")
def test_a_second_study_meets_the_champion_on_its_own_rows(search, tiny_base):
    plan = ("search.trials=1", "task.name=met-reviews", "promotion.seeds=1", "parameters.learning_rate=0.05")
    search("met-first", *plan)
    assert loraxs_search.promote("met-first", force=True).promoted
    search("met-second", *plan, "search.seed=1")
    decision = loraxs_search.promote("met-second")
    assert decision.p_value is not None
    search("met-elsewhere", *plan, "search.seed=2", f"task.data.data_files.test={REVIEWS_TEST}")
    anew = loraxs_search.promote("met-elsewhere")
    assert "has no answers to these test rows: it was scored anew" in anew.reasons[1]
    assert anew.comparisons[0].number == 1
    assert anew.p_value is not None
    (summary,) = [s for s in loraxs_search.ls() if s.task == "met-reviews"]
    (champion,) = [v for v in loraxs_search.show("met-reviews") if "champion" in v.aliases]
    assert summary.version == champion.version
    assert summary.score == champion.candidate.test_metrics["accuracy"]


def test_ctrl_c_ends_a_search_in_order(simulated, tiny_space, monkeypatch, capfd):
    happened, presses = LinesView.happened, iter([signal.SIGINT])

    def and_then_pressed(view: LinesView, event: ShownEvent) -> None:
        happened(view, event)
        if isinstance(event, TrialReported) and (number := next(presses, None)):
            os.kill(os.getpid(), number)

    monkeypatch.setattr(LinesView, "happened", and_then_pressed)
    code = run(["launch", str(tiny_space), "--name", "stopped", "--set", "search.max_steps=200"])
    assert Said(code, *capfd.readouterr()).is_error(
        130,
        "stopping; Ctrl-C again ends at once",
        "Study 'stopped' was interrupted",
        "with `loraxs-search resume stopped`",
    )
    assert run(["status"]) == 0
    assert re.search("^stopped +tiny-reviews +interrupted", capfd.readouterr().out, re.MULTILINE)


def test_long_work_before_the_first_trial_says_how_far_it_is(simulated, tiny_space, monkeypatch):
    phases: list[str] = []

    class Watching(SearchView):
        def happened(self, event: ShownEvent) -> None:
            if isinstance(event, Phase):
                phases.append(event.text)

    monkeypatch.setattr(pool, "_SAY_EVERY_S", -1.0)
    monkeypatch.setattr(pool, "_SHORT_WORK", 0.0)
    short = ("search.trials=1", "search.max_steps=2", "parameters.basis={choice: [top, bottom]}")
    launch(str(tiny_space), name="phases", overrides=short, view=Watching())
    decomposing = [text for text in phases if text.startswith("decomposing")]
    assert decomposing == [f"decomposing the base's weights: {done} of 18 parts" for done in range(1, 18)]
