"""The hosts of a search: a lost one is replaced, none trains on other files; no search depends on how busy they are."""

from __future__ import annotations

import logging
import subprocess
import sys
import threading
from collections.abc import Callable
from dataclasses import replace
from types import SimpleNamespace
from typing import Any, cast

import pytest
from ray.exceptions import ActorUnschedulableError, OutOfMemoryError, RayActorError
from support.studies import TASK
from support.toys import HYPERPARAMETERS

from loraxs_search.errors import ClusterError, HomeError, SearchInterruptedError, StudyError, TaskDataError
from loraxs_search.records.adapter import HostInfo, LargestTrial
from loraxs_search.records.search import SearchPlan
from loraxs_search.records.task import BaseModel, BaseModelRef, Identity, Task
from loraxs_search.records.trial import TrialSpec
from loraxs_search.search.cluster.placement import Node
from loraxs_search.search.hosts import pool
from loraxs_search.search.hosts.host_actor import HostActor, HostConfig
from loraxs_search.search.hosts.pool import HostDirectory, HostPool, StudyActors
from loraxs_search.versions import with_python

INFO = HostInfo(BaseModel("b", "/b", "0"), (), 0, "", {}, "cpu", "float32", {}, num_slots=1000)
CONFIG = HostConfig(BaseModelRef("base"), "float32", 64, LargestTrial(8, (("lora-xs", {"rank": 4}),)))


HEAD, SMALL, LARGE, GPUS = Node("head", 0), Node("small", 2), Node("large", 8, address="10.0.0.8"), Node("gpus", 16, 4)


@pytest.fixture
def make(monkeypatch):
    """Makes a pool on these nodes, with the driver on the last, whose directory says which device it was asked for."""
    directory = SimpleNamespace(host_for=SimpleNamespace(remote=lambda node_id, gpu, lost, task: (node_id, gpu)))

    def made(*nodes: Node, **plan: Any) -> HostPool:
        monkeypatch.setattr(pool, "expected_versions", dict)
        monkeypatch.setattr(pool, "living_nodes", lambda: list(nodes))
        here = SimpleNamespace(get_node_id=lambda: nodes[-1].node_id)
        monkeypatch.setattr(pool.ray, "get_runtime_context", lambda: here)
        monkeypatch.setattr(pool, "start_named", lambda *_: ("directory", directory))
        monkeypatch.setattr(pool.ray, "get", lambda answer: answer)
        return HostPool(CONFIG, [SearchPlan(**plan)])

    return made


@pytest.fixture
def hosts(make):
    return make(Node("n", 2))


def test_the_one_host_for_all_is_on_a_living_node_that_fits(make, monkeypatch):
    places = [
        ((SMALL, GPUS, HEAD), "auto", ("gpus", "0")),
        ((SMALL, GPUS, HEAD), "cpu", ("small", None)),
        ((SMALL, LARGE), "auto", ("large", None)),
        ((SMALL, HEAD), "auto", ("small", None)),
    ]
    for nodes, device, place in places:
        assert make(*nodes, device=device).host() == place
    hosts = make(SMALL, HEAD, device="gpu", concurrent=1)
    assert hosts.host() == ("small", None), "the GPUs are still to come"
    for now, place in [([HEAD, LARGE, SMALL], "small"), ([HEAD, LARGE], "large"), ([HEAD, LARGE, GPUS], "gpus")]:
        monkeypatch.setattr(pool, "living_nodes", lambda now=now: now)
        assert hosts.host()[0] == place, "it stays while its node lives, until a GPU comes"  # type: ignore[index]


def test_a_cluster_without_what_trials_ask_for_is_refused_unless_it_is_expected_later(make):
    faults = [
        (HEAD, "auto", "a GPU or a CPU", "search.concurrent"),
        (SMALL, "gpu", "a GPU", "search.device: gpu"),
        (Node("gpus", 0, 4), "cpu", "a CPU", "search.device: cpu"),
    ]
    for node, device, what, hint in faults:
        with pytest.raises(ClusterError, match=f"must have {what} to run") as caught:
            make(HEAD, node, device=device)
        assert hint in str(caught.value.hint)
        make(HEAD, node, device=device, concurrent=1)


@pytest.fixture
def directory(monkeypatch):
    """Makes a directory of hosts of which no process starts; `made` has the options, config and threads of each."""
    made = list[Any]()

    def host(options: Any, config: HostConfig, threads: int) -> Any:
        made.append((options, config, threads))
        loaded = list[Task]()
        return SimpleNamespace(info=SimpleNamespace(remote=loaded.append), loaded=loaded)

    def options(**options: Any) -> Any:
        return SimpleNamespace(remote=lambda config, threads, _: host(options, config, threads))

    monkeypatch.setattr(pool, "RemoteHost", SimpleNamespace(options=options))
    monkeypatch.setattr(pool, "living_nodes", lambda: [HEAD, SMALL, LARGE, GPUS])
    monkeypatch.setattr(pool, "pinned", lambda node_id: {})
    return lambda config: (cast("Any", HostDirectory(config)), made)


def test_a_host_has_the_threads_of_its_node_and_one_for_each_caller(directory, monkeypatch):
    monkeypatch.setattr(pool.os, "cpu_count", lambda: 64)
    for node, gpu, size, expected in (
        ("large", None, 2, (8, 8, 9)),  # four times the smallest node's trials
        ("gpus", "3", 2, (1, 2, 3)),
        ("head", None, 2, (64, 2, 3)),
        ("left", None, 2, (64, 2, 3)),
        ("large", None, "auto", (8, "auto", 1 + 4 * 64)),
        ("small", None, 100_000, (2, 100_000, 1 + pool.MAX_CALLERS)),  # that many threads kept it from starting
    ):
        hosts, made = directory(replace(CONFIG, pack_size=size))
        hosts.host_for(node, gpu, None, None)
        given, config, threads = made[-1]
        assert (threads, config.pack_size, given["max_concurrency"]) == expected
        env = given["runtime_env"]["env_vars"]
        assert (env["OMP_NUM_THREADS"], env.get("CUDA_VISIBLE_DEVICES")) == (str(threads), gpu)


def test_a_pack_larger_than_memory_is_a_smaller_one_with_a_warning(hosts, caplog):
    space: Any = SimpleNamespace(is_packable=True)

    def size(info: HostInfo, space: Any) -> int:
        return hosts.share(info, space, SearchPlan())[0].size

    with caplog.at_level(logging.WARNING):
        assert size(INFO, space) == 64
        assert not caplog.text
        assert size(replace(INFO, num_slots=9), space) == 9
        assert "`search.pack_size` is 64, but memory holds 9 trials" in caplog.text
        unpackable: Any = SimpleNamespace(is_packable=False, methods=["ia3"], search=SearchPlan(pack_size=4))
        assert size(INFO, unpackable) == 1
        assert "`search.pack_size` is 4, but trials of method ia3" in caplog.text


def test_a_study_goes_on_with_the_base_and_the_rows_that_it_began_with_alone(monkeypatch):
    ended = list[Any]()
    monkeypatch.setattr(pool, "start_named", lambda *_: ("snapshots", "store"))
    monkeypatch.setattr(pool, "kill", ended.append)
    known: Any = SimpleNamespace(name="s", task=TASK, ask=lambda *_: INFO)
    for begun in (replace(INFO.identity, data_fingerprint="rows"), replace(INFO.identity, base_digest="weights")):
        with pytest.raises(StudyError, match=r"must go on with .* not (rows|weights)"):
            StudyActors(known, known, known, bool, begun)
    assert ended == ["store", "store"]


def test_a_lost_host_is_ended_before_another_takes_its_device(directory, monkeypatch):
    """It may be one that a cut network keeps from its caller, with the base in the device's memory."""
    killed, (hosts, _) = list[object](), directory(CONFIG)
    monkeypatch.setattr(pool, "kill", killed.append)
    first = hosts.host_for("node", None, None, TASK)
    assert hosts.host_for("node", None, object(), None) is first
    assert (killed, first.loaded) == ([], [TASK])
    second = hosts.host_for("node", None, first, None)
    assert second is not first
    assert killed == [first]
    assert hosts.host_for("node", None, first, None) is second, "another trial has lost the same one"
    assert (killed, second.loaded) == ([first], [])


# ---- asking one host -------------------------------------------------------------------------------------------------
@pytest.fixture
def ask(hosts, monkeypatch):
    """Asks hosts that are lost in these ways, one after the other, before one answers; returns also who was lost."""

    def get(answer: Any) -> Any:
        if isinstance(answer, Exception):
            raise answer
        return answer

    def asked(*losses: Exception, look: Callable[[], None] = bool, **begun: Any) -> tuple[Any, list[Any]]:
        found = list[Any]()

        def host(lost: Any = None) -> Any:
            found.append(lost)
            return [*losses, "answer"][len(found) - 1]

        monkeypatch.setattr(hosts, "host", host)
        return hosts.ask(lambda host: host, look, **begun), found

    monkeypatch.setattr(pool.ray, "get", get)
    monkeypatch.setattr(pool.ray, "wait", lambda asked, **_: (asked, []))
    return asked


def test_a_lost_host_is_replaced_and_the_question_asked_again_unless_the_search_is_stopped(ask, monkeypatch):
    losses = [RayActorError(), OutOfMemoryError("low"), ActorUnschedulableError("its node is gone")]
    assert ask(*losses) == ("answer", [None, *losses])
    with pytest.raises(RayActorError):
        ask(*losses, RayActorError())
    for begun, answer in (("begun", "begun"), (losses[0], "answer")):
        assert ask(begun=begun)[0] == answer, "what a host was asked before is waited for first"
    looks = iter([None, None])

    def look() -> None:
        if next(looks, "stopped") == "stopped":
            raise SearchInterruptedError("stopped")

    monkeypatch.setattr(pool.ray, "wait", lambda asked, **_: ([], asked))  # it never answers
    with pytest.raises(SearchInterruptedError):
        ask(look=look)


# ---- asking all hosts ------------------------------------------------------------------------------------------------
def test_hosts_that_hold_a_silent_trial_or_say_nothing_are_ended(hosts, monkeypatch):
    held = {"others": ["s/00001", "t/00000"], "holds": ["s/00000"], "silent": None, "idle": []}
    asked: Any = [SimpleNamespace(name=name, steps=SimpleNamespace(remote=lambda own=name: own)) for name in held]
    ended = list[Any]()
    monkeypatch.setattr(pool.ray, "wait", lambda asked, **_: ([name for name in asked if held[name] is not None], []))
    monkeypatch.setattr(pool.ray, "get", lambda name: dict.fromkeys(held[name], 3))
    monkeypatch.setattr(pool, "kill", ended.append)
    monkeypatch.setattr(hosts, "hosts", lambda: asked)
    hosts.end_silent_hosts("s", ["00000"])
    assert [host.name for host in ended] == ["holds", "silent"]


def test_hosts_are_watched_until_the_end_whatever_goes_wrong(hosts, monkeypatch):
    """Steps are asked of all, and each is asked to give up trials, where there are some."""
    answers = iter([{"s/a": 1, "t/a": 9}, OSError("lost"), {}, {"s/a": 2}])
    recorded, enough, cancelled = list[Any](), threading.Event(), list[Any]()

    def steps() -> Any:
        answer = next(answers, None)
        if isinstance(answer, Exception):
            raise answer
        if answer is None:
            enough.set()
        return answer or {}

    host: Any = SimpleNamespace(steps=SimpleNamespace(remote=steps), cancel=SimpleNamespace(remote=cancelled.append))
    monkeypatch.setattr(pool, "_CANCEL_EVERY_S", 0.0)
    monkeypatch.setattr(pool.ray, "wait", lambda asked, **_: (asked, []))
    monkeypatch.setattr(hosts, "hosts", lambda: [host])
    unwanted = iter([[], ["00000", "00001"]])
    with hosts.watched("s", recorded.append, lambda: next(unwanted, [])):
        assert enough.wait(60)
    assert recorded == [{"a": 1}, {"a": 2}]
    assert cancelled == [["s/00000", "s/00001"]]


# A host one of whose threads has no memory to begin.
THREADLESS = """
import threading
from loraxs_search.search.hosts import host_actor

host_actor.UNBORN_S = 0.1
host_actor.HostActor(None, 1, "10.0.0.7")

class Thread(threading.Thread):
    def _bootstrap_inner(self):
        raise MemoryError

Thread(daemon=True).start()
"""
OTHER = replace(TASK, name="other")


def test_a_host_one_of_whose_threads_never_begins_ends_where_others_would_wait_for_ever():
    done = subprocess.run([sys.executable, "-c", THREADLESS], capture_output=True, text=True, timeout=120, check=False)
    assert done.returncode == 1
    assert "MemoryError" in done.stderr, "of the thread; nobody has caught it"


# ---- identity --------------------------------------------------------------------------------------------------------
SPEC = TrialSpec("00000", {}, HYPERPARAMETERS)


class Host:
    """Trains on the weights and on the rows, by task, that it was made with."""

    def __init__(self, base: str, rows: dict[str, str | None]) -> None:
        self._base, self._rows = base, rows

    def info(self, task: Task) -> HostInfo:
        if (rows := self._rows[task.name]) is None:
            raise TaskDataError(f"{task.name}.csv must be there.", hint="put it there")
        return replace(INFO, base=BaseModel("b", "/b", self._base), data_fingerprint=rows)

    def answered(self, *given: Any) -> tuple[str, str | None]:
        return self._base, self._rows[given[-1].name]

    advance = answer_without_adapter = answered


def actor(
    base: str = "base", t: str | None = "rows of t", other: str | None = "rows of other", **versions: str
) -> HostActor:
    """Return a host's process on a node with these files, of a driver with these versions."""
    config = replace(CONFIG, make=lambda *_: Host(base, {"t": t, "other": other}), versions=with_python() | versions)
    return HostActor(config, 1, "10.0.0.7")


def advance(host: HostActor, spec: TrialSpec, task: Task) -> Any:
    return host.serve(lambda host: host.advance(spec, 4, None, task), task, spec, None)


def answer_without_adapter(host: HostActor, spec: TrialSpec, task: Task) -> Any:
    return host.serve(lambda host: host.answer_without_adapter("test", range(3), 0, task), task, None, spec.identity)


def begun_with(base: str, rows: str) -> TrialSpec:
    return replace(SPEC, identity=Identity(base, rows))


def test_a_node_with_other_files_than_the_study_began_with_is_refused_with_both_values():
    """Trials, refits, confirmations and the untouched base go through these calls."""
    spec, edited = begun_with("base", "rows of t"), "data fingerprint edited, not rows of t"
    for call, files, differs in (
        (advance, {"t": "edited"}, edited),
        (advance, {"base": "other weights"}, "weight digest other weights, not base"),
        (answer_without_adapter, {"t": "edited"}, edited),
    ):
        assert call(actor(), spec, TASK) == ("base", "rows of t")
        with pytest.raises(ClusterError, match=rf"but 10\.0\.0\.7 is not: it has {differs}\.") as caught:
            call(actor(**files), spec, TASK)
        assert "launch a new study" in (caught.value.hint or "")


def test_a_node_without_the_rows_is_at_fault_to_its_trials():
    with pytest.raises(ClusterError, match=r"10\.0\.0\.7 .*t\.csv") as caught:
        advance(actor(t=None), SPEC, TASK)
    assert caught.value.hint == "put it there"
    with pytest.raises(TaskDataError):  # asked before any trial, it is the space's
        actor(t=None).info(TASK)
    host = actor(other=None)
    assert advance(host, SPEC, TASK) == ("base", "rows of t")
    with pytest.raises(ClusterError, match=r"10\.0\.0\.7 .*other\.csv"):
        advance(host, SPEC, OTHER)


def test_studies_that_share_a_host_are_each_held_to_their_own_rows():
    host = actor()
    assert [host.info(task).data_fingerprint for task in (TASK, OTHER)] == ["rows of t", "rows of other"]
    assert advance(host, begun_with("base", "rows of other"), OTHER) == ("base", "rows of other")
    with pytest.raises(ClusterError, match="data fingerprint rows of t, not rows of other"):
        advance(host, begun_with("base", "rows of other"), TASK)


def test_another_version_is_refused_with_node_package_and_both():
    actor(mlflow="2.0.0").info(TASK)  # only the driver needs MLflow
    with pytest.raises(ClusterError, match=r"10\.0\.0\.7 has peft .*, the driver has 0\.0\.1\."):
        actor(peft="0.0.1").info(TASK)


def test_a_disk_that_is_full_is_named_with_its_node():
    def full(_: object) -> None:
        raise HomeError("No space left.", hint="free some space")

    with pytest.raises(HomeError, match=r"On node 10\.0\.0\.7: No space left") as caught:
        actor().serve(full, TASK, SPEC, None)
    assert caught.value.hint == "free some space"
