"""What a driver proposes, records and hears from people; nothing is trained.

Each trial that people ask for is proposed once, whatever is killed when, and other proposals stay the same.
"""

from __future__ import annotations

import time
from collections.abc import Callable
from dataclasses import dataclass, replace
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import pytest
from ray.tune.search import Searcher
from support.studies import TASK, study
from support.toys import HYPERPARAMETERS, measured

from loraxs_search.errors import HomeError, LoraxsError, UsageError
from loraxs_search.log.events import TrialEnded
from loraxs_search.log.study_log import StudyLog
from loraxs_search.methods.lora_xs import LoraXS
from loraxs_search.records.codec import to_json
from loraxs_search.records.search import SearchPlan
from loraxs_search.records.trial import TrialState
from loraxs_search.samplers.trials import StudyTrials
from loraxs_search.schedulers import SCHEDULERS
from loraxs_search.search.tune.advancer import CANCELLED, FAILED, FATAL, REPORT, STEP
from loraxs_search.search.tune.loop import StudySearcher, common_failure
from loraxs_search.search.tune.proposer import Proposer
from loraxs_search.search.tune.time_budget import TimeBudget
from loraxs_search.search_space.load import parse_space
from loraxs_search.steering import new_command, steered, take_commands
from loraxs_search.studies.folder import StudyFolder

TEXT = """
task: sst2
base_model: org/base
parameters:
  rank: {choice: [4, 8, 16]}
  learning_rate: {log_uniform: [1.0e-3, 1.0e-1]}
  sigma: {choice: [input, sqrt]}
  batch_size: 8
"""
SPACE = parse_space(TEXT, source="s.yaml", folder=Path("/"))
PLAN = SearchPlan(trials=3, max_steps=40, report_every=10, scheduler="asha", seed=1)
WHY = "`loss` must be finite, but got nan."


def launched(name: str = "s", **plan: Any) -> StudyFolder:
    """Create a study as a launch does."""
    folder = study(name, search=replace(PLAN, **plan))
    (folder.path / "space.yaml").write_text(TEXT)
    (folder.path / "space.json").write_text(to_json(replace(SPACE, text="")))
    return folder


@dataclass
class Driver:
    """What of a driver proposes: a searcher on a study folder."""

    searcher: StudySearcher
    trials: StudyTrials

    def begin(self) -> str | None:
        """Have a trial begin; return its id, or what Tune is told where none does."""
        before = set(self.searcher.trial_ids)
        config = self.searcher.suggest(f"tune-{len(before)}-{len(self.searcher._log.records)}")
        assert self.searcher.fatal_error is None
        if not isinstance(config, dict):
            return config
        (tune_id,) = set(self.searcher.trial_ids) - before
        return self.searcher.trial_ids[tune_id]

    def end(self, trial_id: str, score: float = 0.5) -> None:
        (tune_id,) = (key for key, value in self.searcher.trial_ids.items() if value == trial_id)
        self.searcher.on_trial_complete(tune_id, result(40, trial_id, score))

    def run(self) -> list[str]:
        """Have all trials begin and end, one after the other; return their ids."""
        names = list[str]()
        while (name := self.begin()) not in (None, Searcher.FINISHED):
            names.append(name)
            self.end(name, score=0.5 + len(names) / 100)
        return names


@pytest.fixture
def drive(fresh_home, monkeypatch):
    """Go on with a study, as after a kill."""
    # A spec of these tests is none that could be sent.
    monkeypatch.setattr("loraxs_search.search.tune.loop.to_json", lambda record: "")

    def spec(trial_id: str, params: Any, seed_of: str = "") -> Any:
        return SimpleNamespace(hyperparameters=replace(HYPERPARAMETERS, seed=int(seed_of or trial_id)), params=params)

    def driver(folder: StudyFolder, is_stopped: Callable[[], bool] = bool) -> Driver:
        journal, info = folder.journal(), folder.info
        trials = StudyTrials(info.task, info.search)
        for event in journal.history():
            trials.apply(event)
        journal.follow = trials.apply
        folder.snapshots.recover(journal)
        steered_study = steered(folder, journal)
        slots = SimpleNamespace(max_concurrent=2, slots=SimpleNamespace(resources={"CPU": 1.0}))
        actors: Any = SimpleNamespace(spec=spec, slot_counter=slots)

        def hear() -> None:
            if take_commands(steered_study):
                searcher.apply_commands()

        scheduler = SCHEDULERS.get(info.search.scheduler)(info.search, "accuracy", "maximize")
        budget = TimeBudget(steered_study, actors, time.time())
        searcher = StudySearcher(
            Proposer(trials, SPACE), steered_study, actors, scheduler, budget, is_stopped=is_stopped, take_commands=hear
        )
        return Driver(searcher, trials)

    return driver


def send(folder: StudyFolder, verb: str, *trials: str, params: Any = None, **arguments: Any) -> str:
    command = new_command(verb, trials, arguments, params)
    folder.inbox.put(command)
    return command.command_id


def result(step: int, trial_id: str = "00000", score: float = 0.5) -> dict[str, Any]:
    peers = {"00009": (1, 0.1)}
    return {STEP: step, REPORT: to_json(replace(measured(trial_id, step, {"accuracy": score}), peers=peers))}


# ---- trials that people ask for --------------------------------------------------------------------------------------
def test_an_added_trial_comes_first_and_on_top_of_the_budget(drive):
    folder = launched()
    driver = drive(folder)
    assert driver.begin() == "00000"
    driver.end("00000")
    command = send(folder, "add", params={"rank": 16, "learning_rate": 0.05})
    assert driver.run() == ["00001", "00002", "00003"]
    records = folder.journal().records
    added = records["00001"]
    assert (added.command, added.lineage) == (command, "")
    assert (added.params["rank"], added.params["learning_rate"], added.params["batch_size"]) == (16, 0.05, 8)
    assert [record.command for record in records.values()].count("") == PLAN.trials
    in_optuna = driver.trials.trials[1]
    assert in_optuna.params == {name: value for name, value in added.params.items() if name != "batch_size"}
    assert in_optuna.value == pytest.approx(0.51), "the sampler learns from it"


def test_what_is_not_given_is_its_sources_or_what_the_sampler_proposes(drive, monkeypatch):
    monkeypatch.setattr(LoraXS, "recipe", lambda *_: {})  # whose trial is not the sampler's
    folder, other = launched(), launched("other")
    driver = drive(folder)
    driver.begin()
    proposed = folder.journal().records["00000"].params
    rank = next(value for value in (4, 8, 16) if value != proposed["rank"])
    send(other, "add", params={"rank": rank})
    drive(other).begin()
    assert other.journal().records["00000"].params == {**proposed, "rank": rank}
    driver.end("00000")
    send(folder, "add", "0", params={"learning_rate": 0.02})
    assert driver.begin() == "00001"
    added = folder.journal().records["00001"]
    assert (added.params, added.lineage) == ({**proposed, "learning_rate": 0.02}, "00000")


def test_proposals_beside_added_trials_are_those_of_an_undisturbed_search(drive):
    """Whether the driver is killed after each trial or never."""
    params = []
    for is_killed, folder in ((False, launched("undisturbed")), (True, launched())):
        driver = drive(folder)
        for number in range(PLAN.trials + 1):
            if number == 1:
                send(folder, "add", params={"rank": 16})
            driver.end(driver.begin(), score=0.5 + number / 100)
            driver = drive(folder) if is_killed else driver
        params.append([record.params for record in folder.journal().records.values()])
    assert params[0] == params[1]


def test_an_extended_search_proposes_more_and_sees_its_new_deadline(drive):
    folder = launched()
    driver = drive(folder)
    driver.end(driver.begin())
    send(folder, "extend", trials=2, time="1h30m")
    assert len(driver.run()) == 4
    assert driver.searcher._budget.left_s == pytest.approx(5400, abs=60)
    again = drive(folder)
    assert again.begin() == Searcher.FINISHED
    send(folder, "extend", trials=1)
    assert len(again.run()) == 1
    assert len(folder.journal().records) == PLAN.trials + 3


def test_trials_that_have_not_reported_by_the_end_of_the_time_budget_end_at_their_next_step(drive, monkeypatch):
    folder = launched(time_budget=60.0)
    driver = drive(folder)
    driver.begin()
    assert driver.searcher.to_cancel == []
    monkeypatch.setattr("loraxs_search.search.tune.time_budget.steady_time", lambda: time.time() + 60)
    assert driver.searcher.to_cancel == ["00000"]
    driver.searcher.on_trial_complete("tune-0-0", {STEP: 10, CANCELLED: True})
    record = folder.journal().records["00000"]
    assert (record.state, record.is_cut) == (TrialState.PRUNED, True)


# ---- what goes wrong -------------------------------------------------------------------------------------------------
@pytest.fixture
def searcher(drive):
    return drive(launched(trials=20, max_steps=160, scheduler="none")).searcher


@pytest.fixture
def started(searcher):
    """A searcher with two trials under way."""
    assert isinstance(searcher.suggest("x"), dict)
    assert isinstance(searcher.suggest("y"), dict)
    assert searcher.suggest("z") is None, "there is room for two"
    return searcher


def states(searcher: StudySearcher) -> list[TrialState]:
    return [record.state for record in searcher._log.records.values()]


def test_a_disk_that_a_trial_met_ends_the_search_and_no_trial(started, drive):
    started.on_trial_complete("x", {STEP: 0, FATAL: ["On node 10.0.0.2: No space left.", "free some space"]})
    assert isinstance(started.fatal_error, LoraxsError)
    assert started.fatal_error.hint == "free some space"
    started.on_trial_complete("y", {STEP: 40, FAILED: "something"})
    assert states(started) == [TrialState.RUNNING] * 2, "what comes after is not recorded: it is done again"
    assert started.suggest("z") == Searcher.FINISHED, "Tune asks no more"
    assert drive(launched("stopped"), lambda: True).begin() == Searcher.FINISHED, "nor of a search that is stopped"


def test_what_a_loop_has_left_without_an_end_is_proposed_by_the_next(started):
    """As at the end of a time budget that a user extends later."""
    started._log.append(TrialEnded(trial_id="00000", state=TrialState.PRUNED, reason="the time budget is used up"))
    started.begin_loop()
    assert isinstance(started.suggest("z"), dict)
    assert started.trial_ids == {"z": "00001"}


def test_what_the_log_cannot_write_is_left_to_the_driver(started, monkeypatch):
    def full(*_: object) -> None:
        raise HomeError("No space left to write it.", hint="free some space")

    with monkeypatch.context() as patch:
        patch.setattr(StudyLog, "append", full)
        started.on_trial_result("x", result(40))
    assert "No space left" in str(started.fatal_error)
    first = started.fatal_error
    started.on_trial_complete("y", {STEP: 0, FATAL: ["other", ""]})
    assert started.fatal_error is first, "the first cause is the one to tell"


def test_params_that_no_trial_can_have_cost_that_trial_alone(searcher, monkeypatch):
    """It had ended the search, and `resume` met the same trial again."""
    made = searcher._actors.spec

    def refusing(trial_id: str, *given: Any) -> Any:
        if trial_id == "00000":
            raise UsageError("`rank` must be even with `init: orthogonal`, but got rank=3.")
        return made(trial_id, *given)

    monkeypatch.setattr(searcher._actors, "spec", refusing)
    assert searcher.suggest("x") is None
    assert isinstance(searcher.suggest("x"), dict)
    assert states(searcher) == [TrialState.FAIL, TrialState.RUNNING]
    assert "must be even" in searcher._log.records["00000"].reason
    assert searcher.fatal_error is None


def test_a_trial_that_fails_is_recorded_with_its_reason(started):
    started.on_trial_complete("x", {STEP: 0, FAILED: "it diverged"})
    started.on_trial_complete("y", None, error=True)
    assert states(started) == [TrialState.FAIL] * 2
    reasons = [record.reason for record in started._log.records.values()]
    assert (reasons[0], "lost more than 3" in reasons[1]) == ("it diverged", True)
    assert started.fatal_error is None


def test_every_seed_that_a_space_may_have_proposes_and_a_small_one_what_it_always_has(drive):
    """TPE takes 32 bits."""
    assert drive(launched(seed=2**32 - 1)).begin() == "00000"
    small = launched("small", seed=3)
    drive(small).begin()
    params, _ = Proposer(StudyTrials(TASK, PLAN), SPACE).propose(3_000_009)
    assert small.journal().records["00000"].params == params


def test_trials_that_nearly_all_fail_for_one_reason_end_the_search(searcher):
    for number, name in enumerate("abcde"):
        assert isinstance(searcher.suggest(name), dict)
        if number % 2:
            searcher.on_trial_result(name, result(40, f"{number:05d}"))
        searcher.on_trial_complete(name, {STEP: 0, FAILED: WHY})
    assert searcher.suggest("f") == Searcher.FINISHED
    assert searcher.failing == f"5 of the latest trials failed for the same reason: {WHY}"
    assert common_failure([WHY] * 4, 1) is None
    assert common_failure([*[""] * 50, *[WHY] * 8], 1) is None
    assert common_failure([*[""] * 50, *[WHY] * 9], 1) == (9, WHY), "what went well long ago does not count"
    assert common_failure(["one", "another"] * 10, 1) is None
    assert common_failure([WHY] * 6, 20) is None, "of twenty that start together, those that fail do so first"


# ---- steered ---------------------------------------------------------------------------------------------------------
def report(searcher: StudySearcher, tune_id: str, step: int, trial_id: str) -> bool:
    """Have a trial report as Tune does; return whether it goes on."""
    made = measured(trial_id, step, {"accuracy": 0.5})
    searcher.on_trial_result(tune_id, {STEP: step, REPORT: to_json(made)})
    if step < 160 and not searcher.stops(made):
        return True
    searcher.on_trial_complete(tune_id, result(step, trial_id))
    return False


def test_a_stopped_trial_ends_at_its_next_report(started):
    started._state.stopping["00000"] = "stopped by a person"
    started.apply_commands()
    assert states(started) == [TrialState.RUNNING] * 2, "its report is still to come"
    assert not report(started, "x", 40, "00000")
    assert report(started, "y", 40, "00001")
    record = started._log.records["00000"]
    assert (record.state, record.reason) == (TrialState.PRUNED, "stopped by a person at step 40")
    assert len(record.reports) == 1

    started._state.stopping["00001"] = "stopped by a person"
    started._state.at_once.add("00001")
    assert started.to_cancel == ["00001"]
    started.on_trial_complete("y", {STEP: 40, CANCELLED: True})
    assert started._log.records["00001"].reason == "stopped by a person at step 40", "its host gave it up"
    assert started.to_cancel == []


def test_finishing_lets_the_running_trials_train(started):
    started._state.stopping["00000"] = "stopped by a person"
    started._state.finishing = "finished by a person"
    report(started, "x", 160, "00000")
    assert started.suggest("z") is None, "more may be asked for while a trial trains"
    report(started, "y", 160, "00001")
    assert started.suggest("z") == Searcher.FINISHED
    assert (started.is_short, started.notice) == (False, "finished by a person")
    assert states(started)[0] is TrialState.COMPLETE, "a stop that comes with the last report is no stop"
