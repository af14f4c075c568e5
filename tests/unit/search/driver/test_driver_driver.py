"""What stops one search of several that run together, and what stops all."""

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
from support.studies import study

from loraxs_search.errors import SearchInterruptedError, StudyError
from loraxs_search.records import Identity, SearchPlan
from loraxs_search.samplers.trials import StudyTrials
from loraxs_search.search.driver import driver as drivers
from loraxs_search.search.driver.driver import OwnStop
from loraxs_search.search.hosts import client, study_actors
from loraxs_search.search.hosts.client import HostClient
from loraxs_search.search.ledger import SilentView
from loraxs_search.search_space import load_space
from loraxs_search.tracking.followed import has_waiting


def test_a_search_that_loses_its_lease_stops_no_other_one(monkeypatch: pytest.MonkeyPatch) -> None:
    @contextlib.contextmanager
    def lost_at_once(folder: object, lost: Callable[[], None]) -> Iterator[None]:
        lost()
        raise StudyError("another driver took over")
        yield

    monkeypatch.setattr(drivers, "mirrored", lost_at_once)
    stop, folder, nothing = threading.Event(), study("s"), Any
    with pytest.raises(StudyError, match="took over"):
        drivers.Driver(folder.info, nothing, SilentView(), stop)._run_with(nothing, folder)
    assert not stop.is_set()


def test_who_warns_late_writes_nothing_to_what_may_be_another_drivers_log(
    store_uri: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    folder = study("s", store_uri)
    trials = StudyTrials(folder.info.task, SearchPlan(), lambda: load_space("movie_reviews"))

    def interrupted(driver: drivers.Driver, _folder: object, _actors: object, journal: Any, _run_of: object) -> None:
        driver._ledger.open(journal, trials)
        raise SearchInterruptedError("stopped")

    monkeypatch.setattr(drivers.Driver, "_search", interrupted)
    actors: Any = SimpleNamespace(info=SimpleNamespace(identity=Identity("base", "rows")))
    driver = drivers.Driver(folder.info, Any, SilentView(), threading.Event())
    with driver._ledger.hearing_warnings():
        with pytest.raises(SearchInterruptedError):
            driver._run_with(actors, folder)
        folder.journal().search_ended("of another driver")
        logging.getLogger("loraxs_search.late").warning("a host took long to end")
    assert folder.journal().notice == "of another driver"


def test_nothing_waits_for_mlflow_after_a_search_was_interrupted(
    store_uri: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Where its copy is not whole, which it warns of at its very end."""
    folder = study("s", store_uri)
    trials = StudyTrials(folder.info.task, SearchPlan(), lambda: load_space("movie_reviews"))

    @contextlib.contextmanager
    def warning_at_its_end(_folder: object, _lost: object) -> Iterator[None]:
        try:
            yield
        finally:
            logging.getLogger("loraxs_search.studies.mirror").warning("the study is not whole in its storage")

    def interrupted(driver: drivers.Driver, _folder: object, _actors: object, journal: Any, _run_of: object) -> None:
        driver._ledger.open(journal, trials)
        raise SearchInterruptedError("stopped")

    monkeypatch.setattr(drivers, "mirrored", warning_at_its_end)
    monkeypatch.setattr(drivers.Driver, "_search", interrupted)
    actors: Any = SimpleNamespace(info=SimpleNamespace(identity=Identity("base", "rows")))
    driver = drivers.Driver(folder.info, Any, SilentView(), threading.Event())
    with driver._ledger.hearing_warnings(), pytest.raises(SearchInterruptedError):
        driver._run_with(actors, folder)
    assert not has_waiting(folder.path)


@pytest.mark.parametrize("is_resumed", [False, True])
def test_a_search_is_stopped_while_its_first_host_loads(
    is_resumed: bool, fresh_home: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Searches that run together hear no Ctrl-C but by the event: their threads get no signals."""
    monkeypatch.setattr(study_actors, "start_snapshot_store", lambda study: ("snapshots", None))
    monkeypatch.setattr(study_actors, "kill", lambda actor: None)
    monkeypatch.setattr(client.ray, "wait", lambda asked, **_: ([], asked))
    folder, stop, actor = study("s"), threading.Event(), SimpleNamespace(info=SimpleNamespace(remote=lambda task: task))
    info = folder.info if is_resumed else replace(folder.info, name="new")
    pool: Any = SimpleNamespace(host=lambda: HostClient.to(cast("Any", actor)))
    stop.set()
    with pytest.raises(SearchInterruptedError) as interrupted:
        drivers.Driver(info, load_space("movie_reviews"), SilentView(), stop).run(pool)
    assert ("resume s" in (interrupted.value.hint or "")) == is_resumed


def test_what_stops_all_stops_each() -> None:
    shared = threading.Event()
    one, other = OwnStop(shared), OwnStop(shared)
    one.set()
    assert (one.is_set(), one.wait(0), other.is_set(), other.wait(0)) == (True, True, False, False)
    shared.set()
    assert other.is_set()
    assert other.wait(0)
