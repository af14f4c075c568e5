"""Whole searches on Ray, Optuna and MLflow in this process, on real rows and a tiny base."""

from __future__ import annotations

import os
import re
import signal

import numpy as np
import pytest
import torch
from support.said import Said

import loraxs_search
from loraxs_search.assets import PROBE
from loraxs_search.cli._main import run
from loraxs_search.cli.launch import show_results
from loraxs_search.cli.live_text import LinesView
from loraxs_search.errors import StudyError
from loraxs_search.log.events import Phase, ShownEvent, TrialContinued, TrialReported, TrialStarted
from loraxs_search.log.study_log import SearchView
from loraxs_search.records.trial import TrialState
from loraxs_search.registry.evidence import ScoredRows
from loraxs_search.registry.finalist import choose
from loraxs_search.registry.manifest import verify
from loraxs_search.search.driver import session
from loraxs_search.search.driver.launch import launch, resume
from loraxs_search.search.hosts import pool
from loraxs_search.search.tune.time_budget import TimeBudget
from loraxs_search.steering import extend_study
from loraxs_search.studies.folder import StudyFolder

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
    again = resume("whole")
    assert (again.trials, again.candidates) == (result.trials, result.candidates), "it has finished"
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


def test_trials_that_the_time_budget_has_cut_continue_first_once_there_is_more(
    simulated, tiny_space, agree, monkeypatch, capsys
):
    phases = list[str]()

    class Watching(SearchView):
        num_reports = 0

        def happened(self, event: ShownEvent) -> None:
            self.num_reports += isinstance(event, TrialReported)
            if isinstance(event, Phase) and event.text.startswith("decomposing"):
                phases.append(event.text)

    view = Watching()
    monkeypatch.setattr(pool, "_SAY_EVERY_S", -1.0)
    monkeypatch.setattr(pool, "_SHORT_WORK", 0.0)

    class OverWithTheReports(TimeBudget):
        @property
        def left_s(self) -> float | None:
            return 0.0 if view.num_reports >= 2 else 3600.0

    plan = ("search.trials=4", "search.time_budget=1h", "search.max_steps=100", "search.report_every=10")
    with monkeypatch.context() as patch:
        patch.setattr(session, "TimeBudget", OverWithTheReports)
        cut = launch(str(tiny_space), name="cut", overrides=(*plan, "search.scheduler=none"), view=view)
    assert phases == [f"decomposing the base's weights: {done} of {len(phases) + 1} parts" for done in range(1, 9)]
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
