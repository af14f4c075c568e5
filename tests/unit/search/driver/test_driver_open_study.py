"""What stops one search of several that run together, and what stops all; what trials start from."""

from __future__ import annotations

import contextlib
import logging
import threading
from collections.abc import Callable, Iterator
from dataclasses import replace
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import pytest
from support.studies import study
from support.toys import HYPERPARAMETERS

from loraxs_search.errors import BaseModelError, SearchInterruptedError, StudyError, UsageError
from loraxs_search.log.events import DriverStarted, TrainingEnded
from loraxs_search.records.adapter import HostInfo, StartFrom
from loraxs_search.records.task import BaseModel, Identity
from loraxs_search.search.driver import session as module
from loraxs_search.search.driver.launch import search_study
from loraxs_search.search.driver.session import open_study, settled
from loraxs_search.search.hosts import pool as hosts_pool
from loraxs_search.search_space.load import load_space, parse_space
from loraxs_search.studies.folder import StudyFolder
from loraxs_search.tracking.store import has_waiting


@pytest.fixture
def folder(store_uri):
    return study("s", store_uri)


@contextlib.contextmanager
def opened(
    folder: StudyFolder, monkeypatch: pytest.MonkeyPatch, stop: threading.Event | None = None, **pool: Any
) -> Iterator[Any]:
    """Open a study whose actors need no cluster."""
    actors = SimpleNamespace(
        info=SimpleNamespace(identity=Identity("base", "rows"), pooling="class"),
        prepare_factors=lambda _: None,
        close=lambda: None,
    )

    def made(_info: object, _space: object, _pool: object, check_stop: Callable[[], None], begun: object) -> Any:
        assert begun == folder.identity.read()
        actors.check_stop = check_stop
        return actors

    monkeypatch.setattr(module, "StudyActors", made)
    nothing, space = SimpleNamespace(**pool), load_space("movie_reviews")
    with open_study(folder.info, space, nothing, folder.journal(), stop or threading.Event(), is_locked=False) as study:  # type: ignore[arg-type]
        yield study


def test_a_search_that_loses_its_lease_stops_no_other_one(folder, monkeypatch):
    taken, stop, seen = StudyError("another driver took over"), threading.Event(), list[tuple[bool, bool]]()

    @contextlib.contextmanager
    def lost_at_once(folder: object, lost: Callable[[], None]) -> Iterator[Any]:
        lost()
        yield SimpleNamespace(is_sure=True, lost_to=taken)

    monkeypatch.setattr(module, "mirrored", lost_at_once)
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
    monkeypatch.setattr(module, "mirrored", warning_at_its_end)
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


SPACE = """
task: sst2
base_model: a/b
method: {choice: [lora-xs, lora]}
parameters: {rank: 4, learning_rate: 1.0e-3}
start_from: t
"""
HOST = HostInfo(BaseModel("b", "/b", "b" * 64), (), 0, "", {}, "cpu", "float32", {}, pooling="mean")
START = StartFrom("t:1", "d" * 64, "b" * 64, HYPERPARAMETERS, with_head=True, pooling="mean")


def test_a_study_keeps_the_pooling_and_starts_from_heads_of_the_same_alone(fresh_home, monkeypatch):
    monkeypatch.setattr(module, "trial_shapes", lambda *_: ())
    info = study("s").info
    for given, kept, with_head in (("auto", "mean", True), ("class", "class", False), ("mean", "mean", True)):
        overrides = [f"task.pooling={given}", f"parameters.head={HYPERPARAMETERS.head}"]
        space = parse_space(SPACE, source="s.yaml", folder=Path(), overrides=overrides)
        kept_info, kept_space = settled(replace(info, task=space.task, start_from=START), space, HOST)
        assert (kept_info.task.pooling, kept_space.task.pooling) == (kept, kept)
        assert kept_info.start_from == replace(START, with_head=with_head)


def test_a_start_that_trials_cannot_begin_at_is_refused(fresh_home):
    space, info = (
        parse_space(SPACE, source="s.yaml", folder=Path(), overrides=["parameters.head=full"]),
        study("s").info,
    )
    for error, changes in (
        (BaseModelError, {"base_digest": "c" * 64}),
        (UsageError, {"hyperparameters": replace(HYPERPARAMETERS, head="output")}),
    ):
        with pytest.raises(error):
            settled(replace(info, start_from=replace(START, **changes)), space, HOST)
