"""The process that keeps a study's files, on a real Ray."""

from __future__ import annotations

import os
import signal
from typing import Any, cast

import pytest
import ray
from support.studies import state, study

from loraxs_search.search.hosts.client import find_snapshot_store, kill
from loraxs_search.search.hosts.study_actors import start_snapshot_store

pytestmark = [pytest.mark.slow, pytest.mark.filterwarnings("ignore::ResourceWarning", "ignore::DeprecationWarning")]


def pid_of(snapshot_store: Any) -> int:
    return cast("int", ray.get(snapshot_store.__ray_call__.remote(lambda _: os.getpid())))


def test_a_snapshot_store_that_is_lost_is_started_anew_and_no_trial_sees_it(ray_here: None) -> None:
    folder = study("kept-on")
    name, snapshot_store = start_snapshot_store("kept-on")
    try:
        ray.get(snapshot_store.write_snapshot.remote("00000", state("00000", "first")))
        first = pid_of(snapshot_store)
        os.kill(first, signal.SIGKILL)
        ray.get(snapshot_store.write_snapshot.remote("00000", state("00000", "second")))
        assert ray.get(find_snapshot_store(name).read_snapshot.remote("00000")) == state("00000", "second")
        assert folder.read_snapshot("00000") == state("00000", "second")
        assert pid_of(snapshot_store) != first
    finally:
        kill(snapshot_store)
