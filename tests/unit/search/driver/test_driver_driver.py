"""What stops one search of several that run together, and what stops all."""

from __future__ import annotations

import contextlib
import logging
import signal
import threading
from collections.abc import Callable, Iterator
from dataclasses import replace
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import pytest
from support.recorded_search import FACTS
from support.studies import study

from loraxs_search.cli.launch import watched
from loraxs_search.errors import SearchInterruptedError, StudyError
from loraxs_search.log.events import DriverStarted, TrainingEnded
from loraxs_search.log.study_log import SilentView
from loraxs_search.records.base import Identity
from loraxs_search.search.driver import launch as drivers
from loraxs_search.search.driver import session
from loraxs_search.search.driver.baselines import StudyBaselines
from loraxs_search.search.driver.finalize import Finalization
from loraxs_search.search.driver.session import StudyProbe
from loraxs_search.search.hosts import answers, study_actors
from loraxs_search.search_space.load import load_space
from loraxs_search.studies.folder import StudyFolder
from loraxs_search.tracking.store import has_waiting


def test_a_search_that_loses_its_lease_stops_no_other_one(monkeypatch: pytest.MonkeyPatch) -> None:
    @contextlib.contextmanager
    def lost_at_once(folder: object, lost: Callable[[], None]) -> Iterator[None]:
        lost()
        raise StudyError("another driver took over")
        yield

    monkeypatch.setattr(drivers, "mirrored", lost_at_once)
    stop, folder, nothing = threading.Event(), study("s"), Any
    driver = drivers.Driver(folder.info, nothing, SilentView(), stop)
    with pytest.raises(StudyError, match="took over"):
        driver.search(nothing, folder)
    assert (driver.is_stopped(), stop.is_set()) == (True, False)


@pytest.fixture
def folder(store_uri: str) -> StudyFolder:
    return study("s", store_uri)


@pytest.fixture
def interrupted(folder: StudyFolder, monkeypatch: pytest.MonkeyPatch) -> drivers.Driver:
    """A driver whose search is stopped once its log is open."""

    def open_session(*parts: Any, **_: object) -> None:
        parts[3].append(DriverStarted(since=0.0))
        raise SearchInterruptedError("stopped")

    monkeypatch.setattr(session, "SearchSession", open_session)
    return drivers.Driver(folder.info, Any, SilentView(), threading.Event())


ACTORS: Any = SimpleNamespace(info=SimpleNamespace(identity=Identity("base", "rows")))


def test_who_warns_late_writes_nothing_to_what_may_be_another_drivers_log(
    folder: StudyFolder, interrupted: drivers.Driver
) -> None:
    with interrupted._log.saying_warnings():
        with pytest.raises(SearchInterruptedError):
            interrupted.search(ACTORS, folder)
        folder.journal().append(TrainingEnded(notice="of another driver"))
        logging.getLogger("loraxs_search.late").warning("a host took long to end")
    assert folder.journal().notice == "of another driver"


def test_nothing_waits_for_mlflow_after_a_search_was_interrupted(
    folder: StudyFolder, interrupted: drivers.Driver, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Where its copy is not whole, which it warns of at its very end."""

    @contextlib.contextmanager
    def warning_at_its_end(_folder: object, _lost: object) -> Iterator[None]:
        try:
            yield
        finally:
            logging.getLogger("loraxs_search.studies.mirror").warning("the study is not whole in its storage")

    monkeypatch.setattr(drivers, "mirrored", warning_at_its_end)
    with interrupted._log.saying_warnings(), pytest.raises(SearchInterruptedError):
        interrupted.search(ACTORS, folder)
    assert not has_waiting(folder.path)


@pytest.mark.parametrize("is_resumed", [False, True])
def test_a_search_is_stopped_while_its_first_host_loads(
    is_resumed: bool, fresh_home: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Searches that run together hear no Ctrl-C but by the event: their threads get no signals."""
    monkeypatch.setattr(study_actors, "start_snapshot_store", lambda study: ("snapshots", None))
    monkeypatch.setattr(study_actors, "kill", lambda actor: None)
    monkeypatch.setattr(answers.ray, "wait", lambda asked, **_: ([], asked))
    folder, stop = study("s"), threading.Event()
    info = folder.info if is_resumed else replace(folder.info, name="new")
    pool: Any = SimpleNamespace(ask=lambda verb, check_stop: answers.await_answer("reference", check_stop))
    stop.set()
    with pytest.raises(SearchInterruptedError) as interrupted:
        drivers.Driver(info, load_space("movie_reviews"), SilentView(), stop).run(pool)
    assert ("resume s" in (interrupted.value.hint or "")) == is_resumed


@pytest.mark.parametrize("trains", [False, True])
@pytest.mark.parametrize("waits_for", ["the probe", "the baselines"])
def test_ctrl_c_is_heard_while_a_host_is_waited_for(
    folder: StudyFolder, monkeypatch: pytest.MonkeyPatch, waits_for: str, trains: bool
) -> None:
    """Before trials train it interrupts the program, and then it sets what each look at the host looks at."""
    looks = list[int]()

    def nothing_yet(answers: list[Any], **_: object) -> tuple[list[Any], list[Any]]:
        looks.append(len(looks))
        if looks == [0]:
            signal.raise_signal(signal.SIGINT)
        assert len(looks) < 3, "the signal was not heard"
        return [], answers

    monkeypatch.setattr(answers.ray, "wait", nothing_yet)
    folder.resolved_space_path.write_text("{}")
    verb = SimpleNamespace(remote=str)
    host = SimpleNamespace(linear_probe=verb, baselines=verb)
    store = SimpleNamespace(write_baselines=verb)
    actors: Any = SimpleNamespace(pool=SimpleNamespace(host=lambda: host), snapshot_store=store)
    space: Any = SimpleNamespace(task=folder.info.task, head_inits=lambda: {"probe"})
    with pytest.raises(SearchInterruptedError), watched("sqlite:///mlflow.db", study="s") as (view, stop):
        driver = drivers.Driver(folder.info, space, view, stop)
        actors.check_stop = driver.check_stop
        if trains:
            view.happened(FACTS)
        if waits_for == "the probe":
            StudyProbe(folder, actors, space, lambda _: None).digest()
        finalization = Finalization(actors, folder, space, (), driver.is_stopped)
        StudyBaselines(folder, actors, folder.info.task).result(finalization.on_loop_step)
