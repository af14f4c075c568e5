"""Several Ray nodes on this machine: cluster/local, a job, packages that are installed, and nodes that come and go."""

from __future__ import annotations

import importlib.util
import json
import os
import re
import secrets
import shlex
import shutil
import subprocess
import sys
import tempfile
import threading
import time
from collections import Counter
from collections.abc import Callable
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass
from pathlib import Path

import pytest
from faults.nodes import Node, ray_cluster
from faults.world import World, titled, tree
from support.pages import CLUSTER, README, ROOT
from support.shell import free_port, until

import loraxs_search
from loraxs_search.log.events import SearchStarted, ShownEvent, TrialEnded, TrialReported, TrialStarted
from loraxs_search.log.study_log import SearchView
from loraxs_search.records.trial import TrialState
from loraxs_search.search.cluster.connection import _RAY_ENVIRONMENT
from loraxs_search.search.driver.launch import launch
from loraxs_search.studies.folder import StudyFolder

pytestmark = [
    pytest.mark.long(part="cluster"),
    pytest.mark.timeout(400),
    pytest.mark.filterwarnings("ignore::ResourceWarning", "ignore::DeprecationWarning"),
]
LOCAL = ROOT / "cluster" / "local"
SHORT = ("--set", "search.trials=2", "--set", "search.max_steps=4")
# What a node sees of a package, with a runtime environment or ours.
WHERE = """
import pathlib, sys
from loraxs_search.search.cluster.connection import connected
address, package, env, sent = sys.argv[1:]
with connected(address, runtime_env=env or None):
    import ray
    if sent:
        pathlib.Path(sent).rename(sent + "-gone")
    @ray.remote(num_cpus=0)
    def where():
        import importlib
        return importlib.import_module(package).__file__
    print(ray.get(where.remote()))
"""


@dataclass
class LocalCluster:
    """What start.sh made, and the environment that it printed for its clients."""

    folder: Path
    address: str
    env: dict[str, str]


def as_in_the_readme(verb: str, cluster: LocalCluster, space: Path, name: str) -> list[str]:
    """The line that README.md shows for a verb on a cluster, on this cluster, for another space and study."""
    (line,) = [it.line for it in README.commands("loraxs-search") if it.args[0] == verb and "--address" in it.args]
    replaced = {"loraxs-search": f"{sys.executable} -m loraxs_search", "movie_reviews": str(space), "reviews": name}
    replaced["auto"] = cluster.address
    return " ".join(replaced.get(word, word) for word in line.split()).split()


def run(*command: str | Path, env: dict[str, str], cwd: Path | None = None) -> subprocess.CompletedProcess[str]:
    return subprocess.run(command, env=env, cwd=cwd, capture_output=True, text=True, timeout=240, check=False)


# ---- cluster/local: a token between the nodes, a search on all of them, and nothing left -----------------------------
@pytest.fixture(scope="module")
def local(search_home, tmp_path_factory):
    """Two workers with one CPU each and a home of their own; stopped at the end if the last test has not."""
    port = free_port()
    folder = Path(tempfile.mkdtemp(prefix="lx-", dir="/tmp")) / "c"  # short, for Ray's sockets
    path = f"{Path(sys.executable).parent}:{os.environ['PATH']}"
    env = {**os.environ, "PATH": path, "PORT": str(port), "LORAXS_CLUSTER": str(folder)}
    started = run(LOCAL / "start.sh", "2", "1", env=env | {"LORAXS_HOME": str(tmp_path_factory.mktemp("nodes"))})
    env["LORAXS_HOME"] = str(search_home)
    try:
        assert started.returncode == 0, started.stderr
        exported = dict(word.split("=", 1) for word in started.stdout.removeprefix("export ").split())
        yield LocalCluster(folder, f"127.0.0.1:{port}", env | exported)
    finally:
        if folder.exists():
            run(LOCAL / "stop.sh", env=env)
        folder.parent.rmdir()


def test_a_cluster_is_checked_and_who_is_not_fit_is_told_before_any_trial(local, in_search_home, tiny_space, tmp_path):
    # Sound: every node has a verdict on everything.
    done = run(*as_in_the_readme("doctor", local, tiny_space, ""), "--json", env=local.env)
    findings = json.loads(done.stdout)
    failed = {finding["check"] for finding in findings if finding["verdict"] == "fail"}
    assert (done.returncode == 1) == bool(failed), findings
    assert failed <= {"open files", "storage"}, "what this machine may lack"
    assert [f["verdict"] for f in findings if f["check"] == "versions"] == ["ok"] * 3
    assert [f["value"] for f in findings if f["check"] == "files"] == ["3 there"] * 2, "the workers alone need them"
    assert [f["verdict"] for f in findings if f["check"] == "token"] == ["ok"]

    # A wrong token, and none: said before Ray waits for minutes, with what to do.
    command = [sys.executable, "-m", "loraxs_search", "launch", tiny_space, "--address", local.address]
    for env in ({"RAY_AUTH_TOKEN": "b" * 64}, {"RAY_AUTH_MODE": "disabled"}):
        refused = run(*command, env=local.env | env)
        assert refused.returncode == 1, refused.stderr
        assert "refused the connection" in refused.stderr
        assert "RAY_AUTH_MODE=token" in refused.stderr

    # Other versions here than there.
    other = tmp_path / "other"
    (other / "peft-0.21.99.dist-info").mkdir(parents=True)
    (other / "peft-0.21.99.dist-info" / "METADATA").write_text("Metadata-Version: 2.1\nName: peft\nVersion: 0.21.99\n")
    path = os.pathsep.join([str(other), local.env.get("PYTHONPATH", "")])
    refused = run(*command, "--name", "unlike", env=local.env | {"PYTHONPATH": path})
    assert refused.returncode == 1, refused.stderr
    assert refused.stderr.count("the driver has 0.21.99") == 3
    assert refused.stderr.count(": versions: ") == 3, "one for each node"
    assert "--runtime-env" in refused.stderr
    assert not StudyFolder.exists("unlike"), "nothing is written"

    # Our code goes to every node: the driver's own copy is gone from this machine when a node needs it.
    sent, package = tmp_path / "sent", Path(loraxs_search.__file__).parent
    shutil.copytree(package, sent / package.name, ignore=shutil.ignore_patterns("__pycache__"))
    env = local.env | {"PYTHONPATH": str(sent)}
    code = run(sys.executable, "-c", WHERE, local.address, "loraxs_search", "", sent, env=env, cwd=tmp_path)
    assert "py_modules_files" in code.stdout, code.stdout + code.stderr


def test_a_search_on_two_workers_then_nothing_is_left(local, in_search_home, tiny_space, agree):
    assert local.env["RAY_AUTH_MODE"] == "token"
    token = Path(local.env["RAY_AUTH_TOKEN_PATH"])
    assert (token.stat().st_mode & 0o077, len(token.read_text())) == (0, 64)
    done = run(*as_in_the_readme("launch", local, tiny_space, "local"), *SHORT, env=local.env)
    assert done.returncode == 0, done.stderr
    assert "1 threads" in done.stderr
    assert "2 slots" in done.stderr, "both workers take trials, the head takes none"
    agree("local", 2)

    pids = [int(path.read_text()) for path in local.folder.glob("*.pid")]
    assert len(pids) == 3
    again = run(LOCAL / "start.sh", env=local.env)
    assert again.returncode == 1, "a second cluster in the same folder is refused"
    stopped = run(LOCAL / "stop.sh", env=local.env)
    assert stopped.returncode == 0, stopped.stderr
    assert not any(titled(tree(pid), "ray") for pid in pids)
    assert not local.folder.exists()


# ---- `ray job submit`, and `--runtime-env` with `pip` or `uv`, from a real index -------------------------------------
def test_the_line_for_a_job_searches_on_the_cluster(in_search_home, full_ray, tiny_space, agree, monkeypatch):
    """It stands in cluster/README.md: run as it stands on a cluster with a dashboard and a token."""
    port, agents = free_port(), free_port()
    options = ("--num-cpus=1", f"--dashboard-port={port}", f"--dashboard-agent-listen-port={agents}")
    path = f"{full_ray.parent}:{Path(sys.executable).parent}:{os.environ['PATH']}"
    monkeypatch.setenv("PATH", path)  # of the head, and so of its jobs
    (line,) = re.findall(r"`(ray job submit -- .*?)`", CLUSTER.text)
    command = shlex.split(f"{line.replace('SPACE', str(tiny_space))} --name job {' '.join(SHORT)}")
    with ray_cluster([Node()], {0: in_search_home}, head=options, ray=full_ray) as made:
        env = {**os.environ, **made.env, "RAY_API_SERVER_ADDRESS": f"http://127.0.0.1:{port}"}
        done = run(*command, env=env)
        refused = run(*command, env=env | {"RAY_AUTH_TOKEN": secrets.token_hex(32)})
    assert done.returncode == 0, done.stdout + done.stderr
    assert "next: loraxs-search promote job" in done.stdout, "the job's own talk is shown where it was submitted"
    agree("job", 2)
    assert refused.returncode != 0
    assert "token" in refused.stderr


def test_a_search_runs_where_its_packages_are_installed(
    full_ray, in_search_home, tiny_space, tmp_path, tmp_path_factory, agree
):
    package, file = "cowsay", tmp_path / "env.yaml"  # small, pure Python, and nobody's dependency
    assert importlib.util.find_spec(package) is None
    homes = {number: tmp_path_factory.mktemp("node-home") for number in range(2)}
    with ray_cluster([Node(), Node()], homes, ray=full_ray) as cluster:
        world = World(tmp_path, in_search_home, env=cluster.env)
        options = ("--address", cluster.address, "--runtime-env", str(file), *SHORT)
        for installer in ("pip", "uv"):
            file.write_text(f"{installer}: [{package}]\n")
            talk = world.finish(world.launch(f"by-{installer}", *options, space=tiny_space))
            assert "makes the environment on every node" in talk
            agree(f"by-{installer}", 2)
            env = {**os.environ, **cluster.env}
            place = run(sys.executable, "-c", WHERE, cluster.address, package, file, "", env=env)
            assert f"/runtime_resources/{installer}/" in place.stdout, place.stderr
        file.write_text("uv: [loraxs-search-has-no-such-package==1.0]\n")
        code, talk = world.end(world.launch("absent", *options, space=tiny_space))
    assert code == 1, talk
    assert talk.count(": environment: ") == 2, "one for each node"
    assert "loraxs-search-has-no-such-package" in talk
    assert "put right what --runtime-env asks for" in talk
    assert not StudyFolder.exists("absent"), "nothing is written"


# ---- nodes that come and go during a search, with GPUs that are only numbers -----------------------------------------
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


class Search(SearchView):
    """A search in a thread of its own, and what a test needs to have seen of it."""

    def __init__(self, space: Path, name: str, address: str, *overrides: str) -> None:
        self.reported, self.running, self.most_at_once, self.num_slots = threading.Event(), set[str](), 0, 0
        how = {"name": name, "address": address, "overrides": overrides, "view": self}
        self.result = ThreadPoolExecutor(1).submit(launch, str(space), **how)

    def happened(self, event: ShownEvent) -> None:
        match event:
            case SearchStarted():
                self.num_slots = event.num_slots
            case TrialStarted():
                self.running.add(event.trial_id)
            case TrialReported():
                self.reported.set()
            case TrialEnded():
                self.running.discard(event.trial_id)
        self.most_at_once = max(self.most_at_once, len(self.running))

    def await_that(self, what: Callable[[], bool]) -> None:
        until(lambda: what() or self.result.done(), timeout_s=90.0)
        assert not self.result.done(), self.result


def hosts() -> Counter[str]:
    """Living hosts by node id."""
    import ray

    found = ray._private.state.actors().values()
    alive = [actor for actor in found if actor["State"] == "ALIVE" and "HostActor" in actor["ActorClassName"]]
    return Counter(actor["Address"]["NodeID"] for actor in alive)


def test_a_node_that_joins_is_used_and_the_one_that_leaves_loses_nothing(cluster, tiny_space, agree):
    first = cluster.add_node(num_cpus=1, object_store_memory=100_000_000)
    plan = ("search.trials=9", "search.scheduler=none", "search.max_steps=240", "search.report_every=10")
    search = Search(tiny_space, "comes-and-goes", cluster.address, *plan, "search.pack_size=1")
    search.await_that(search.reported.is_set)
    assert search.num_slots == 1
    assert hosts() == {first.node_id: 1}, "the head offers nothing, and is spared"
    larger = cluster.add_node(num_cpus=2, object_store_memory=100_000_000)
    search.await_that(lambda: larger.node_id in hosts())
    search.await_that(lambda: len(search.running) == 3)
    cluster.remove_node(first, allow_graceful=False)  # where facts and factors came from, and where scores would
    result = search.result.result(200)
    assert {trial.state for trial in result.trials} == {TrialState.COMPLETE}
    agree("comes-and-goes", 9)
    assert search.most_at_once == 3
    assert len([c for c in result.candidates if "." not in c.trial_id]) == 2


def test_a_search_begins_without_workers_and_takes_one_host_for_each_gpu_that_comes(cluster, tiny_space, agree):
    plan = ("search.trials=4", "search.max_steps=4", "search.pack_size=2", "search.device=gpu", "search.concurrent=4")
    search = Search(tiny_space, "from-zero", cluster.address, *plan)
    search.await_that(lambda: len(search.running) == 4)
    time.sleep(2)
    assert not search.reported.is_set(), "all four wait, for an autoscaler to see"
    only_cpus = cluster.add_node(num_cpus=2, object_store_memory=100_000_000)
    gpus = cluster.add_node(num_cpus=2, num_gpus=2, object_store_memory=100_000_000)
    search.await_that(lambda: hosts()[gpus.node_id] == 2)
    assert only_cpus.node_id not in hosts()
    search.result.result(200)
    agree("from-zero", 4)
