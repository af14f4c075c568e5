"""cluster/local: several Ray nodes on this machine, a token between them, a search on all of them, and nothing left."""

from __future__ import annotations

import os
import socket
import subprocess
import sys
import tempfile
from collections.abc import Callable, Iterator
from dataclasses import dataclass
from pathlib import Path

import pytest

pytestmark = [pytest.mark.slow, pytest.mark.timeout(400)]
LOCAL = Path(__file__).parents[2] / "cluster" / "local"


@dataclass
class LocalCluster:
    """What start.sh made, and the environment that it printed for its clients."""

    folder: Path
    address: str
    env: dict[str, str]

    def pids(self) -> list[int]:
        return [int(path.read_text()) for path in sorted(self.folder.glob("*.pid"))]


def running(pid: int) -> bool:
    """Whether a process is there and more than a zombie that nobody has waited for."""
    try:
        return Path(f"/proc/{pid}/cmdline").read_bytes() != b""
    except (FileNotFoundError, ProcessLookupError):
        return False


def script(name: str, *args: str, env: dict[str, str]) -> subprocess.CompletedProcess[str]:
    return subprocess.run([LOCAL / name, *args], env=env, capture_output=True, text=True, timeout=180, check=False)


@pytest.fixture
def cluster(in_search_home: Path, tmp_path: Path) -> Iterator[LocalCluster]:
    """Two workers with one CPU each and a home of their own; stopped at the end if the test has not."""
    with socket.socket() as probe:
        probe.bind(("127.0.0.1", 0))
        port = probe.getsockname()[1]
    folder = Path(tempfile.mkdtemp(prefix="lx-", dir="/tmp")) / "c"  # short, for Ray's sockets
    path = f"{Path(sys.executable).parent}:{os.environ['PATH']}"
    env = {**os.environ, "PATH": path, "PORT": str(port), "LORAXS_CLUSTER": str(folder)}
    started = script("start.sh", "2", "1", env=env | {"LORAXS_HOME": str(tmp_path / "nodes")})
    try:
        assert started.returncode == 0, started.stderr
        exported = dict(word.split("=", 1) for word in started.stdout.removeprefix("export ").split())
        yield LocalCluster(folder, f"127.0.0.1:{port}", env | exported)
    finally:
        if folder.exists():
            script("stop.sh", env=env)
        folder.parent.rmdir()


def test_a_search_on_two_workers_then_nothing_is_left(
    cluster: LocalCluster, tiny_space: Path, agree: Callable[..., object]
) -> None:
    assert cluster.env["RAY_AUTH_MODE"] == "token"
    token = Path(cluster.env["RAY_AUTH_TOKEN_PATH"])
    assert token.stat().st_mode & 0o077 == 0
    assert len(token.read_text()) == 64
    command = [sys.executable, "-m", "loraxs_search", "launch", str(tiny_space), "--name", "local"]
    shorter = ["--set", "search.trials=2", "--set", "search.max_steps=4"]
    done = subprocess.run(
        [*command, "--address", cluster.address, *shorter],
        env=cluster.env,
        capture_output=True,
        text=True,
        timeout=240,
        check=False,
    )
    assert done.returncode == 0, done.stderr
    assert "1 threads" in done.stderr
    assert "2 slots" in done.stderr, "both workers take trials, the head takes none"
    agree("local", 2)

    pids = cluster.pids()
    assert len(pids) == 3
    again = script("start.sh", env=cluster.env)
    assert again.returncode == 1, "a second cluster in the same folder is refused"
    stopped = script("stop.sh", env=cluster.env)
    assert stopped.returncode == 0, stopped.stderr
    assert not [pid for pid in pids if running(pid)]
    assert not cluster.folder.exists()
