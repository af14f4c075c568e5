"""The process that keeps a study's files, on a real Ray."""

from __future__ import annotations

import os
import signal
from typing import Any, cast

import pytest
import ray
from support.studies import state, study

from loraxs_search.search.hosts.client import find_keeper, kill
from loraxs_search.search.hosts.study_actors import start_keeper

pytestmark = [pytest.mark.slow, pytest.mark.filterwarnings("ignore::ResourceWarning", "ignore::DeprecationWarning")]


def pid_of(keeper: Any) -> int:
    return cast("int", ray.get(keeper.__ray_call__.remote(lambda _: os.getpid())))


def test_a_keeper_that_is_lost_is_started_anew_and_no_trial_sees_it(ray_here: None) -> None:
    folder = study("kept-on")
    name, keeper = start_keeper("kept-on")
    try:
        ray.get(keeper.write_snapshot.remote("00000", state("00000", "first")))
        first = pid_of(keeper)
        os.kill(first, signal.SIGKILL)
        ray.get(keeper.write_snapshot.remote("00000", state("00000", "second")))
        assert ray.get(find_keeper(name).read_snapshot.remote("00000")) == state("00000", "second")
        assert folder.read_snapshot("00000") == state("00000", "second")
        assert pid_of(keeper) != first
    finally:
        kill(keeper)
