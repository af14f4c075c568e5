"""Slurm in boxes: its controller in the first one, its daemon in each, and munged on this machine; ended by pid."""

from __future__ import annotations

import contextlib
import secrets
import shutil
import signal
import subprocess
import time
from collections.abc import Callable, Iterator, Mapping
from dataclasses import dataclass
from pathlib import Path

from support.boxes import Box, Boxes, no_boxes

_PROGRAMS = ("munged", "slurmctld", "slurmd", "sbatch")
_CONFIG = """
ClusterName=test
SlurmctldHost={boxes[0].name}({boxes[0].ip})
SlurmUser=root
SlurmdUser=root
AuthType=auth/munge
AuthInfo=socket={folder}/munge.socket
CredType=cred/munge
StateSaveLocation={folder}/controller
SlurmdSpoolDir={folder}/%n
SlurmctldPidFile={folder}/slurmctld.pid
SlurmdPidFile={folder}/slurmd-%n.pid
ProctrackType=proctrack/linuxproc
TaskPlugin=task/none
JobAcctGatherType=jobacct_gather/none
SelectType=select/cons_tres
SelectTypeParameters=CR_Core
SchedulerParameters=sched_interval=1,bf_interval=1
MpiDefault=none
ReturnToService=2
SlurmdParameters=config_overrides
SlurmdTimeout=20
KillWait=10
"""
_NODE = "NodeName={box.name} NodeAddr={box.ip} CPUs=8 RealMemory=16000 State=UNKNOWN\n"


def no_slurm() -> str | None:
    """Say why Slurm cannot run here; None when it can."""
    for program in _PROGRAMS:
        if shutil.which(program) is None:
            return f"`{program}` (Debian packages slurmctld, slurmd, slurm-client, munge) is not installed"
    return no_boxes()


@dataclass
class Slurm:
    """A cluster, as who is logged in on its first node sees it.

    Args:
        folder: Configuration and logs; every box sees it.
    """

    boxes: list[Box]
    folder: Path

    def run(self, *command: str, env: Mapping[str, str] | None = None) -> subprocess.CompletedProcess[str]:
        """Run a command on the first node, whatever comes of it."""
        return self.boxes[0].run(*command, env={**self.env, **(env or {})})

    def ok(self, *command: str, env: Mapping[str, str] | None = None) -> str:
        """Run a command that must succeed, and return what it printed."""
        done = self.run(*command, env=env)
        assert done.returncode == 0, f"{command}: {done.stdout}{done.stderr}"
        return done.stdout.strip()

    @property
    def env(self) -> dict[str, str]:
        return {"SLURM_CONF": str(self.folder / "slurm.conf")}

    def state(self, job: str) -> str:
        """Return the state of a job, such as RUNNING."""
        return self.ok("squeue", "--noheader", f"--jobs={job}", "--states=all", "--format=%T")

    def all_idle(self) -> bool:
        done = self.run("sinfo", "--noheader", "--Node", "--format=%T")
        return done.stdout.split() == ["idle"] * len(self.boxes)

    def start_node(self, box: Box) -> None:
        """Start the daemon of a node that has just been started."""
        box.serve("slurmd", "-D", env=self.env, log=self.folder / f"slurmd-{box.name}.log")

    def wait_for(self, reached: Callable[[], bool], said: Callable[[], str], timeout_s: float) -> None:
        """Wait until something is so.

        Args:
            said: What to show when it does not come.
        """
        end = time.monotonic() + timeout_s
        while not reached():
            assert time.monotonic() < end, said()
            time.sleep(0.2)

    def logs(self) -> str:
        """Return the end of each daemon's log."""
        return "\n".join(f"{path.name}:\n{path.read_text()[-2000:]}" for path in sorted(self.folder.glob("*.log")))


@contextlib.contextmanager
def slurm(made: Boxes) -> Iterator[Slurm]:
    """Run Slurm in boxes, and end it."""
    folder = made.folder / "slurm"
    folder.mkdir()
    cluster = Slurm(made.boxes, folder)
    nodes = "".join(_NODE.format(box=box) for box in made.boxes)
    partition = "PartitionName=main Nodes=ALL Default=YES MaxTime=INFINITE State=UP\n"
    config = _CONFIG.format(boxes=made.boxes, folder=folder) + nodes + partition
    (folder / "slurm.conf").write_text(config)
    (folder / "cgroup.conf").write_text("CgroupPlugin=disabled\n")
    (folder / "controller").mkdir()
    with _munged(folder):
        made.boxes[0].serve("slurmctld", "-D", env=cluster.env, log=folder / "slurmctld.log")
        for box in made.boxes:
            cluster.start_node(box)
        cluster.wait_for(cluster.all_idle, cluster.logs, 60)
        yield cluster


@contextlib.contextmanager
def _munged(folder: Path) -> Iterator[None]:
    """Run what lets the daemons know each other."""
    key = folder / "munge.key"
    key.touch(mode=0o600)
    key.write_bytes(secrets.token_bytes(128))
    files = {"socket": "munge.socket", "key-file": key.name, "pid-file": "munge.pid", "seed-file": "munge.seed"}
    options = [f"--{name}={folder / file}" for name, file in files.items()]
    with (folder / "munged.log").open("w") as log:
        process = subprocess.Popen(
            ["munged", "--foreground", *options], stdin=subprocess.DEVNULL, stdout=log, stderr=log, cwd="/"
        )
    try:
        end = time.monotonic() + 20
        while not (folder / "munge.socket").exists():
            assert process.poll() is None, (folder / "munged.log").read_text()
            assert time.monotonic() < end
            time.sleep(0.05)
        yield
    finally:
        process.send_signal(signal.SIGTERM)
        process.wait()
