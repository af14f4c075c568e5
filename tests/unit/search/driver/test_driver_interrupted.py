"""What stops one search of several that run together, and what stops all."""

from __future__ import annotations

import contextlib
import threading
from collections.abc import Callable, Iterator
from typing import Any

import pytest
from support.studies import study

from loraxs_search.errors import StudyError
from loraxs_search.search.driver import driver as drivers
from loraxs_search.search.driver.interrupted import OwnStop
from loraxs_search.search.ledger import SilentView


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


def test_what_stops_all_stops_each() -> None:
    shared = threading.Event()
    one, other = OwnStop(shared), OwnStop(shared)
    one.set()
    assert (one.is_set(), one.wait(0), other.is_set(), other.wait(0)) == (True, True, False, False)
    shared.set()
    assert other.is_set()
    assert other.wait(0)
