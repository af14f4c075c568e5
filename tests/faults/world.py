"""A home, a space, and the command line in processes of their own, as a user starts it."""

from __future__ import annotations

import contextlib
import json
import os
import signal
import subprocess
import sys
from collections import Counter
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass, field
from pathlib import Path

import psutil
from support.spaces import QUICKSTART, SPACE


@dataclass
class World:
    """Where one fault happens.

    Args:
        folder: Empty, for this fault alone, with a short path.
        home: LORAXS_HOME of the driver; this process's own too, so that records can be read.
        base: `base_model` of the spaces, as YAML.
        steps: Of a trial; it reports four times.
        pack_size: Of the spaces, as YAML.
        studies: Name and number of trials of each study that was begun.
    """

    folder: Path
    home: Path
    base: str = json.dumps(QUICKSTART)
    steps: int = 24
    trials: int = 4
    pack_size: str = "auto"
    env: dict[str, str] = field(default_factory=dict)
    studies: dict[str, int] = field(default_factory=dict)

    def space(self, task: str = "faulty-reviews", **changes: object) -> Path:
        """Write a space and return its path."""
        values = {"trials": self.trials, "steps": self.steps, "every": max(1, self.steps // 4)}
        path = self.folder / f"{task}.yaml"
        text = SPACE.format(task=task, base=self.base, promotion="{candidates: 1}", **(values | changes))
        path.write_text(text.replace("precision: float32", f"precision: float32, pack_size: {self.pack_size}"))
        return path

    def start(
        self, *arguments: str, env: Mapping[str, str] | None = None, output: int = subprocess.PIPE
    ) -> subprocess.Popen[str]:
        """Start the command line, in a session of its own."""
        return subprocess.Popen(
            [sys.executable, "-m", "loraxs_search", *arguments],
            env={**os.environ, "LORAXS_HOME": str(self.home), **self.env, **(env or {})},
            stdout=output,
            stderr=output,
            text=True,
            start_new_session=True,
        )

    def launch(self, study: str, *arguments: str, space: Path | None = None) -> subprocess.Popen[str]:
        """Start a search, whose records `losses` looks at."""
        self.studies[study] = self.trials
        return self.start("launch", str(space or self.space()), "--name", study, *arguments)

    def finish(self, process: subprocess.Popen[str], timeout_s: float = 300.0) -> str:
        """Wait for a command that must succeed; return what it said on stderr."""
        code, talk = self.end(process, timeout_s)
        assert code == 0, f"exit code {code}: {talk[-2000:]}"
        return talk

    def end(self, process: subprocess.Popen[str], timeout_s: float = 300.0) -> tuple[int, str]:
        """Wait for a command; return its exit code and what it said on stderr, which holds no traceback."""
        with process:
            try:
                _, talk = outputs(process, timeout_s)
            except subprocess.TimeoutExpired:
                raise AssertionError(f"it did not end within {timeout_s:g} s: {process.communicate()}") from None
        assert "Traceback" not in talk, talk[-3000:]
        return process.returncode, talk

    def losses(self) -> list[str]:
        """Say what the studies of this world have lost."""
        return [f"{name}: {one}" for name, num in self.studies.items() for one in losses(read_records(name), num)]


def outputs(process: subprocess.Popen[str], timeout_s: float | None) -> tuple[str, str]:
    """Wait for a process and return its stdout and stderr; one that takes longer is killed with all under it.

    Raises:
        subprocess.TimeoutExpired: it took longer.
    """
    try:
        return process.communicate(timeout=timeout_s)
    except subprocess.TimeoutExpired:
        kill_tree(process.pid)
        raise


def tree(pid: int) -> list[psutil.Process]:
    """Return a process and all under it; none when it is gone."""
    try:
        root = psutil.Process(pid)
        return [root, *root.children(recursive=True)]
    except psutil.NoSuchProcess:
        return []


def titled(processes: Sequence[psutil.Process], title: str) -> list[psutil.Process]:
    """Return those whose command line holds a text."""
    found = []
    for process in processes:
        with contextlib.suppress(psutil.Error):
            found += [process] if title in " ".join(process.cmdline()) else []
    return found


def kill_tree(pid: int) -> None:
    """Kill a process and all under it at once, as a power cut would."""
    signal_all(tree(pid), signal.SIGKILL)


def signal_all(processes: Iterable[psutil.Process], number: signal.Signals) -> None:
    """Send a signal to those that are still there."""
    for process in processes:
        with contextlib.suppress(psutil.NoSuchProcess):
            process.send_signal(number)


# ---- the same trials as a log and MLflow tell them -------------------------------------------------------------------
Point = tuple[int, float]  # step, score
Stand = tuple[str, tuple[Point, ...]]  # state, its reports by step
ENDED = ("COMPLETE", "PRUNED", "FAIL")


@dataclass(frozen=True)
class Records:
    """What each of the two holds of a study, by trial id; `runs` counts the child runs of each."""

    journal: dict[str, Stand]
    mlflow: dict[str, Stand]
    runs: Counter[str]
    num_parents: int


def read_records(study: str) -> Records:
    """Read both of a study in this process's home."""
    from mlflow import MlflowClient

    from loraxs_search.studies.folder import StudyFolder

    folder = StudyFolder.open(study)
    task = folder.info.task
    metric = task.search_metric
    journal = {
        name: (record.state.value, tuple(sorted((each.step, each.metrics[metric]) for each in record.reports)))
        for name, record in folder.journal().records.items()
    }
    client = MlflowClient(folder.info.tracking_uri)
    experiment = client.get_experiment_by_name(task.name)
    assert experiment is not None
    runs = client.search_runs([experiment.experiment_id], max_results=1000)
    parents = [r for r in runs if "mlflow.parentRunId" not in r.data.tags and r.info.run_name == study]
    of_study = {parent.info.run_id for parent in parents}
    children = [r for r in runs if r.data.tags.get("mlflow.parentRunId") in of_study]
    # Where another machine went on, MLflow may know of trials whose numbers others have since.
    children = [r for r in children if ", lost with the log" not in r.data.tags["trial_id"]]
    stands = {
        r.data.tags["trial_id"]: (
            r.data.tags.get("loraxs.state", "RUNNING"),
            tuple(sorted((point.step, point.value) for point in client.get_metric_history(r.info.run_id, metric))),
        )
        for r in children
    }
    return Records(journal, stands, Counter(r.data.tags["trial_id"] for r in children), len(parents))


def losses(records: Records, num_trials: int) -> list[str]:
    """Say what the two tell differently, and of what there is too little or too much; nothing when all is well."""
    found = [] if len(records.journal) == num_trials else [f"{len(records.journal)} trials instead of {num_trials}"]
    for trial in sorted(records.journal.keys() | records.mlflow.keys()):
        own, told = records.journal.get(trial), records.mlflow.get(trial)
        if own != told:
            found.append(f"trial {trial} is {own} in the log and {told} in MLflow")
        elif own[0] not in ENDED:
            found.append(f"trial {trial} has not ended: {own}")
    found += [f"trial {trial} has {count} runs" for trial, count in records.runs.items() if count > 1]
    return [*found, *([f"{records.num_parents} runs of the search"] if records.num_parents > 1 else [])]
