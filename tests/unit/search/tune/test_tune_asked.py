"""Trials that people ask for: each is proposed once, whatever is killed when, and other proposals stay the same."""

from __future__ import annotations

import json
import time
from collections.abc import Callable
from dataclasses import dataclass, replace
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import numpy as np
import optuna
import pytest
from ray.tune.search import Searcher
from safetensors.numpy import load, save
from support.studies import TASK, study
from support.toys import HYPERPARAMETERS

from loraxs_search.records import (
    AdapterSize,
    AnswerState,
    KeepRule,
    Lineage,
    SearchPlan,
    TrialReport,
    TrialState,
    to_json,
)
from loraxs_search.schedulers import make_scheduler
from loraxs_search.search.driver.commander import Commander, InboxSource
from loraxs_search.search.ledger.ledger import Ledger
from loraxs_search.search.ledger.optuna_storage import open_optuna_study
from loraxs_search.search.ledger.rebuild import rebuild
from loraxs_search.search.ledger.view import SilentView
from loraxs_search.search.tune.deadline import Deadline
from loraxs_search.search.tune.sampler import Sampler
from loraxs_search.search.tune.searcher import StudySearcher
from loraxs_search.search.tune.trainable import REPORT, STEP
from loraxs_search.search_space import parse_space
from loraxs_search.steering import steered
from loraxs_search.steering.send import new_command
from loraxs_search.studies import StudyFolder, read_reports

SPACE = """
task: sst2
base_model: org/base
parameters:
  rank: {choice: [4, 8, 16]}
  learning_rate: {log_uniform: [1.0e-3, 1.0e-1]}
  sigma: {choice: [input, sqrt]}
  batch_size: 8
"""
PLAN = SearchPlan(trials=3, max_steps=40, report_every=10, scheduler="asha", seed=1)


@dataclass
class Driver:
    """What of a driver proposes: a searcher on a study folder, and the commander that it hears people through."""

    folder: StudyFolder
    searcher: StudySearcher
    commander: Commander
    optuna_study: optuna.Study

    def begin(self) -> str | None:
        """Have a trial begin; return its id, or what Tune is told where none does."""
        before = set(self.searcher._trial_ids)
        config = self.searcher.suggest(f"tune-{len(before)}-{len(self.searcher._ledger.records)}")
        if self.searcher.fatal_error is not None:
            raise self.searcher.fatal_error
        if not isinstance(config, dict):
            return config
        (tune_id,) = set(self.searcher._trial_ids) - before
        return self.searcher._trial_ids[tune_id]

    def end(self, trial_id: str, score: float = 0.5) -> None:
        (tune_id,) = (key for key, value in self.searcher._trial_ids.items() if value == trial_id)
        self.searcher.on_trial_complete(tune_id, {STEP: 40, REPORT: to_json(report(trial_id, 40, score))})

    def run(self) -> list[str]:
        """Have all trials begin and end, one after the other; return their ids."""
        names = []
        while (name := self.begin()) not in (None, Searcher.FINISHED):
            assert name is not None
            names.append(name)
            self.end(name, score=0.5 + len(names) / 100)
        return names


def report(trial_id: str, step: int, score: float) -> TrialReport:
    return TrialReport(trial_id, step, {"accuracy": score}, 0.5, 9.0, 10, AdapterSize(1, 1, 1), {"00009": (1, 0.1)})


@pytest.fixture
def folder(fresh_home: Path) -> StudyFolder:
    made = study("s", f"sqlite:///{fresh_home}/mlflow.db", task=TASK, search=PLAN)
    (made.path / "space.yaml").write_text(SPACE)
    return made


@pytest.fixture(autouse=True)
def plain_specs(monkeypatch: pytest.MonkeyPatch) -> None:
    """A spec of these tests is none that could be sent."""
    monkeypatch.setattr("loraxs_search.search.tune.searcher.to_json", lambda record: "")


def send(folder: StudyFolder, verb: str, *trials: str, params: Any = None, **arguments: Any) -> str:
    command = new_command(verb, trials, arguments, params)
    folder.inbox().put(command)
    return command.command_id


def snapshot(trial_id: str, step: int) -> bytes:
    header = {
        "version": 1,
        "trial_id": trial_id,
        "step": step,
        "device_s": 9.0,
        "num_tokens": 10,
        "reports": json.loads(to_json([report(trial_id, step, 0.6)])),
    }
    tensors = {"parameter/R": np.arange(4.0, dtype=np.float32), "moment/exp_avg/R": np.ones(4, np.float32)}
    return save(tensors, {"trial": json.dumps(header)})


def drive(folder: StudyFolder) -> Driver:
    """Return a driver that goes on with a study, as after a kill."""
    space = parse_space(SPACE, source="s.yaml", folder=Path("/"))
    journal, info = folder.journal(), folder.info
    optuna_study = open_optuna_study(folder.optuna_path, "s", "maximize")
    rebuild(optuna_study, space, journal.records)
    tracker = Silent()
    ledger = Ledger(journal, optuna_study, tracker, SilentView(), KeepRule("accuracy", "maximize"))  # type: ignore[arg-type]
    ledger.reconcile(folder)
    steered_study = steered(folder, journal)

    def spec(trial_id: str, params: Any, seed_of: str = "") -> Any:
        return SimpleNamespace(hyperparameters=replace(HYPERPARAMETERS, seed=int(seed_of or trial_id)), params=params)

    actors: Any = SimpleNamespace(
        actor_names={},
        spec=spec,
        slot_counter=SimpleNamespace(max_concurrent=2, slots=SimpleNamespace(resources={"CPU": 1.0})),
    )
    searcher = StudySearcher(
        Sampler(optuna_study, space),
        ledger,
        space,
        info.search,
        actors,
        make_scheduler(info.search, "maximize"),
        Deadline(info.search, steered_study.state, time.time()),
        folder.optuna_path,
        folder=folder,
        state=steered_study.state,
    )
    commander = Commander(steered_study, [InboxSource(folder.inbox())], SilentView(), searcher.follow)
    searcher.on_turn = commander.take_all
    return Driver(folder, searcher, commander, optuna_study)


class Silent:
    """A tracker that records nothing."""

    def __getattr__(self, name: str) -> Callable[..., None]:
        return lambda *_, **__: None


# ---- add -------------------------------------------------------------------------------------------------------------
def test_an_added_trial_comes_first_and_on_top_of_the_budget(folder: StudyFolder) -> None:
    driver = drive(folder)
    assert driver.begin() == "00000"
    driver.end("00000")
    command = send(folder, "add", params={"rank": 16, "learning_rate": 0.05})
    assert driver.run() == ["00001", "00002", "00003"]
    records = folder.journal().records
    added = records["00001"]
    assert (added.command, added.is_hidden, added.lineage) == (command, False, None)
    assert (added.params["rank"], added.params["learning_rate"], added.params["batch_size"]) == (16, 0.05, 8)
    assert [record.command for record in records.values()].count("") == PLAN.trials
    told = driver.optuna_study.get_trials()[1]
    assert told.params == {name: value for name, value in added.params.items() if name != "batch_size"}
    assert told.value == pytest.approx(0.51), "the sampler learns from it"


def test_what_is_not_given_is_what_the_sampler_proposes(folder: StudyFolder) -> None:
    undisturbed = drive(folder)
    undisturbed.begin()
    proposed = folder.journal().records["00000"].params
    other = study("other", folder.info.tracking_uri, task=TASK, search=PLAN)
    (other.path / "space.yaml").write_text(SPACE)
    rank = next(value for value in (4, 8, 16) if value != proposed["rank"])
    send(other, "add", params={"rank": rank})
    drive(other).begin()
    assert other.journal().records["00000"].params == {**proposed, "rank": rank}


@pytest.mark.parametrize(
    ("params", "law"),
    [
        ({"rank": 5}, "`rank` must be as the space has it, one of 4, 8, 16, but got 5"),
        ({"rank": "many"}, "`rank` must be an integer in 1..65536, but got"),
        ({"learning_rate": 1.0}, "`learning_rate` must be as the space has it, in 0.001..0.1"),
        ({"rnak": 8}, "`rnak` must be a parameter of the space: rank"),
        ({"batch_size": 16}, "`batch_size` must be as the space has it, 8, but got 16"),
    ],
)
def test_params_outside_of_the_space_are_refused_with_the_law(
    folder: StudyFolder, params: dict[str, Any], law: str
) -> None:
    driver = drive(folder)
    command = send(folder, "add", params=params)
    assert driver.run() == ["00000", "00001", "00002"]
    answer = folder.journal().commands[command].answer
    assert answer is not None
    assert answer.state is AnswerState.REFUSED
    assert law in answer.text


# ---- clone -----------------------------------------------------------------------------------------------------------
def test_a_cold_clone_has_its_sources_params_but_for_those_given(folder: StudyFolder) -> None:
    driver = drive(folder)
    driver.begin()
    driver.end("00000")
    send(folder, "clone", "0", params={"learning_rate": 0.02})
    assert driver.begin() == "00001"
    records = folder.journal().records
    assert records["00001"].params == {**records["00000"].params, "learning_rate": 0.02}
    assert (records["00001"].lineage, records["00001"].is_hidden) == (Lineage("s", "00000"), False)


def test_a_warm_clone_goes_on_with_the_state_that_its_source_had(folder: StudyFolder) -> None:
    driver = drive(folder)
    driver.begin()
    folder.write_snapshot("00000", snapshot("00000", 20))
    command = send(folder, "clone", "00000", params={"learning_rate": 0.02}, warm=True)
    driver.commander.take_all()
    folder.write_snapshot("00000", snapshot("00000", 30))  # its source trains on before it starts
    assert driver.begin() == "00001"
    record = folder.journal().records["00001"]
    assert (record.command, record.lineage, record.is_hidden) == (command, Lineage("s", "00000", 20), True)
    first = report("00001", 20, 0.6)
    assert record.reports == (replace(first, device_s=0.0, peers={}),)
    kept = folder.read_snapshot("00001") or b""
    assert read_reports(kept) == record.reports
    assert load(kept).keys() == load(snapshot("x", 1)).keys()
    assert (load(kept)["parameter/R"] == np.arange(4.0)).all()
    told = driver.optuna_study.get_trials()[1]
    assert (told.params, told.intermediate_values) == ({}, {})
    driver.end("00001", score=0.9)
    ended = driver.optuna_study.get_trials()[1]
    assert (ended.state.name, ended.user_attrs["state"]) == ("FAIL", "COMPLETE"), "samplers pass over what has failed"
    assert folder.journal().records["00001"].state is TrialState.COMPLETE


def test_a_clone_of_a_clone_has_the_seed_of_the_first(folder: StudyFolder) -> None:
    driver = drive(folder)
    driver.begin()
    folder.write_snapshot("00000", snapshot("00000", 20))
    send(folder, "clone", "00000", warm=True)
    driver.begin()
    folder.write_snapshot("00001", snapshot("00001", 30))
    driver.end("00000")
    send(folder, "clone", "00001", warm=True)
    seeds = []
    actors = driver.searcher._actors
    given = actors.spec
    actors.spec = lambda *arguments: seeds.append(arguments[2]) or given(*arguments)  # type: ignore[method-assign,func-returns-value]
    assert driver.begin() == "00002"
    assert seeds == ["00000"]
    resumed = drive(folder)
    assert [resumed.begin() for _ in range(2)] == ["00001", "00002"]


@pytest.mark.parametrize(
    ("step", "arguments", "params", "law"),
    [
        (0, {"warm": True}, {}, "needs a trial that has reported, but trial 00000 of study 's' has no state yet"),
        (40, {"warm": True}, {}, "needs a trial with steps left, but trial 00000 of study 's' has trained all 40"),
        (20, {"warm": True}, {"rank": "other"}, "`rank` must stay"),
        (20, {"warm": True, "force": True}, {"rank": "other"}, "`rank` must stay"),
        (20, {}, {"learning_rate": 1.0}, "`learning_rate` must be as the space has it: learning_rate is 1.0, and here"),
        (20, {"force": True}, {"rank": 5}, "`rank` must be as the space has it: rank is 5, and here one of 4, 8, 16"),
        (20, {}, {"rnak": 8}, "`rnak` must be a parameter of a trial: rank"),
        (20, {}, {"learning_rate": "fast"}, "`learning_rate` must be a number above 0, but got"),
    ],
)
def test_a_clone_that_cannot_be_is_refused_with_the_law(
    folder: StudyFolder, step: int, arguments: dict[str, bool], params: dict[str, Any], law: str
) -> None:
    driver = drive(folder)
    driver.begin()
    if step:
        folder.write_snapshot("00000", snapshot("00000", step))
    own = folder.journal().records["00000"].params["rank"]
    given = {name: (4 if own != 4 else 8) if value == "other" else value for name, value in params.items()}
    command = send(folder, "clone", "00000", params=given, **arguments)
    driver.commander.take_all()
    answer = folder.journal().commands[command].answer
    assert answer is not None
    assert answer.state is AnswerState.REFUSED
    assert law in answer.text


def test_force_takes_an_optimizer_out_of_the_space_and_the_sampler_does_not_see_it(folder: StudyFolder) -> None:
    driver = drive(folder)
    driver.begin()
    driver.end("00000")
    send(folder, "clone", "00000", params={"learning_rate": 1.0, "weight_decay": 0.1}, force=True)
    assert driver.begin() == "00001"
    record = folder.journal().records["00001"]
    assert (record.params["learning_rate"], record.params["weight_decay"], record.is_hidden) == (1.0, 0.1, True)
    assert driver.optuna_study.get_trials()[1].params == {}


def test_a_damaged_state_costs_the_clone_and_nothing_else(folder: StudyFolder) -> None:
    driver = drive(folder)
    driver.begin()
    folder.write_snapshot("00000", b"not a snapshot")
    refused = send(folder, "clone", "00000", warm=True)
    driver.commander.take_all()
    answer = folder.journal().commands[refused].answer
    assert answer is not None
    assert "must be a safetensors file with reports" in answer.text
    folder.write_snapshot("00000", snapshot("00000", 20))
    command = send(folder, "clone", "00000", warm=True)
    driver.commander.take_all()
    (folder.path / "clones" / f"{command}.safetensors").unlink()
    assert driver.begin() is None
    record = folder.journal().records["00001"]
    assert record.state is TrialState.FAIL
    assert "A clone must have the state that it begins with" in record.reason
    assert driver.begin() == "00002"


# ---- kills -----------------------------------------------------------------------------------------------------------
class KilledError(BaseException):
    """What a test kills a driver with."""


@pytest.mark.parametrize("verb", ["add", "clone", "warm"])
@pytest.mark.parametrize("kill_at", range(8))
def test_killed_between_any_two_writes_a_command_is_carried_out_once(
    folder: StudyFolder, verb: str, kill_at: int, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Every write to the study folder is a place to die: before it, nothing of it is there."""
    first = drive(folder)
    first.begin()
    folder.write_snapshot("00000", snapshot("00000", 20))
    if verb == "add":
        command = send(folder, "add", params={"rank": 16})
    else:
        command = send(folder, "clone", "00000", params={"learning_rate": 0.02}, warm=verb == "warm")
    writes = []

    def dying(write: Callable[..., Any]) -> Callable[..., Any]:
        def write_or_die(*arguments: Any, **named: Any) -> Any:
            writes.append(write)
            if len(writes) == kill_at + 1:
                raise KilledError
            return write(*arguments, **named)

        return write_or_die

    from loraxs_search import append_log
    from loraxs_search.studies import commands
    from loraxs_search.studies import folder as study_folder

    with monkeypatch.context() as patch:
        patch.setattr(append_log.AppendLog, "append", dying(append_log.AppendLog.append))
        patch.setattr(study_folder, "write_atomic", dying(study_folder.write_atomic))
        patch.setattr(commands.CommandInbox, "remove", dying(commands.CommandInbox.remove))
        try:
            first.begin()
            first.begin()
        except KilledError:
            pass
        else:
            assert len(writes) <= kill_at, "it was never killed"
    resumed = drive(folder)
    names = [resumed.begin() for _ in range(2)]
    for name in names:
        assert name is not None
        resumed.end(name)
    resumed.run()
    records = folder.journal().records
    assert [record.command for record in records.values()].count(command) == 1
    assert len(records) == PLAN.trials + 1
    assert list(records) == [f"{number:05d}" for number in range(PLAN.trials + 1)]
    assert {record.state for record in records.values()} == {TrialState.COMPLETE}
    assert not list(folder.inbox().waiting())
    (asked,) = (record for record in records.values() if record.command)
    assert asked.params["rank" if verb == "add" else "learning_rate"] == (16 if verb == "add" else 0.02)
    if verb == "warm":
        assert asked.reports[0].step == 20


def test_proposals_beside_added_trials_are_those_of_an_undisturbed_search(folder: StudyFolder) -> None:
    """Whether the driver is killed after each trial or never."""
    undisturbed = study("undisturbed", folder.info.tracking_uri, task=TASK, search=PLAN)
    (undisturbed.path / "space.yaml").write_text(SPACE)
    whole = drive(undisturbed)
    params = []
    for one in (undisturbed, folder):
        driver = whole if one is undisturbed else drive(one)
        for number in range(PLAN.trials + 1):
            if number == 1:
                send(one, "add", params={"rank": 16})
            name = driver.begin()
            assert name is not None
            driver.end(name, score=0.5 + number / 100)
            driver = driver if one is undisturbed else drive(one)
        params.append([record.params for record in one.journal().records.values()])
    assert params[0] == params[1]


# ---- extend ----------------------------------------------------------------------------------------------------------
def test_an_extended_search_proposes_more_and_sees_its_new_deadline(folder: StudyFolder) -> None:
    driver = drive(folder)
    driver.begin()
    driver.end("00000")
    send(folder, "extend", trials=2, time="1h30m")
    assert len(driver.run()) == 4
    assert driver.searcher._deadline is not None
    assert driver.searcher._deadline.budget_s == pytest.approx(5400, abs=60)
    again = drive(folder)
    assert again.begin() == Searcher.FINISHED
    assert len(folder.journal().records) == PLAN.trials + 2


def test_two_extensions_add_up_and_survive_a_kill(folder: StudyFolder) -> None:
    driver = drive(folder)
    for _ in range(2):
        send(folder, "extend", trials=1)
    driver.commander.take_all()
    assert len(drive(folder).run()) == PLAN.trials + 2


@pytest.mark.parametrize(
    ("arguments", "law"),
    [
        ({}, "got neither --trials nor --time"),
        ({"trials": 0}, "`--trials` must be a whole number of at least 1, but got 0"),
        ({"time": "soon"}, "`--time` must be a time such as 1h, 90m, 1h30m or 45s, but got soon"),
        ({"time": "-1"}, "`--time` must be a time"),
    ],
)
def test_an_extension_that_says_nothing_is_refused(folder: StudyFolder, arguments: dict[str, Any], law: str) -> None:
    command = send(folder, "extend", **arguments)
    drive(folder).commander.take_all()
    answer = folder.journal().commands[command].answer
    assert answer is not None
    assert answer.state is AnswerState.REFUSED
    assert law in answer.text
