"""`cluster/slurm.sbatch` byte for byte, on a real Slurm whose nodes are boxes."""

from __future__ import annotations

import contextlib
import json
import re
import secrets
import shutil
import signal
import subprocess
import sys
import time
from collections.abc import Callable, Iterator, Mapping
from dataclasses import dataclass
from pathlib import Path

import pytest
from support.boxes import Box, Boxes, boxes, no_boxes
from support.shared import session_folder
from support.shell import num_reports
from support.spaces import SPACE

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


pytestmark = [pytest.mark.long(part="cluster"), pytest.mark.timeout(1800)]
SCRIPT = Path(__file__).parents[2] / "cluster" / "slurm.sbatch"
ENDED = ("COMPLETED", "FAILED", "CANCELLED", "TIMEOUT", "NODE_FAIL", "OUT_OF_MEMORY")


@dataclass(frozen=True)
class User:
    """Who submits jobs, in a folder of their own, on the first node.

    Args:
        options: Of every job.
    """

    cluster: Slurm
    folder: Path
    options: tuple[str, ...]

    def submit(self, space: Path, study: str, *options: str) -> str:
        """Submit a search and return the job's number."""
        done = self.sbatch(*self.options, *options, str(SCRIPT), str(space), study)
        assert done.returncode == 0, done.stderr
        return done.stdout.strip()

    def sbatch(self, *arguments: str) -> subprocess.CompletedProcess[str]:
        """Submit, from a shell that may open few files."""
        low = 'ulimit -Sn 1024; cd "$0"; exec sbatch --parsable "$@"'
        return self.cluster.run("bash", "-c", low, str(self.folder), *arguments, env={"VENV": sys.prefix})

    def log(self, job: str) -> str:
        return (self.folder / f"loraxs-{job}.log").read_text()

    def wait_for(self, reached: Callable[[], bool], job: str, timeout_s: float = 900.0) -> None:
        """Wait until something is so, while the job has not ended."""

        def is_so() -> bool:
            return reached() or self.cluster.state(job) in ENDED

        self.cluster.wait_for(is_so, lambda: f"{self.cluster.state(job)}: {self.log(job)}", timeout_s)
        assert reached(), f"{self.log(job)}\n{self.cluster.ok('scontrol', 'show', 'job', job)}\n{self.cluster.logs()}"

    def wait_for_reports(self, study: str, number: int, job: str) -> None:
        self.wait_for(lambda: num_reports(study) >= number, job)

    def wait_for_requeue(self, job: str) -> None:
        """Wait until a job is to run again, and spare it most of the two minutes that Slurm gives the nodes.

        Not all: what a job may start by is revoked by the second when it ends, so it must start in another one.
        """
        self.wait_for(lambda: self.cluster.state(job) == "PENDING" and self.cluster.all_idle(), job)
        self.cluster.ok("scontrol", "update", f"JobId={job}", "StartTime=now+3")


@contextlib.contextmanager
def user(num_nodes: int, tmp_path_factory: pytest.TempPathFactory, options: tuple[str, ...]) -> Iterator[User]:
    if reason := no_slurm():
        pytest.skip(reason)
    with boxes(num_nodes, show=[session_folder(tmp_path_factory)]) as made, slurm(made) as cluster:
        yield User(cluster, tmp_path_factory.mktemp("user"), options)


@pytest.fixture
def two_nodes(tmp_path_factory):
    """Two nodes without GPUs."""
    with user(2, tmp_path_factory, ("--gpus-per-node=0", "--cpus-per-task=1")) as who:
        yield who


@pytest.fixture
def space(tiny_base, tmp_path):
    """Write a space of four trials with so many steps, on CPUs even where there are GPUs."""

    def write(steps: int) -> Path:
        path = tmp_path / "space.yaml"
        text = SPACE.format(
            task="slurm-reviews",
            base=json.dumps(str(tiny_base)),
            trials=4,
            steps=steps,
            every=steps // 10,
            promotion="{candidates: 1, seeds: 0, require: constant}",
        )
        path.write_text(text.replace("precision: float32", "precision: float32, scheduler: none, device: cpu"))
        return path

    return write


def open_files(box: Box) -> list[int]:
    """Return the limit of each Ray node there."""
    limits = box.run("bash", "-c", "cat $(printf '/proc/%s/limits ' $(pgrep raylet))").stdout
    return [int(number) for number in re.findall(r"Max open files +(\d+)", limits)]


def test_the_time_limit_stops_the_search_and_the_job_goes_on_by_itself(two_nodes, space, in_search_home, agree):
    cluster, study = two_nodes.cluster, "slurm"
    refused = two_nodes.sbatch(str(SCRIPT), str(space(200)), study)
    (said,) = re.findall(r'a Slurm that has no GPUs says "(.*)"', SCRIPT.read_text())
    assert said in refused.stderr
    job = two_nodes.submit(space(12_000), study)
    two_nodes.wait_for_reports(study, 2, job)
    for box in cluster.boxes:
        (limit,) = open_files(box)
        assert limit > 1024, "what Ray needs, whatever the limit where the job was submitted"
    *_, minutes, _ = cluster.ok("squeue", "--noheader", f"--jobs={job}", "--format=%M").split(":")
    shorter = f"TimeLimit={int(minutes) + 2}"  # the signal comes within a minute
    cluster.ok("scontrol", "update", f"JobId={job}", shorter)
    two_nodes.wait_for_requeue(job)
    reported = num_reports(study)
    cluster.ok("scontrol", "update", f"JobId={job}", "TimeLimit=60")
    two_nodes.wait_for(lambda: cluster.state(job) == "COMPLETED", job)
    log = two_nodes.log(job)
    assert 2 <= reported < num_reports(study)
    assert log.count(f"Study '{study}' was interrupted") == 1, "the log holds both runs"
    assert f"next: loraxs-search promote {study}" in log
    assert "DUE TO TIME LIMIT" not in log
    assert "Killed" not in log
    assert "srun: error" not in log
    assert "Traceback" not in log
    agree(study, 4)
