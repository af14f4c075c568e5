"""From no workers at all: Ray's own autoscaler starts real nodes on this machine for the trials that wait."""

from __future__ import annotations

import contextlib
import json
import os
import shutil
import signal
import subprocess
import sys
import tempfile
import time
from pathlib import Path

import pytest
from support.ports import free_port

from loraxs_search.search.cluster.connection import _RAY_ENVIRONMENT

pytestmark = [pytest.mark.long(part="cluster"), pytest.mark.timeout(300)]


def config(port: int) -> dict[str, object]:
    """What `ray up` would hand its head, with a provider whose machines are processes of this one."""
    worker = {"CPU": 1, "object_store_memory": 100_000_000}
    return {
        "cluster_name": "fake",
        "max_workers": 2,
        "upscaling_speed": 10.0,
        "idle_timeout_minutes": 5,
        "provider": {"type": "fake_multinode", "gcs_address": f"127.0.0.1:{port}"},
        "available_node_types": {
            "ray.head.default": {"resources": {"CPU": 0}, "node_config": {}, "max_workers": 0},
            "worker": {"resources": worker, "node_config": {}, "min_workers": 0, "max_workers": 2},
        },
        "head_node_type": "ray.head.default",
        "auth": {},
        "docker": {},
        "initialization_commands": [],
        "setup_commands": [],
        "head_setup_commands": [],
        "worker_setup_commands": [],
        "head_start_ray_commands": [],
        "worker_start_ray_commands": [],
        "file_mounts": {},
        "cluster_synced_files": [],
        "file_mounts_sync_continuously": False,
        "rsync_exclude": [],
        "rsync_filter": [],
    }


@pytest.fixture
def address(in_search_home, monkeypatch):
    """A head with an autoscaler and no worker; all processes of its folder are ended at the end."""
    monkeypatch.setenv("RAY_AUTH_MODE", "token")  # for its clients too
    monkeypatch.setenv("RAY_AUTH_TOKEN", "a" * 64)
    folder = Path(tempfile.mkdtemp(prefix="lx", dir="/tmp"))  # short, for Ray's sockets
    port = free_port()
    (folder / "autoscaling.yaml").write_text(json.dumps(config(port)))
    ray = Path(sys.executable).parent / "ray"
    options = ["--head", "--block", "--num-cpus=0", "--include-dashboard=false", "--node-ip-address=127.0.0.1"]
    options += [f"--port={port}", f"--temp-dir={folder}/r", "--object-store-memory=100000000"]
    options += ["--min-worker-port=0", "--max-worker-port=0", f"--autoscaling-config={folder}/autoscaling.yaml"]
    env = os.environ | _RAY_ENVIRONMENT | {"RAY_FAKE_CLUSTER": "1", "AUTOSCALER_UPDATE_INTERVAL_S": "1"}
    log = folder / "head.log"
    with log.open("wb") as out:
        head = subprocess.Popen([ray, "start", *options], env=env, stdout=out, stderr=out, start_new_session=True)
    try:
        deadline = time.monotonic() + 90
        while "Ray runtime started" not in log.read_text():
            assert head.poll() is None, log.read_text()
            assert time.monotonic() < deadline
            time.sleep(0.3)
        yield f"127.0.0.1:{port}"
    finally:
        head.terminate()
        head.wait(30)
        _end_all(str(folder))
        shutil.rmtree(folder, ignore_errors=True)


def _end_all(folder: str) -> None:
    """End what is left, until there is nothing: processes that are about to start others come and go."""
    deadline, quiet = time.monotonic() + 30, 0
    while quiet < 10 and time.monotonic() < deadline:
        left = _processes_of(folder)
        quiet = 0 if left else quiet + 1
        for pid in left:
            with contextlib.suppress(ProcessLookupError):
                os.kill(pid, signal.SIGKILL)
        time.sleep(0.2)
    assert not _processes_of(folder)


def _processes_of(folder: str) -> list[int]:
    """Nodes that the autoscaler started: processes of our own, whose command lines name our folder."""
    found = []
    for path in Path("/proc").glob("[0-9]*/cmdline"):
        with contextlib.suppress(OSError):  # it has ended
            if f"{folder}/r".encode() in path.read_bytes():
                found.append(int(path.parent.name))
    return found


def test_workers_are_started_for_the_trials_that_wait(address, tiny_space, agree):
    command = [sys.executable, "-m", "loraxs_search", "launch", str(tiny_space), "--name", "scaled"]
    command += ["--address", address, "--set", "search.concurrent=2", "--set", "search.trials=3"]
    done = subprocess.run(command, capture_output=True, text=True, timeout=240, check=False)
    assert done.returncode == 0, done.stderr
    assert "2 slots" in done.stderr
    agree("scaled", 3)
    nodes = subprocess.run([sys.executable, "-c", NODES, address], capture_output=True, text=True, check=True).stdout
    assert json.loads(nodes) in ([0, 1], [0, 1, 1]), "the first node may be done before the second is up"


NODES = """
import json, sys
from loraxs_search.search.cluster.connection import connected, living_nodes
with connected(sys.argv[1]):
    print(json.dumps(sorted(node.num_cpus for node in living_nodes())))
"""
