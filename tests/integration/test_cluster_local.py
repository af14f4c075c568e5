"""cluster/local: several Ray nodes on this machine, a token between them, a search on all of them, and nothing left."""

from __future__ import annotations

import json
import os
import shutil
import subprocess
import sys
import tempfile
from dataclasses import dataclass
from pathlib import Path

import pytest
from support.pages import README
from support.ports import free_port

import loraxs_search
from loraxs_search.studies.folder import StudyFolder

pytestmark = [pytest.mark.long(part="cluster"), pytest.mark.timeout(400)]
LOCAL = Path(__file__).parents[2] / "cluster" / "local"


@dataclass
class LocalCluster:
    """What start.sh made, and the environment that it printed for its clients."""

    folder: Path
    address: str
    env: dict[str, str]


def running(pid: int) -> bool:
    """Whether a process is there and more than a zombie that nobody has waited for."""
    try:
        return Path(f"/proc/{pid}/cmdline").read_bytes() != b""
    except (FileNotFoundError, ProcessLookupError):
        return False


def as_in_the_readme(verb: str, cluster: LocalCluster, space: Path, name: str) -> list[str]:
    """The line that README.md shows for a verb on a cluster, on this cluster, for another space and study."""
    (line,) = [it.line for it in README.commands("loraxs-search") if it.args[0] == verb and "--address" in it.args]
    replaced = {"loraxs-search": f"{sys.executable} -m loraxs_search", "movie_reviews": str(space), "reviews": name}
    replaced["auto"] = cluster.address
    return " ".join(replaced.get(word, word) for word in line.split()).split()


def run(*command: str | Path, env: dict[str, str], cwd: Path | None = None) -> subprocess.CompletedProcess[str]:
    return subprocess.run(command, env=env, cwd=cwd, capture_output=True, text=True, timeout=240, check=False)


@pytest.fixture(scope="module")
def cluster(search_home, tmp_path_factory):
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


def test_a_cluster_is_checked_and_who_is_not_fit_is_told_before_any_trial(
    cluster, in_search_home, tiny_space, tmp_path
):
    # Sound: every node has a verdict on everything.
    done = run(*as_in_the_readme("doctor", cluster, tiny_space, ""), "--json", env=cluster.env)
    findings = json.loads(done.stdout)
    failed = [finding for finding in findings if finding["verdict"] == "fail"]
    assert (done.returncode == 1) == bool(failed), findings
    assert {finding["check"] for finding in failed} <= {"open files", "storage"}, "what this machine may lack"
    answered = [finding for finding in findings if finding["check"] == "versions"]
    assert [finding["verdict"] for finding in answered] == ["ok"] * 3
    assert [f["value"] for f in findings if f["check"] == "files"] == ["3 there"] * 2, "the workers alone need them"
    assert [f["verdict"] for f in findings if f["check"] == "token"] == ["ok"]

    # A wrong token, and none: said before Ray waits for minutes, with what to do.
    launch = [sys.executable, "-m", "loraxs_search", "launch", tiny_space, "--address", cluster.address]
    for env in ({"RAY_AUTH_TOKEN": "b" * 64}, {"RAY_AUTH_MODE": "disabled"}):
        refused = run(*launch, env=cluster.env | env)
        assert refused.returncode == 1, refused.stderr
        assert "refused the connection" in refused.stderr
        assert "RAY_AUTH_MODE=token" in refused.stderr

    # Other versions here than there.
    other = tmp_path / "other"
    (other / "peft-0.21.99.dist-info").mkdir(parents=True)
    (other / "peft-0.21.99.dist-info" / "METADATA").write_text("Metadata-Version: 2.1\nName: peft\nVersion: 0.21.99\n")
    path = os.pathsep.join([str(other), cluster.env.get("PYTHONPATH", "")])
    refused = run(*launch, "--name", "unlike", env=cluster.env | {"PYTHONPATH": path})
    assert refused.returncode == 1, refused.stderr
    assert refused.stderr.count("the driver has 0.21.99") == 3
    assert refused.stderr.count(": versions: ") == 3, "one for each node"
    assert "--runtime-env" in refused.stderr
    assert not StudyFolder.exists("unlike"), "nothing is written"

    # Our code goes to every node: the driver's own copy is gone from this machine when a node needs it.
    sent = tmp_path / "sent"
    package = Path(loraxs_search.__file__).parent
    shutil.copytree(package, sent / package.name, ignore=shutil.ignore_patterns("__pycache__"))
    env = cluster.env | {"PYTHONPATH": str(sent)}
    code = run(sys.executable, "-c", SHIPPED, cluster.address, sent, env=env, cwd=tmp_path)
    assert "py_modules_files" in code.stdout, code.stdout + code.stderr


SHIPPED = """
import pathlib, sys
from loraxs_search.search.cluster.connection import connected
with connected(sys.argv[1]):
    import ray
    pathlib.Path(sys.argv[2]).rename(sys.argv[2] + "-gone")
    @ray.remote(num_cpus=0)
    def where():
        import loraxs_search
        return loraxs_search.__file__
    print(ray.get(where.remote()))
"""


def test_a_search_on_two_workers_then_nothing_is_left(cluster, in_search_home, tiny_space, agree):
    assert cluster.env["RAY_AUTH_MODE"] == "token"
    token = Path(cluster.env["RAY_AUTH_TOKEN_PATH"])
    assert token.stat().st_mode & 0o077 == 0
    assert len(token.read_text()) == 64
    command = as_in_the_readme("launch", cluster, tiny_space, "local")
    shorter = ["--set", "search.trials=2", "--set", "search.max_steps=4"]
    done = run(*command, *shorter, env=cluster.env)
    assert done.returncode == 0, done.stderr
    assert "1 threads" in done.stderr
    assert "2 slots" in done.stderr, "both workers take trials, the head takes none"
    agree("local", 2)

    pids = [int(path.read_text()) for path in cluster.folder.glob("*.pid")]
    assert len(pids) == 3
    again = run(LOCAL / "start.sh", env=cluster.env)
    assert again.returncode == 1, "a second cluster in the same folder is refused"
    stopped = run(LOCAL / "stop.sh", env=cluster.env)
    assert stopped.returncode == 0, stopped.stderr
    assert not [pid for pid in pids if running(pid)]
    assert not cluster.folder.exists()
