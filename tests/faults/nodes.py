"""A Ray cluster of a head and workers, each a `ray start --block` of its own, guarded by a token and ended by pid."""

from __future__ import annotations

import contextlib
import os
import secrets
import shutil
import subprocess
import sys
import tempfile
import time
from collections.abc import Iterator
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

from support.shell import free_port

from faults.world import kill_tree

_ENVIRONMENT = {"RAY_USAGE_STATS_ENABLED": "0", "RAY_worker_niceness": "0", "RAY_ACCEL_ENV_VAR_OVERRIDE_ON_ZERO": "0"}
_RAY = Path(sys.executable).with_name("ray")


@dataclass
class Node:
    """A host's address and how to run something there: nothing for this host, a box's prefix for another."""

    ip: str = "127.0.0.1"
    prefix: tuple[str, ...] = ()
    process: subprocess.Popen[bytes] | None = None

    def kill(self) -> None:
        """End the node with everything on it, at once."""
        if self.process is not None:
            kill_tree(self.process.pid)
            self.process.wait()
            self.process = None


@dataclass
class Cluster:
    """A head without CPUs and workers with one each.

    Args:
        folder: Token, logs and temp dirs; a short path, since Ray's sockets below have long names.
        homes: LORAXS_HOME of nodes, by their number; 0 is the head.
        head: Options of the head besides its port.
        ray: What nodes are started with.
    """

    folder: Path
    places: list[Node]
    homes: dict[int, Path] = field(default_factory=dict)
    head: tuple[str, ...] = ("--num-cpus=0", "--include-dashboard=false")
    ray: Path = _RAY
    port: int = 0

    @property
    def address(self) -> str:
        return f"{self.places[0].ip}:{self.port}"

    @property
    def env(self) -> dict[str, str]:
        """What a client needs to be let in."""
        return {"RAY_AUTH_MODE": "token", "RAY_AUTH_TOKEN_PATH": str(self.folder / "token"), **_ENVIRONMENT}

    def start(self) -> None:
        """Start all nodes, and return when each has said that it runs."""
        token = self.folder / "token"
        token.touch(mode=0o600)
        token.write_text(secrets.token_hex(32))
        self.port = free_port()
        self._start(0, "--head", f"--port={self.port}", *self.head)
        self._await(0)
        for number in range(1, len(self.places)):
            self._start_worker(number)
        for number in range(1, len(self.places)):
            self._await(number)

    def start_again(self, number: int) -> None:
        """Start a worker that does not run, and return when it does."""
        self._start_worker(number)
        self._await(number)

    def stop(self) -> None:
        """End every node, workers first."""
        for place in reversed(self.places):
            place.kill()

    def _start_worker(self, number: int) -> None:
        self._start(number, f"--address={self.address}", "--num-cpus=1")

    def _start(self, number: int, *options: str) -> None:
        place = self.places[number]
        home = self.homes.get(number)
        env = {**os.environ, **self.env, **({"LORAXS_HOME": str(home)} if home else {})}
        env.pop("RAY_ADDRESS", None)
        command = [*place.prefix, str(self.ray), "start", "--block", f"--node-ip-address={place.ip}"]
        command += [f"--temp-dir={self.folder}/n{number}", "--object-store-memory=100000000"]
        command += ["--min-worker-port=0", "--max-worker-port=0", *options]
        with (self.folder / f"n{number}.log").open("wb") as log:
            place.process = subprocess.Popen(command, env=env, stdout=log, stderr=log, start_new_session=True)

    def _await(self, number: int) -> None:
        place, log = self.places[number], self.folder / f"n{number}.log"
        end = time.monotonic() + 90
        while "Ray runtime started" not in log.read_text():
            assert place.process is not None
            assert place.process.poll() is None, f"node {number} ended: {log.read_text()[-2000:]}"
            assert time.monotonic() < end, f"node {number} did not start: {log.read_text()[-2000:]}"
            time.sleep(0.2)


@contextlib.contextmanager
def ray_cluster(
    places: list[Node], homes: dict[int, Path] | None = None, folder: Path | None = None, **options: Any
) -> Iterator[Cluster]:
    """Start a cluster, in a folder of its own, end it, and leave nothing of it."""
    folder = folder or Path(tempfile.mkdtemp(prefix="lx-", dir="/tmp"))  # short, for Ray's sockets
    folder.mkdir(exist_ok=True)
    made = Cluster(folder, places, homes or {}, **options)
    try:
        made.start()
        yield made
    finally:
        made.stop()
        shutil.rmtree(folder)
