"""The process that keeps a study's files, on a real Ray."""

from __future__ import annotations

import os
import signal
from typing import Any, cast

import pytest
import ray
from support.studies import state, study

from loraxs_search.home import home
from loraxs_search.search.cluster.connection import NAMESPACE, start_named
from loraxs_search.search.hosts.answers import kill
from loraxs_search.search.hosts.pool import SnapshotStore

pytestmark = [pytest.mark.slow, pytest.mark.filterwarnings("ignore::ResourceWarning", "ignore::DeprecationWarning")]


def pid_of(snapshot_store: Any) -> int:
    return cast("int", ray.get(snapshot_store.__ray_call__.remote(lambda _: os.getpid())))


def test_a_snapshot_store_that_is_lost_is_started_anew_and_no_trial_sees_it(ray_here):
    folder = study("kept-on")
    name, snapshot_store = start_named(SnapshotStore, "kept-on", str(home()))
    try:
        ray.get(snapshot_store.write_snapshot.remote("00000", state("00000", "first")))
        first = pid_of(snapshot_store)
        os.kill(first, signal.SIGKILL)
        ray.get(snapshot_store.write_snapshot.remote("00000", state("00000", "second")))
        assert ray.get(ray.get_actor(name, NAMESPACE).read_snapshot.remote("00000")) == state("00000", "second")
        assert folder.snapshots.read("00000") == state("00000", "second")
        assert pid_of(snapshot_store) != first
    finally:
        kill(snapshot_store)
