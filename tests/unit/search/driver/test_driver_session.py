"""One driver's work on a study: what stops it, its linear probe, what trials start from, and what has it go on."""

from __future__ import annotations

import contextlib
import logging
import threading
from collections.abc import Callable, Iterator
from dataclasses import replace
from pathlib import Path
from types import SimpleNamespace
from typing import Any, cast

import pytest
from support.studies import Tried, confirm, searched, study
from support.toys import HYPERPARAMETERS

from loraxs_search.assets import NOTHING, PROBE
from loraxs_search.errors import BaseModelError, ClusterError, HomeError, SearchInterruptedError, StudyError, UsageError
from loraxs_search.log.events import DriverStarted, Reopened, TrainingEnded
from loraxs_search.records.adapter import HostInfo, LinearProbe, StartFrom
from loraxs_search.records.search import Baseline, PromotionRule
from loraxs_search.records.task import BaseModel, Identity
from loraxs_search.search.driver import session
from loraxs_search.search.driver.launch import resume, search_study
from loraxs_search.search.hosts import pool as hosts_pool
from loraxs_search.search.hosts.answers import HOST_LOST
from loraxs_search.search_space.load import load_space, parse_space
from loraxs_search.steering import foreseen, new_command, steered, take_commands
from loraxs_search.studies.folder import StudyFolder
from loraxs_search.tracking.store import has_waiting


@contextlib.contextmanager
def opened(folder: StudyFolder, monkeypatch: pytest.MonkeyPatch, stop: threading.Event | None = None) -> Iterator[Any]:
    """Open a study whose actors need no cluster."""
    info, nothing = SimpleNamespace(identity=Identity("base", "rows"), pooling="class"), cast("Any", None)
    actors = SimpleNamespace(info=info, prepare_factors=bool, close=list)

    def made(_info: object, _space: object, _pool: object, check_stop: Callable[[], None], begun: object) -> Any:
        assert begun == folder.identity.read()
        actors.check_stop = check_stop
        return actors

    monkeypatch.setattr(session, "StudyActors", made)
    space, stop = load_space("movie_reviews"), stop or threading.Event()
    with session.open_study(folder.info, space, nothing, folder.journal(), stop, is_locked=False) as study:
        yield study


@pytest.fixture
def folder(store_uri):
    return study("s", store_uri)


def test_a_search_that_loses_its_lease_stops_no_other_one(folder, monkeypatch):
    taken, stop, seen = StudyError("another driver took over"), threading.Event(), list[tuple[bool, bool]]()

    @contextlib.contextmanager
    def lost_at_once(folder: object, lost: Callable[[], None]) -> Iterator[Any]:
        lost()
        yield SimpleNamespace(is_sure=True, lost_to=taken)

    monkeypatch.setattr(session, "mirrored", lost_at_once)
    with pytest.raises(StudyError, match="took over"), opened(folder, monkeypatch, stop) as study:
        seen.append((study.is_stopped(), stop.is_set()))
        study._hear = lambda: None
        with pytest.raises(SearchInterruptedError):
            study._on_end_step()
        study.actors.check_stop()
    assert seen == [(True, False)]
    assert list(folder.journal().history()) == [], "the log is another driver's"


def test_who_warns_late_writes_nothing_to_what_may_be_another_drivers_log(folder, monkeypatch):
    """Nor does anything wait for MLflow after a search was interrupted."""

    @contextlib.contextmanager
    def warning_at_its_end(_folder: object, _lost: object) -> Iterator[None]:
        try:
            yield
        finally:
            folder.journal().append(TrainingEnded(notice="of another driver"))
            logging.getLogger("loraxs_search.studies.mirror").warning("the study is not whole in its storage")

    def interrupt() -> None:
        with pytest.raises(SearchInterruptedError), opened(folder, monkeypatch) as study:
            study.study.journal.append(DriverStarted(since=0.0))
            raise SearchInterruptedError("stopped")

    interrupt()
    assert not has_waiting(folder.path)
    assert folder.identity.read() == Identity("base", "rows"), "which a resumed search is held to"
    monkeypatch.setattr(session, "mirrored", warning_at_its_end)
    interrupt()
    *_, state, last = (type(event).__name__ for event in folder.journal().history())
    assert (state, last) == ("SearchFinished", "TrainingEnded")


@pytest.mark.parametrize("is_resumed", [False, True])
def test_a_search_is_stopped_while_its_first_host_loads(is_resumed, fresh_home, monkeypatch):
    """Searches that run together hear no Ctrl-C but by the event: their threads get no signals."""
    monkeypatch.setattr(hosts_pool, "start_named", lambda *_: ("snapshots", None))
    monkeypatch.setattr(hosts_pool, "kill", lambda actor: None)
    folder, stop = study("s"), threading.Event()
    info = folder.info if is_resumed else replace(folder.info, name="new")
    pool: Any = SimpleNamespace(ask=lambda ask, check_stop: check_stop())
    stop.set()
    with pytest.raises(SearchInterruptedError) as interrupted:
        search_study(info, load_space("movie_reviews"), pool, None, stop)
    assert ("resume s" in (interrupted.value.hint or "")) == is_resumed


# ---- what trials start from ------------------------------------------------------------------------------------------
def test_a_study_keeps_the_pooling_and_starts_from_what_fits_alone(fresh_home, monkeypatch):
    monkeypatch.setattr(session, "trial_shapes", lambda *_: ())
    text = "{task: sst2, base_model: a/b, parameters: {rank: 4, learning_rate: 0.001}, start_from: t}"
    host = HostInfo(BaseModel("b", "/b", "b" * 64), (), 0, "", {}, "cpu", "float32", {}, pooling="mean")
    start = StartFrom("t:1", "d" * 64, "b" * 64, HYPERPARAMETERS, with_head=True, pooling="mean")
    info = study("s").info

    def settle(pooling: str, head: str, **changes: Any) -> Any:
        overrides = [f"task.pooling={pooling}", f"parameters.head={head}"]
        space = parse_space(text, source="s.yaml", folder=Path(), overrides=overrides)
        return session.settled(replace(info, task=space.task, start_from=replace(start, **changes)), space, host)

    for given, kept, with_head in (("auto", "mean", True), ("class", "class", False), ("mean", "mean", True)):
        kept_info, kept_space = settle(given, HYPERPARAMETERS.head)
        assert (kept_info.task.pooling, kept_space.task.pooling) == (kept, kept)
        assert kept_info.start_from == replace(start, with_head=with_head)
    with pytest.raises(BaseModelError):
        settle("auto", "full", base_digest="c" * 64)
    with pytest.raises(UsageError, match="`head` must be"):
        settle("auto", "full", hyperparameters=replace(HYPERPARAMETERS, head="output"))


# ---- its linear probe ------------------------------------------------------------------------------------------------
FITTED = LinearProbe(b"weights", 90, 0.5)


@pytest.fixture
def probed(fresh_home):
    made = study("s")
    (made.path / "space.json").write_text("{}")
    return made


@pytest.fixture
def make(probed):
    """Begin the probe of that study on a host that answers with a probe or an error, or must not be asked."""

    def probe(
        answer: LinearProbe | Exception | None = None, *, init: str = "probe", stop: Callable[[], None] = bool,
        said: Any = bool,
    ) -> Callable[[], str | None]:  # fmt: skip
        def linear_probe(task: object) -> LinearProbe | Exception:
            assert answer is not None, "no host is asked"
            return answer

        def ask(verb: Any, check_stop: Any, begun: Any) -> LinearProbe:
            check_stop()
            found = begun or verb(host)
            if isinstance(found, Exception):
                raise found
            return cast("LinearProbe", found)

        host = SimpleNamespace(linear_probe=linear_probe)
        host.serve = SimpleNamespace(remote=lambda work, *_: work(host))
        space: Any = SimpleNamespace(task=probed.info.task, methods=("lora-xs",), possible_values=lambda *_: (init,))
        pool = SimpleNamespace(host=lambda: host, ask=ask)
        return session.begin_linear_probe(probed, cast("Any", SimpleNamespace(pool=pool, check_stop=stop)), space, said)

    return probe


def test_the_study_keeps_it_and_a_resumed_one_asks_no_host(make, probed):
    said = list[str]()
    probe = make(FITTED, said=said.append)
    digest = probe()
    assert probe() == digest == probed.assets()[PROBE]
    assert probed.read_asset(digest) == b"weights"
    assert make()() == digest
    assert len(said) == 1, "a phase of the search"


def test_a_base_without_one_is_said_once_and_trials_of_a_resumed_study_start_as_the_first_ones_did(
    make, probed, caplog
):
    """Refits would be of another recipe otherwise."""
    probe = make(LinearProbe(reason="no numbers"))
    assert [probe(), probe()] == [None, None]
    (said,) = caplog.records
    assert "no numbers" in said.getMessage()
    assert probed.assets() == {PROBE: NOTHING}
    assert make()() is None


def test_a_node_that_is_not_fit_ends_the_search_and_hosts_that_are_lost_do_not(make, probed):
    def stop() -> None:
        raise SearchInterruptedError("stopped")

    for kind in (ClusterError, HomeError):
        with pytest.raises(kind):
            make(kind("No space left."))()
    with pytest.raises(SearchInterruptedError):
        make(FITTED, stop=stop)()
    assert not probed.assets()
    assert make(HOST_LOST[0]())() is None, "heads start at random"


def test_a_space_whose_heads_start_at_random_asks_only_for_a_trial_that_somebody_adds(make):
    probe = make(FITTED, init="random", said=pytest.fail)
    assert probe() is not None


# ---- going on --------------------------------------------------------------------------------------------------------
@pytest.fixture
def ended(fresh_home):
    space = "task: sst2\nbase_model: org/base\nparameters: {rank: {choice: [4, 8, 16]}, learning_rate: 0.01}\n"
    tried = [Tried({"rank": 4}, 0.9), Tried({"rank": 8}, 0.8)]
    folder = searched("s", tried, space=space, finished=False, promotion=PromotionRule())
    confirm(folder, "00000", [0.9], [1, 0], [1, 1])
    folder.journal().append(TrainingEnded(notice=""))
    return folder


def asks_for_more(folder: StudyFolder) -> bool:
    """Whether `resume` trains more."""
    study = foreseen(folder)
    return study.journal.is_reopened or study.is_to_reopen


def test_the_recipe_trains_to_its_end_also_behind_trials_that_people_asked_for():
    space = load_space("movie_reviews")
    recipe = space.drawn_params(space._by_recipe("lora-xs"))
    records: Any = {name: SimpleNamespace(params=recipe, command="") for name in ("00001", "00002")}
    assert [session.is_recipe(name, space, records) for name in records] == [True, False]
    records = {"00000": SimpleNamespace(params=recipe | {"rank": 2}, command="1")} | records
    assert [session.is_recipe(name, space, records) for name in records] == [False, True, False]


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
    ended.journal().append(Reopened(number=1))  # and one that died here has left the candidates
    assert asks_for_more(ended)
    assert not session.reopen(steered(ended))
    assert ended.candidates() is None
    assert ended.earlier_finalists() == ("00000",)
    journal = ended.journal()
    assert (journal.notice, journal.num_reopenings) == (None, 1)
    journal.append(TrainingEnded(notice=""))
    ended.write_candidates([])
    assert not asks_for_more(ended)
    assert not session.reopen(steered(ended))
    assert ended.candidates() == []


def test_a_finished_study_that_lacks_a_baseline_does_its_end_again(ended, monkeypatch):
    monkeypatch.setattr(StudyFolder, "space", lambda _: load_space("movie_reviews"))
    ended.write_baselines([Baseline("tfidf", failed="disk full", applies=True)])
    before = ended.candidates()

    def no_ray(*_: object, **__: object) -> None:
        raise ClusterError("no Ray here")

    monkeypatch.setattr("loraxs_search.search.driver.launch.connected", no_ray)
    with pytest.raises(ClusterError):
        resume("s")
    assert ended.candidates() == before is not None
    ended.identity.path.unlink()  # as the actors of this test have it
    with opened(ended, monkeypatch) as study:
        assert study.study.folder.candidates() is None
    assert ended.earlier_finalists() == ("00000",)
    assert staged(ended, [False] * 4) == ["validate", "test"], "its trials have ended"


def staged(folder: StudyFolder, wants_more: list[bool]) -> list[str]:
    """Run the stages of a search; return what is done.

    Args:
        wants_more: What people say each time that they are asked, as the stages of a session do.
    """
    journal, nothing = folder.journal(), cast("Any", None)
    actors: Any = SimpleNamespace(pool=SimpleNamespace(watched=lambda *_: contextlib.nullcontext()))
    search = session.SearchSession(steered(folder, journal), nothing, actors, bool)
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

    searcher = SimpleNamespace(run=lambda: done.append("train"), notice="")
    vars(search).update({"_searcher": searcher, "_wants_more": goes_on, "_finalize": finalize})
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(session, "record_end", lambda *_: None)
        search.run()
    return done


def test_more_that_comes_while_candidates_are_scored_is_trained_before_test_rows_are_asked(ended):
    ended.set_candidates_aside()
    ended.journal().append(Reopened(number=1))
    once = ["train", "validate", "test"]
    asked = [False, True, False, False, True, False, False, False]
    assert staged(ended, asked) == ["train", "validate", *once, *once]
    assert ended.candidates() == []
