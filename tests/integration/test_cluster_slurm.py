"""`cluster/slurm.sbatch` byte for byte, on a real Slurm whose nodes are boxes."""

from __future__ import annotations

import contextlib
import json
import re
import subprocess
import sys
from collections.abc import Callable, Iterator
from dataclasses import dataclass
from pathlib import Path

import pytest
from support.boxes import Box, boxes
from support.shared import session_folder
from support.slurm import Slurm, no_slurm, slurm
from support.spaces import SPACE

from loraxs_search.studies.folder import StudyFolder

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


def num_reports(study: str) -> int:
    return len(StudyFolder.open(study).journal().reports) if StudyFolder.exists(study) else 0


@contextlib.contextmanager
def user(num_nodes: int, tmp_path_factory: pytest.TempPathFactory, options: tuple[str, ...]) -> Iterator[User]:
    if reason := no_slurm():
        pytest.skip(reason)
    with boxes(num_nodes, show=[session_folder(tmp_path_factory)]) as made, slurm(made) as cluster:
        yield User(cluster, tmp_path_factory.mktemp("user"), options)


@pytest.fixture
def two_nodes(tmp_path_factory: pytest.TempPathFactory) -> Iterator[User]:
    """Two nodes without GPUs."""
    with user(2, tmp_path_factory, ("--gpus-per-node=0", "--cpus-per-task=1")) as who:
        yield who


@pytest.fixture
def space(tiny_base: Path, tmp_path: Path) -> Callable[[int], Path]:
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


def test_a_search_is_stopped_before_the_time_limit_and_the_job_goes_on_by_itself(
    two_nodes: User, space: Callable[[int], Path], in_search_home: Path, agree: Callable[[str, int], object]
) -> None:
    cluster, study = two_nodes.cluster, "slurm"
    refused = two_nodes.sbatch(str(SCRIPT), str(space(200)), study)
    (said,) = re.findall(r'a Slurm that has no GPUs says "(.*)"', SCRIPT.read_text())
    assert said in refused.stderr
    job = two_nodes.submit(space(200), study)
    two_nodes.wait_for_reports(study, 2, job)
    for box in cluster.boxes:
        (limit,) = open_files(box)
        assert limit > 1024, "what Ray needs, whatever the limit where the job was submitted"
    cluster.ok("scancel", "--batch", "--signal=INT", job)  # as Slurm does before the time limit
    two_nodes.wait_for_requeue(job)
    reported = num_reports(study)
    two_nodes.wait_for(lambda: cluster.state(job) == "COMPLETED", job)
    log = two_nodes.log(job)
    assert 2 <= reported < num_reports(study)
    assert log.count(f"Study '{study}' was interrupted") == 1, "the log holds both runs"
    assert f"next: loraxs-search promote {study}" in log
    assert "Killed" not in log
    assert "srun: error" not in log
    assert "Traceback" not in log
    agree(study, 4)


def test_the_time_limit_itself_stops_the_search_and_the_job_goes_on(
    two_nodes: User, space: Callable[[int], Path], in_search_home: Path, agree: Callable[[str, int], object]
) -> None:
    cluster, study = two_nodes.cluster, "limited"
    job = two_nodes.submit(space(12_000), study)
    two_nodes.wait_for_reports(study, 2, job)
    *_, minutes, _ = cluster.ok("squeue", "--noheader", f"--jobs={job}", "--format=%M").split(":")
    cluster.ok(
        "scontrol", "update", f"JobId={job}", f"TimeLimit={int(minutes) + 2}"
    )  # the signal comes within a minute
    two_nodes.wait_for_requeue(job)
    reported = num_reports(study)
    cluster.ok("scontrol", "update", f"JobId={job}", "TimeLimit=60")
    two_nodes.wait_for(lambda: cluster.state(job) == "COMPLETED", job)
    log = two_nodes.log(job)
    assert 2 <= reported < num_reports(study)
    assert log.count(f"Study '{study}' was interrupted") == 1
    assert "DUE TO TIME LIMIT" not in log
    agree(study, 4)


def test_a_node_that_loses_its_power_has_the_job_run_again(
    two_nodes: User, space: Callable[[int], Path], in_search_home: Path, agree: Callable[[str, int], object]
) -> None:
    cluster, study = two_nodes.cluster, "cut"
    job = two_nodes.submit(space(4000), study)
    two_nodes.wait_for_reports(study, 2, job)
    worker = cluster.boxes[-1]
    worker.power_cut()
    two_nodes.wait_for(lambda: cluster.state(job) == "PENDING", job)
    reported = num_reports(study)
    worker.reboot()
    cluster.start_node(worker)
    two_nodes.wait_for_requeue(job)
    two_nodes.wait_for(lambda: cluster.state(job) == "COMPLETED", job)
    assert 2 <= reported < num_reports(study)
    assert f"next: loraxs-search promote {study}" in two_nodes.log(job)
    agree(study, 4)
