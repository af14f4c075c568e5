"""A finished study that people ask for more goes on, once for each command, wherever its driver is killed."""

from __future__ import annotations

import contextlib
import threading
from types import SimpleNamespace
from typing import Any, cast

import pytest
from support.searched_studies import Tried, confirm, searched

from loraxs_search.errors import ClusterError
from loraxs_search.log.events import Reopened, TrainingEnded
from loraxs_search.records.search import Baseline, PromotionRule
from loraxs_search.records.task import Identity
from loraxs_search.search.driver.launch import resume
from loraxs_search.search.driver.session import SearchSession, is_recipe, open_study
from loraxs_search.search.driver.session import reopen as reopened
from loraxs_search.search_space.load import load_space
from loraxs_search.steering import foreseen, new_command, steered, take_commands
from loraxs_search.studies.folder import StudyFolder

SPACE = "task: sst2\nbase_model: org/base\nparameters: {rank: {choice: [4, 8, 16]}, learning_rate: 0.01}\n"


@pytest.fixture
def ended(fresh_home):
    tried = [Tried({"rank": 4}, 0.9), Tried({"rank": 8}, 0.8)]
    folder = searched("s", tried, space=SPACE, finished=False, promotion=PromotionRule())
    confirm(folder, "00000", [0.9], [1, 0], [1, 1])
    folder.journal().append(TrainingEnded(notice=""))
    return folder


def asks_for_more(folder: StudyFolder) -> bool:
    """Whether `resume` trains more."""
    study = foreseen(folder)
    return study.journal.is_reopened or study.is_to_reopen


def reopen(folder: StudyFolder) -> bool:
    """Do what a driver does first."""
    return reopened(steered(folder, folder.journal()))


def test_the_recipe_trains_to_its_end_also_behind_trials_that_people_asked_for():
    space = load_space("movie_reviews")
    recipe = space.drawn_params(space._by_recipe("lora-xs"))
    records: Any = {name: SimpleNamespace(params=recipe, command="") for name in ("00001", "00002")}
    assert [is_recipe(name, space, records) for name in records] == [True, False]
    records = {"00000": SimpleNamespace(params=recipe | {"rank": 2}, command="1")} | records
    assert [is_recipe(name, space, records) for name in records] == [False, True, False]


def test_what_waits_is_foreseen_and_nothing_is_written(ended):
    before = (ended.path / "journal.jsonl").read_bytes()
    assert not asks_for_more(ended)
    ended.inbox.put(new_command("extend", arguments={"trials": 0}))  # it will be refused
    assert not asks_for_more(ended)
    ended.inbox.put(new_command("extend", arguments={"trials": 3}))
    assert asks_for_more(ended)
    assert foreseen(ended).state.trials == 2 + 3
    assert (ended.path / "journal.jsonl").read_bytes() == before


def test_it_is_reopened_once_for_each_command_wherever_the_driver_dies(ended):
    ended.inbox.put(new_command("add", params={"rank": 16}))
    take_commands(steered(ended, ended.journal()))
    assert asks_for_more(ended), "a driver that died here has answered and done nothing"
    journal = ended.journal()
    journal.append(Reopened(number=1))  # and one that died here has left the candidates
    assert asks_for_more(ended)
    assert not reopen(ended)
    assert ended.candidates() is None
    assert ended.earlier_finalists() == ("00000",)
    journal = ended.journal()
    assert (journal.notice, journal.num_reopenings) == (None, 1)
    journal.append(TrainingEnded(notice=""))
    ended.write_candidates([])
    assert not asks_for_more(ended)
    assert not reopen(ended)
    assert ended.candidates() == []


def test_a_finished_study_that_lacks_a_baseline_does_its_end_again(ended, monkeypatch):
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

    actors = SimpleNamespace(
        info=SimpleNamespace(identity=Identity("base", "data"), pooling="class"), prepare_factors=bool, close=list
    )
    monkeypatch.setattr("loraxs_search.search.driver.session.StudyActors", lambda *_: actors)
    nothing: Any = None
    with open_study(
        ended.info, load_space("movie_reviews"), nothing, ended.journal(), threading.Event(), is_locked=False
    ) as opened:
        assert opened.study.folder.candidates() is None
    assert ended.earlier_finalists() == ("00000",)
    assert staged(ended, [False] * 4) == ["validate", "test"], "its trials have ended"


def staged(folder: StudyFolder, wants_more: list[bool]) -> list[str]:
    """Run the stages of a search; return what is done.

    Args:
        wants_more: What people say each time that they are asked, as the stages of a session do.
    """
    journal, nothing = folder.journal(), cast("Any", None)
    actors: Any = SimpleNamespace(pool=SimpleNamespace(watched=lambda *_: contextlib.nullcontext()))
    session = SearchSession(steered(folder, journal), nothing, actors, bool)
    done, asked = list[str](), iter(wants_more)

    def goes_on() -> bool:
        if more := next(asked):
            journal.append(Reopened(number=journal.num_reopenings + 1))
            folder.set_candidates_aside()
        return more

    def finalize() -> bool:
        done.append("validate")
        if goes_on():
            return False
        done.append("test")
        folder.write_candidates([])
        return True

    given: Any = {
        "_searcher": SimpleNamespace(run=lambda: done.append("train"), notice=""),
        "_wants_more": goes_on,
        "_finalize": finalize,
    }
    vars(session).update(given)
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr("loraxs_search.search.driver.session.record_end", lambda *_: None)
        session.run()
    return done


def test_more_that_comes_while_candidates_are_scored_is_trained_before_test_rows_are_asked(ended):
    ended.set_candidates_aside()
    ended.journal().append(Reopened(number=1))
    once = ["train", "validate", "test"]
    asked = [False, True, False, False, True, False, False, False]
    assert staged(ended, asked) == ["train", "validate", *once, *once]
    assert ended.candidates() == []
