"""Nodes that come and go during a search: real Ray nodes on this machine, with GPUs that are only numbers."""

from __future__ import annotations

import os
import shutil
import tempfile
import threading
import time
from collections import Counter
from collections.abc import Callable
from pathlib import Path

import pytest
from support.shell import until

from loraxs_search.log.events import SearchStarted, ShownEvent, TrialEnded, TrialReported, TrialStarted
from loraxs_search.log.study_log import SearchView
from loraxs_search.records.trial import TrialState
from loraxs_search.search.cluster.connection import _RAY_ENVIRONMENT
from loraxs_search.search.driver.launch import launch
from loraxs_search.search.driver.result import SearchResult

pytestmark = [
    pytest.mark.long(part="cluster"),
    pytest.mark.timeout(300),
    pytest.mark.filterwarnings("ignore::ResourceWarning", "ignore::DeprecationWarning"),
]


@pytest.fixture
def cluster(in_search_home, monkeypatch):
    """A head that offers trials nothing; the test adds and removes nodes."""
    for name, value in _RAY_ENVIRONMENT.items():
        monkeypatch.setenv(name, os.environ.get(name, value))
    from ray.cluster_utils import Cluster

    folder = tempfile.mkdtemp(prefix="lx", dir="/tmp")  # short, for Ray's sockets
    head = {"num_cpus": 0, "object_store_memory": 100_000_000, "include_dashboard": False, "temp_dir": folder}
    made = Cluster(initialize_head=True, head_node_args=head)
    try:
        yield made
    finally:
        made.shutdown()
        shutil.rmtree(folder, ignore_errors=True)


class Watching(SearchView):
    """Lets a test wait for what it needs to have seen."""

    def __init__(self) -> None:
        self.reported = threading.Event()
        self.running: set[str] = set()
        self.most_at_once = 0
        self.facts: SearchStarted | None = None

    def happened(self, event: ShownEvent) -> None:
        match event:
            case SearchStarted():
                self.facts = event
            case TrialStarted():
                self.running.add(event.trial_id)
            case TrialReported():
                self.reported.set()
            case TrialEnded():
                self.running.discard(event.trial_id)
        self.most_at_once = max(self.most_at_once, len(self.running))


class Search:
    """A search in a thread of its own."""

    def __init__(self, space: Path, name: str, address: str, *overrides: str) -> None:
        self.view = Watching()
        self._results: list[SearchResult | BaseException] = []
        self._thread = threading.Thread(target=self._run, args=(str(space), name, address, overrides))
        self._thread.start()

    def _run(self, space: str, name: str, address: str, overrides: tuple[str, ...]) -> None:
        try:
            self._results.append(launch(space, name=name, address=address, overrides=overrides, view=self.view))
        except BaseException as error:  # noqa: BLE001  # told to the test
            self._results.append(error)

    def await_that(self, what: Callable[[], bool]) -> None:
        until(lambda: what() or not self._thread.is_alive(), timeout_s=90.0)
        assert self._thread.is_alive(), self._results

    def result(self) -> SearchResult:
        self._thread.join(200)
        (result,) = self._results
        if isinstance(result, BaseException):
            raise result
        return result


def hosts() -> Counter[str]:
    """Living hosts by node id."""
    import ray

    found = ray._private.state.actors().values()
    alive = [actor for actor in found if actor["State"] == "ALIVE" and "HostActor" in actor["ActorClassName"]]
    return Counter(actor["Address"]["NodeID"] for actor in alive)


def test_a_node_that_joins_is_used_and_the_one_that_leaves_loses_nothing(cluster, tiny_space, agree):
    first = cluster.add_node(num_cpus=1, object_store_memory=100_000_000)
    plan = ("search.trials=9", "search.scheduler=none", "search.max_steps=240", "search.report_every=10")
    plan += ("search.pack_size=1",)
    search = Search(tiny_space, "comes-and-goes", cluster.address, *plan)
    search.await_that(search.view.reported.is_set)
    assert search.view.facts is not None
    assert search.view.facts.num_slots == 1
    assert hosts() == {first.node_id: 1}, "the head offers nothing, and is spared"
    larger = cluster.add_node(num_cpus=2, object_store_memory=100_000_000)
    search.await_that(lambda: larger.node_id in hosts())
    search.await_that(lambda: len(search.view.running) == 3)
    cluster.remove_node(first, allow_graceful=False)  # where facts and factors came from, and where scores would
    result = search.result()
    assert {trial.state for trial in result.trials} == {TrialState.COMPLETE}
    agree("comes-and-goes", 9)
    assert search.view.most_at_once == 3
    assert len([c for c in result.candidates if "." not in c.trial_id]) == 2


def test_a_search_begins_without_workers_and_takes_one_host_for_each_gpu_that_comes(cluster, tiny_space, agree):
    plan = ("search.trials=4", "search.max_steps=4", "search.pack_size=2")
    search = Search(tiny_space, "from-zero", cluster.address, *plan, "search.device=gpu", "search.concurrent=4")
    search.await_that(lambda: len(search.view.running) == 4)
    time.sleep(2)
    assert not search.view.reported.is_set(), "all four wait, for an autoscaler to see"
    only_cpus = cluster.add_node(num_cpus=2, object_store_memory=100_000_000)
    gpus = cluster.add_node(num_cpus=2, num_gpus=2, object_store_memory=100_000_000)
    search.await_that(lambda: hosts()[gpus.node_id] == 2)
    assert only_cpus.node_id not in hosts()
    search.result()
    agree("from-zero", 4)
