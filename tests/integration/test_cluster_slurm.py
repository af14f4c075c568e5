"""`cluster/slurm.sbatch` byte for byte, on a real Slurm whose nodes are boxes."""

from __future__ import annotations

import re
import secrets
import shutil
import signal
import subprocess
import sys
from collections.abc import Callable, Mapping
from dataclasses import dataclass
from pathlib import Path

import pytest
from support.boxes import Box, boxes, no_boxes
from support.pages import ROOT
from support.servers import Server
from support.shared import session_folder
from support.shell import num_reports, until

pytestmark = [pytest.mark.long(part="cluster"), pytest.mark.timeout(1800)]
SCRIPT = ROOT / "cluster" / "slurm.sbatch"
ENDED = ("COMPLETED", "FAILED", "CANCELLED", "TIMEOUT", "NODE_FAIL", "OUT_OF_MEMORY")
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
{nodes}
PartitionName=main Nodes=ALL Default=YES MaxTime=INFINITE State=UP
"""
_NODE = "NodeName={box.name} NodeAddr={box.ip} CPUs=8 RealMemory=16000 State=UNKNOWN"


@dataclass
class Slurm:
    """A cluster, as who submits jobs on its first node sees it.

    Args:
        folder: Configuration and logs; every box sees it.
        desk: The folder that jobs are submitted in.
    """

    boxes: list[Box]
    folder: Path
    desk: Path

    @property
    def env(self) -> dict[str, str]:
        return {"SLURM_CONF": str(self.folder / "slurm.conf")}

    def run(self, *command: str, env: Mapping[str, str] | None = None) -> subprocess.CompletedProcess[str]:
        """Run a command on the first node, whatever comes of it."""
        return self.boxes[0].run(*command, env={**self.env, **(env or {})})

    def ok(self, *command: str) -> str:
        """Run a command that must succeed, and return what it printed."""
        done = self.run(*command)
        assert done.returncode == 0, f"{command}: {done.stdout}{done.stderr}"
        return done.stdout.strip()

    def sbatch(self, *arguments: str) -> subprocess.CompletedProcess[str]:
        """Submit, from a shell that may open few files."""
        low = 'ulimit -Sn 1024; cd "$0"; exec sbatch --parsable "$@"'
        return self.run("bash", "-c", low, str(self.desk), *arguments, env={"VENV": sys.prefix})

    def state(self, job: str) -> str:
        """Return the state of a job, such as RUNNING."""
        return self.ok("squeue", "--noheader", f"--jobs={job}", "--states=all", "--format=%T")

    def all_idle(self) -> bool:
        done = self.run("sinfo", "--noheader", "--Node", "--format=%T")
        return done.stdout.split() == ["idle"] * len(self.boxes)

    def log(self, job: str) -> str:
        return (self.desk / f"loraxs-{job}.log").read_text()

    def wait_for(self, reached: Callable[[], bool], job: str) -> None:
        """Wait until something is so, while the job has not ended."""
        until(lambda: reached() or self.state(job) in ENDED, lambda: f"{self.state(job)}: {self.log(job)}", 900.0)
        assert reached(), f"{self.log(job)}\n{self.ok('scontrol', 'show', 'job', job)}\n{self.logs()}"

    def logs(self) -> str:
        """Return the end of each daemon's log."""
        return "\n".join(f"{path.name}:\n{path.read_text()[-2000:]}" for path in sorted(self.folder.glob("*.log")))


@pytest.fixture
def cluster(tmp_path_factory):
    """Slurm on two nodes without GPUs."""
    for program in ("munged", "slurmctld", "slurmd", "sbatch"):
        if shutil.which(program) is None:
            pytest.skip(f"`{program}` (Debian packages slurmctld, slurmd, slurm-client, munge) is not installed")
    if reason := no_boxes():
        pytest.skip(reason)
    with boxes(2, show=[session_folder(tmp_path_factory)]) as made:
        folder = made.folder / "slurm"
        (folder / "controller").mkdir(parents=True)
        nodes = "\n".join(_NODE.format(box=box) for box in made.boxes)
        (folder / "slurm.conf").write_text(_CONFIG.format(boxes=made.boxes, folder=folder, nodes=nodes))
        (folder / "cgroup.conf").write_text("CgroupPlugin=disabled\n")
        (folder / "munge.key").touch(mode=0o600)
        (folder / "munge.key").write_bytes(secrets.token_bytes(128))
        files = {"socket": "munge.socket", "key-file": "munge.key", "pid-file": "munge.pid", "seed-file": "munge.seed"}
        command = ["munged", "--foreground", *(f"--{name}={folder / file}" for name, file in files.items())]
        munged = Server(command, folder / "munged.log", (folder / "munge.socket").exists)
        munged.start()  # it lets the daemons know each other
        try:
            found = Slurm(made.boxes, folder, tmp_path_factory.mktemp("user"))
            for program, box in (("slurmctld", made.boxes[0]), *(("slurmd", box) for box in made.boxes)):
                box.serve(program, "-D", env=found.env, log=folder / f"{program}-{box.name}.log")
            until(found.all_idle, found.logs, 60)
            yield found
        finally:
            munged.kill(signal.SIGTERM)


def test_the_time_limit_stops_the_search_and_the_job_goes_on_by_itself(
    cluster, tiny_space, tiny_space_text, in_search_home, agree
):
    study, few = "slurm", ("trials: 6, max_steps: 8, report_every: 2", "{candidates: 2, seeds: 1}")
    assert all(part in tiny_space_text for part in few)
    longer = "trials: 4, max_steps: 12000, report_every: 1200, scheduler: none, device: cpu"
    tiny_space.write_text(tiny_space_text.replace(few[0], longer).replace(few[1], "{candidates: 1, seeds: 0}"))
    what = (str(SCRIPT), str(tiny_space), study)
    (said,) = re.findall(r'a Slurm that has no GPUs says "(.*)"', SCRIPT.read_text())
    assert said in cluster.sbatch(*what).stderr
    submitted = cluster.sbatch("--gpus-per-node=0", "--cpus-per-task=1", *what)
    assert submitted.returncode == 0, submitted.stderr
    job = submitted.stdout.strip()
    cluster.wait_for(lambda: num_reports(study) >= 2, job)
    for box in cluster.boxes:
        limits = box.run("bash", "-c", "cat $(printf '/proc/%s/limits ' $(pgrep raylet))").stdout
        (limit,) = re.findall(r"Max open files +(\d+)", limits)
        assert int(limit) > 1024, "what Ray needs, whatever the limit where the job was submitted"
    *_, minutes, _ = cluster.ok("squeue", "--noheader", f"--jobs={job}", "--format=%M").split(":")
    shorter = f"TimeLimit={int(minutes) + 2}"  # the signal comes within a minute
    cluster.ok("scontrol", "update", f"JobId={job}", shorter)
    cluster.wait_for(lambda: cluster.state(job) == "PENDING" and cluster.all_idle(), job)
    # Spare it most of the two minutes that Slurm gives the nodes. Not all: what a job may start by is revoked by the
    # second when it ends, so it must start in another one.
    cluster.ok("scontrol", "update", f"JobId={job}", "StartTime=now+3")
    reported = num_reports(study)
    cluster.ok("scontrol", "update", f"JobId={job}", "TimeLimit=60")
    cluster.wait_for(lambda: cluster.state(job) == "COMPLETED", job)
    log = cluster.log(job)
    assert 2 <= reported < num_reports(study)
    assert log.count(f"Study '{study}' was interrupted") == 1, "the log holds both runs"
    assert f"next: loraxs-search promote {study}" in log
    assert "DUE TO TIME LIMIT" not in log
    assert "Killed" not in log
    assert "srun: error" not in log
    assert "Traceback" not in log
    agree(study, 4)
