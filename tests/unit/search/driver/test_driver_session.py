"""A finished study that people ask for more goes on, once for each command, wherever its driver is killed."""

from __future__ import annotations

import threading
from dataclasses import replace
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import pytest
from support.searched_studies import Tried, confirm, searched
from support.studies import TASK, study
from support.tracked import Tracked

from loraxs_search.errors import ClusterError, SearchInterruptedError
from loraxs_search.log.events import Reopened, TrainingEnded
from loraxs_search.log.study_log import SilentView
from loraxs_search.records.base import Identity
from loraxs_search.records.promotion import Baseline, PromotionRule
from loraxs_search.records.search import AnswerState, SearchPlan
from loraxs_search.records.task import DataReport
from loraxs_search.records.trial import Lineage, TrialState
from loraxs_search.search.driver import session
from loraxs_search.search.driver.finalize import Finalization
from loraxs_search.search.driver.launch import Driver, resume
from loraxs_search.search.driver.session import SearchSession, run_stages
from loraxs_search.search.driver.session import reopen as reopened
from loraxs_search.search_space.load import load_space
from loraxs_search.steering import asks_for_more, foreseen, steered, take_commands
from loraxs_search.steering.send import new_command
from loraxs_search.steering.state import Deadline, SteeringState
from loraxs_search.studies.folder import StudyFolder
from loraxs_search.tracking.store import connect

SPACE = """
task: sst2
base_model: org/base
parameters:
  rank: {choice: [4, 8, 16]}
  learning_rate: 0.01
"""


@pytest.fixture
def ended(fresh_home: Path) -> StudyFolder:
    tried = [Tried({"rank": 4}, 0.9), Tried({"rank": 8}, 0.8)]
    folder = searched("s", tried, space=SPACE, finished=False, promotion=PromotionRule())
    confirm(folder, "00000", [0.9], [1, 0], [1, 1])
    folder.journal().append(TrainingEnded(notice=""))
    return folder


def reopen(folder: StudyFolder) -> bool:
    """Do what a driver does first."""
    return reopened(steered(folder, folder.journal()))


@pytest.mark.parametrize("asked_first", [False, True])
def test_the_recipe_trains_to_its_end_also_behind_trials_that_people_asked_for(asked_first: bool) -> None:
    session = SearchSession.__new__(SearchSession)
    session._space = load_space("movie_reviews")
    recipe = session._space.drawn_params(session._space._by_recipe("lora-xs"))
    records = {"00000": SimpleNamespace(params=recipe | {"rank": 2}, command="1")} if asked_first else {}
    records |= {name: SimpleNamespace(params=recipe, command="") for name in ("00001", "00002")}
    session._journal = SimpleNamespace(records=records)  # type: ignore[assignment]
    assert [session._is_recipe(name) for name in records] == [*[False] * asked_first, True, False]


def test_what_waits_is_foreseen_and_nothing_is_written(ended: StudyFolder) -> None:
    before = (ended.path / "journal.jsonl").read_bytes()
    assert not asks_for_more(foreseen(ended))
    ended.inbox().put(new_command("extend", arguments={"trials": 0}))  # it will be refused
    assert not asks_for_more(foreseen(ended))
    ended.inbox().put(new_command("extend", arguments={"trials": 3}))
    assert asks_for_more(foreseen(ended))
    assert foreseen(ended).state.trials == 2 + 3
    assert (ended.path / "journal.jsonl").read_bytes() == before


def test_it_is_reopened_once_for_each_command_wherever_the_driver_dies(ended: StudyFolder) -> None:
    ended.inbox().put(new_command("add", params={"rank": 16}))
    take_commands(steered(ended, ended.journal()))
    assert asks_for_more(foreseen(ended)), "a driver that died here has answered and done nothing"
    journal = ended.journal()
    journal.append(Reopened(number=1))  # and one that died here has left the candidates
    assert asks_for_more(foreseen(ended))
    assert not reopen(ended)
    assert ended.candidates() is None
    assert ended.earlier_finalists() == ("00000",)
    journal = ended.journal()
    assert (journal.notice, journal.num_reopenings) == (None, 1)
    journal.append(TrainingEnded(notice=""))
    ended.write_candidates([])
    assert not asks_for_more(foreseen(ended))
    assert not reopen(ended)
    assert ended.candidates() == []


def test_a_finished_study_that_lacks_a_baseline_does_its_end_again(
    ended: StudyFolder, monkeypatch: pytest.MonkeyPatch
) -> None:
    launched = "loraxs_search.search.driver.launch."
    monkeypatch.setattr(StudyFolder, "space", lambda _: load_space("movie_reviews"))
    ended.write_baselines([Baseline("tfidf", failed="disk full", applies=True)])
    before = ended.candidates()

    def no_ray(*_: object, **__: object) -> None:
        raise ClusterError("no Ray here")

    monkeypatch.setattr(f"{launched}connected", no_ray)
    with pytest.raises(ClusterError):
        resume("s")
    assert ended.candidates() == before is not None

    def open_session(_info: object, _space: object, folder: StudyFolder, *_: object, **__: object) -> None:
        raise SearchInterruptedError(str(folder.candidates()))

    actors: Any = SimpleNamespace(info=SimpleNamespace(identity=Identity("base", "data")))
    monkeypatch.setattr(session, "SearchSession", open_session)
    with pytest.raises(SearchInterruptedError, match="None"):
        Driver(ended.info, actors, SilentView(), threading.Event()).search(actors, ended)
    assert ended.earlier_finalists() == ("00000",)
    done = list[str]()
    run_stages(ended, ended.journal(), lambda: done.append("train"), lambda: bool(done.append("end")) or True, bool)
    assert done == ["end"], "its trials have ended"


def test_more_that_comes_while_candidates_are_scored_is_trained_before_test_rows_are_asked(ended: StudyFolder) -> None:
    journal, done = ended.journal(), list[str]()
    ended.set_candidates_aside()
    journal.append(Reopened(number=1))
    asked = iter([False, True, False, False, True, False, False, False])

    def goes_on() -> bool:
        if more := next(asked):
            journal.append(Reopened(number=journal.num_reopenings + 1))
            ended.set_candidates_aside()
        return more

    def train() -> None:
        done.append("train")
        journal.append(TrainingEnded(notice=""))

    def keep_adapters() -> bool:
        done.append("validate")
        if goes_on():
            return False
        done.append("test")
        ended.write_candidates([])
        return True

    run_stages(ended, journal, train, keep_adapters, goes_on)
    once = ["train", "validate", "test"]
    assert done == ["train", "validate", *once, *once]
    assert ended.candidates() == []


def test_mlflow_says_what_a_trial_was_cloned_from(store_uri: str, fresh_home: Path, tmp_path: Path) -> None:
    with Tracked("s", tmp_path / "s", store_uri, "t") as tracker:
        tracker.trial_started("00000", {"rank": 4})
        tracker.trial_started("00001", {"rank": 4}, None, Lineage("s", "00000"))
        assert tracker.flush(60)
    client = connect(store_uri)
    runs = client.search_runs([client.get_experiment_by_name("t").experiment_id])
    tags = {run.data.tags.get("trial_id"): run.data.tags for run in runs}
    assert tags["00001"]["loraxs.lineage"] == "s/00000"


def test_what_people_ask_while_refits_train_is_answered_at_once(fresh_home: Path) -> None:
    folder = searched("s", [Tried({"rank": 4}, 0.9)], space=SPACE, finished=False)
    folder.journal().append(TrainingEnded(notice=""))
    folder.inbox().put(new_command("finish"))
    study = steered(folder, folder.journal())
    stop = threading.Event()
    finish = Finalization(None, folder, None, (), stop.is_set, take_commands=lambda: take_commands(study))  # type: ignore[arg-type]
    finish.on_loop_step()  # as `map_over_hosts` does while hosts work
    (record,) = study.journal.commands.values()
    assert record.answer is not None
    assert record.answer.state is AnswerState.REFUSED
    assert "Ctrl-C" in record.answer.hint
    stop.set()
    with pytest.raises(SearchInterruptedError):
        finish.on_loop_step()


def test_refits_count_their_steps_between_reports(fresh_home: Path) -> None:
    plan, seen = SearchPlan(max_steps=100), list[tuple[int, int, str]]()
    space: Any = SimpleNamespace(search=plan)
    counted = lambda *done: seen.append(done)  # noqa: E731
    finish = Finalization(None, study("s"), space, (), bool, counted)  # type: ignore[arg-type]
    finish._refit_steps.update({"00000.1": 0, "00001.1": 40})
    for name, step in (("00000.1", 7), ("00000.1", 20), ("00001.1", 30), ("00007", 99), ("00001.1", 100)):
        finish.reached(name, step)
    assert seen == [(47, 200, "steps"), (60, 200, "steps"), (120, 200, "steps")]


def test_a_search_says_once_how_many_trials_its_time_budget_has_room_for(caplog: pytest.LogCaptureFixture) -> None:
    session = SearchSession.__new__(SearchSession)
    session._timed, session._has_said_what_fits = None, False
    rule = PromotionRule(candidates=1, seeds=1)
    session._info = SimpleNamespace(search=SearchPlan(trials=10, max_steps=100), promotion=rule)  # type: ignore[assignment]
    session._deadline = SimpleNamespace(left_s=60.0)  # type: ignore[assignment]
    session._study = SimpleNamespace(state=SteeringState())  # type: ignore[assignment]
    session._journal = SimpleNamespace(records={})  # type: ignore[assignment]
    for now, steps in ((0.0, 10), (1.0, 12), (2.0, 20), (3.0, 40)):
        session._say_what_fits({"00000": steps, "00001": steps}, now)
    (record,) = caplog.records
    assert "room for about 5 of the 10 trials" in record.getMessage()
    assert "one takes about 10 s, 2 at once take 20 s" in record.getMessage()


def budgeted(monkeypatch: pytest.MonkeyPatch, *, budget_s: float, now: float) -> SearchSession:
    """Return the session of a search that began at 0: of two trials of 20 steps, each step takes a second."""
    session, plan = SearchSession.__new__(SearchSession), SearchPlan(max_steps=20, report_every=10)
    folder = searched("s", [Tried({"rank": 4}, 0.9), Tried({"rank": 8}, 0.8, state=TrialState.RUNNING)], space=SPACE)
    records = {
        name: replace(record, reports=tuple(replace(each, device_s=float(each.step)) for each in record.reports))
        for name, record in folder.journal().records.items()
    }
    monkeypatch.setattr("loraxs_search.steering.state.steady_time", lambda: now)
    session._answer_s, session._end_time = 0.0, None
    session._info, session._space = SimpleNamespace(search=plan, promotion=PromotionRule()), SimpleNamespace(task=TASK)  # type: ignore[assignment]
    session._journal = SimpleNamespace(records=records)  # type: ignore[assignment]
    info = SimpleNamespace(num_rows={"validation": 10, "test": 10}, data=DataReport({}))
    slots = SimpleNamespace(slots=SimpleNamespace(num_slots=2))
    session._actors = SimpleNamespace(info=info, slot_counter=slots, pack_size=SimpleNamespace(size=2))  # type: ignore[assignment]
    session._deadline = Deadline(replace(plan, time_budget=budget_s), SteeringState(), 0.0)
    session._keep_time_for_end()
    return session


@pytest.mark.parametrize(
    ("budget_s", "now", "is_over", "is_late"),
    [(300, 162, False, False), (300, 163, True, False), (300, 174, True, True), (100, 44, False, False)],
)
def test_a_time_budget_keeps_time_for_refits(
    monkeypatch: pytest.MonkeyPatch, fresh_home: Path, budget_s: float, now: float, is_over: bool, is_late: bool
) -> None:
    """Six refits take 120 s, with a margin 132 s, but at most half; a trial that runs reports after 10 s."""
    deadline = budgeted(monkeypatch, budget_s=budget_s, now=now)._deadline
    assert (deadline.is_over, deadline.is_late) == (is_over, is_late)


def test_refits_that_do_not_fit_into_the_time_budget_are_left_out_and_said(
    monkeypatch: pytest.MonkeyPatch, fresh_home: Path, caplog: pytest.LogCaptureFixture
) -> None:
    session, trained = budgeted(monkeypatch, budget_s=100, now=35), list[str]()
    session._journal = SimpleNamespace(phase=lambda _: None)  # type: ignore[assignment]
    wanted = [f"0000{trial}.{number}" for number in (1, 2) for trial in (0, 1, 2)]
    finalization: Any = SimpleNamespace(
        best=[0, 1, 2],
        missing_refits=lambda: [name for name in wanted if name not in trained],
        refit=lambda specs, _: trained.extend(specs),
        validate=lambda limit: [],
    )
    session._validated(finalization)
    assert trained == wanted[:3], "of 20 s each"
    assert "no room for 3 of 6 refits" in caplog.text
