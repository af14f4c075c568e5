"""What a search itself costs when it is large: thousands of trials that wait instead of training.

    python tests/benchmarks/bench_scale.py [--trials 1000 10000] [--at-once 256] [--pace 0.5] [--boxes N] [--team]
                                           [--json FILE] [--profile FILE] [--recorded N]

Everything is real but the host: driver, sampler, ASHA, journal, snapshot store, MLflow (the embedded store, or with
--team a server on PostgreSQL) and Tune. Trials report four times, `--pace` seconds apart, or until ASHA stops them.
With --boxes the hosts are in that many machines made of namespaces (tests/support/boxes.py), each a worker of a Ray
cluster, while its head and the driver are outside; then the bytes through the boxes' cables are counted too.

A search is interrupted when 95 % of its trials have ended, and resumed to its end. `overhead` is wall time by trials
ended while it runs; it is the driver's own cost as long as slots wait for it, which `capacity` tells (trials a second
that the slots could take). The first trials, while slots and hosts start, are left out.

--recorded N runs nothing: it writes a study of N trials that have ended and measures what a resumed driver does with it
before its first trial, and how long proposals take.
"""

from __future__ import annotations

import argparse
import contextlib
import cProfile
import functools
import itertools
import json
import os
import statistics
import sys
import tempfile
import threading
import time
from collections import Counter
from collections.abc import Iterator, Mapping
from contextlib import contextmanager
from dataclasses import dataclass, field, replace
from pathlib import Path
from typing import TYPE_CHECKING, Any

import psutil

sys.path.insert(0, str(Path(__file__).parents[1]))  # for `faults` and `support`, which the suite shares

from faults import nodes, stores
from faults.world import tree
from support.boxes import Box, boxes

if TYPE_CHECKING:
    from loraxs_search.log.events import ShownEvent

OVERRIDES = ("search.max_steps=160", "search.report_every=40", "promotion.candidates=3")


# ---- where it runs ---------------------------------------------------------------------------------------------------
@dataclass
class Place:
    """Where a search runs.

    Args:
        address: Of a cluster; None starts Ray here.
        uri: Of MLflow; None means the embedded store.
        roots: By what they are part of: processes whose descendants are measured. Those of this one are `ray`.
        boxes: Where the hosts are.
    """

    address: str | None = None
    uri: str | None = None
    roots: dict[str, list[int]] = field(default_factory=dict)
    boxes: list[Box] = field(default_factory=list)

    def measure(self) -> dict[str, float]:
        """Return the CPU seconds, processes and MB of memory of every part, and the bytes that boxes got and sent."""
        measured: dict[str, float] = {}
        for name, pids in (self.roots or {"ray": [os.getpid()]}).items():
            found = [_of_process(process) for pid in pids for process in tree(pid) if process.pid != os.getpid()]
            for key, values in zip(("cpu_s", "mb"), zip(*filter(None, found), strict=True), strict=True):
                measured[f"{name}_{key}"] = sum(values)
            measured[f"{name}_processes"] = len(found)
        if self.boxes:
            got, sent = zip(*map(_bytes_through, self.boxes), strict=True)
            measured |= {"got_bytes": sum(got), "sent_bytes": sum(sent)}
        return measured


def _of_process(process: psutil.Process) -> tuple[float, float] | None:
    """Return a process's CPU seconds and its share of memory in MB; None when it has ended."""
    try:
        cpu = process.cpu_times()
        return cpu.user + cpu.system, process.memory_full_info().pss / 2**20
    except psutil.Error:
        return None


def _bytes_through(box: Box) -> tuple[int, int]:
    """Return the bytes that a box has got and sent over its cable."""
    lines = box.run("cat", "/proc/net/dev").stdout.splitlines()
    numbers = next(line.split(":")[1].split() for line in lines if line.strip().startswith("eth0:"))
    return int(numbers[0]), int(numbers[8])


@contextlib.contextmanager
def a_place(num_boxes: int, team: bool) -> Iterator[Place]:
    """Start what a search needs beside Ray on this machine, and end it."""
    place, here = Place(), Path(__file__).parent
    with contextlib.ExitStack() as closing:
        folder = Path(closing.enter_context(tempfile.TemporaryDirectory(prefix="lx-", dir="/tmp")))
        if team:
            store = closing.enter_context(stores.team_store(folder / "s"))
            place.uri = store.uri
            servers = {"mlflow": store.mlflow, "database": store.database}
            place.roots = {name: [server.process.pid] for name, server in servers.items() if server.process}
        if num_boxes:
            os.environ["PYTHONPATH"] = f"{here}:{here.parents[1]}"  # nodes import the simulated host
            machines = closing.enter_context(boxes(num_boxes, show=[folder]))
            cluster = closing.enter_context(nodes.cluster_on(machines, folder / "c"))
            os.environ |= cluster.env
            place.address, place.boxes = cluster.address, machines.boxes
            head, *workers = (node.process.pid for node in cluster.places if node.process)
            place.roots |= {"head": [head], "nodes": workers}
        else:
            place.roots |= {"ray": [os.getpid()]} if place.roots else {}
        yield place


# ---- what is looked at ----------------------------------------------------------------------------------------------
@dataclass
class Gauge:
    """A search view that measures the driver each time some more trials have ended, and may stop the search.

    Args:
        every: Trials between two looks.
        stop_at: Trials after which `stop` is set.
        place: Where it runs.
    """

    every: int
    stop_at: int
    stop: threading.Event
    place: Place = field(default_factory=Place)
    looks: list[dict[str, float]] = field(default_factory=list)
    phases: list[tuple[str, float]] = field(default_factory=list)
    first_change: float | None = None
    ended: set[str] = field(default_factory=set)
    num_reports: int = 0

    def happened(self, event: ShownEvent) -> None:
        from loraxs_search.log.events import Phase, SearchStarted, Steered, TrialEnded, TrialReported, TrialStarted

        match event:
            case Phase():
                self.began(event.text)
            case SearchStarted():
                self.began("searching")
            case TrialStarted():
                self.first_change = self.first_change or time.time()
            case TrialReported():
                self.num_reports += 1
            case TrialEnded():
                self.trial_ended(event.trial_id)
            case Steered():
                print(event.text, file=sys.stderr)

    def known(self, event: ShownEvent) -> None: ...

    def began(self, phase: str) -> None:
        self.phases.append((phase, time.time()))
        print(f"{time.strftime('%T')} {phase}", file=sys.stderr, flush=True)

    def trial_ended(self, trial_id: str) -> None:
        self.ended.add(trial_id)
        if len(self.ended) % self.every == 0:
            self.looks.append({"trials": len(self.ended), "at": time.time(), **measure(), **self.place.measure()})
            print(json.dumps(self.looks[-1]), file=sys.stderr, flush=True)
        if len(self.ended) >= self.stop_at:
            self.stop.set()


def measure() -> dict[str, float]:
    """Return this process's memory, CPU time and open files."""
    process = psutil.Process()
    cpu = process.cpu_times()
    return {"mb": process.memory_info().rss / 2**20, "cpu_s": cpu.user + cpu.system, "files": process.num_fds()}


# ---- what is counted -------------------------------------------------------------------------------------------------
class Counts:
    """Seconds of every proposal, and the number of calls to MLflow."""

    def __init__(self) -> None:
        self.proposals_s: list[float] = []
        self.mlflow: Counter[str] = Counter()

    @contextmanager
    def taken(self) -> Iterator[None]:
        """Count while the block runs."""
        import mlflow

        from loraxs_search.search.tune.searcher import StudySearcher

        client, names = mlflow.MlflowClient, ("log_batch", "create_run", "update_run", "set_terminated", "search_runs")
        before = {name: getattr(client, name) for name in names}
        propose = StudySearcher._new

        def timed(searcher: Any) -> Any:
            start = time.perf_counter()
            try:
                return propose(searcher)
            finally:
                self.proposals_s.append(time.perf_counter() - start)

        searchers: Any = StudySearcher
        searchers._new = timed
        for name in names:
            setattr(client, name, self._counted(name, before[name]))
        try:
            yield
        finally:
            searchers._new = propose
            for name in names:
                setattr(client, name, before[name])

    def _counted(self, name: str, call: Any) -> Any:
        @functools.wraps(call)
        def counted(*args: Any, **kwargs: Any) -> Any:
            self.mlflow[name] += 1
            return call(*args, **kwargs)

        return counted


# ---- one size --------------------------------------------------------------------------------------------------------
def search(place: Place, num_trials: int, at_once: int, pace_s: float, profile: Path | None) -> dict[str, Any]:
    """Run one search of `num_trials`, interrupted and resumed, in an empty home."""
    with tempfile.TemporaryDirectory(prefix="loraxs-scale-", ignore_cleanup_errors=True) as folder:
        os.environ["LORAXS_HOME"] = folder
        info, space = study(num_trials, at_once, place)
        stop, counts = threading.Event(), Counts()
        first = Gauge(max(10, num_trials // 20), int(0.95 * num_trials), stop, place)
        profiler = cProfile.Profile() if profile else None
        with counts.taken():
            run(info, space, pace_s, first, stop, profiler)
        if profiler is not None and profile is not None:
            profiler.dump_stats(profile)
        again, second = threading.Event(), Gauge(num_trials, num_trials + 1, threading.Event(), place)
        result = run(info, space, pace_s, second, again)
        assert len(result.trials) == num_trials
        row = summary(num_trials, at_once, pace_s, first, second, counts, len(list_adapters(folder)))
        return row | stored(Path(folder), num_trials)


def study(num_trials: int, at_once: int, place: Place | None = None) -> tuple[Any, Any]:
    from loraxs_search.mlflow_uri import resolve_uri
    from loraxs_search.search.driver.launch import new_study
    from loraxs_search.search_space import load_space
    from loraxs_search.tracking.store import ensure_store

    place = place or Place()
    overrides = (*OVERRIDES, f"search.trials={num_trials}", f"search.pack_size={at_once // max(1, len(place.boxes))}")
    space = load_space("movie_reviews", overrides=overrides)
    uri = resolve_uri(place.uri)
    if place.uri is None:
        ensure_store(uri)
    info = new_study(space, f"scale-{num_trials}", uri)
    return info, space


def run(info: Any, space: Any, pace_s: float, view: Gauge, stop: threading.Event, profiler: Any = None) -> Any:
    """Drive the study on simulated hosts; return its result, None when it was interrupted."""
    import simulated_host

    from loraxs_search.errors import SearchInterruptedError
    from loraxs_search.search.cluster.connection import connected
    from loraxs_search.search.driver.driver import Driver
    from loraxs_search.search.hosts.host_config import host_config
    from loraxs_search.search.hosts.pool import HostPool

    with connected(view.place.address):
        make = functools.partial(simulated_host.simulated_host, pace_s=pace_s)
        functools.update_wrapper(make, simulated_host.simulated_host)  # a pool is known by the name of what makes hosts
        pool = HostPool(replace(host_config([space]), make=make), [space.search])
        try:
            if profiler is not None:
                return profiler.runcall(Driver(info, space, view, stop).run, pool)
            return Driver(info, space, view, stop).run(pool)
        except SearchInterruptedError:
            return None
        finally:
            view.began("end")
            pool.close()


def stored(home: Path, num_trials: int) -> dict[str, float]:
    """Return the KB of a study's log and snapshots for each trial, and its number of files."""
    (folder,) = home.glob("studies/*")
    kb = {
        name: sum(path.stat().st_size for path in folder.glob(pattern)) / 1e3 / num_trials
        for name, pattern in (("log_kb", "journal.jsonl"), ("snapshot_kb", "snapshots/*"))
    }
    return {name: round(value, 1) for name, value in kb.items()} | {"stored_files": len(list(folder.rglob("*")))}


def list_adapters(folder: str) -> list[Path]:
    return list(Path(folder).glob("studies/*/adapters/*/manifest.json"))


def summary(
    num_trials: int, at_once: int, pace_s: float, first: Gauge, second: Gauge, counts: Counts, num_adapters: int
) -> dict[str, Any]:
    """Put what was measured into one row."""
    looks = first.looks[1:] or first.looks  # the first look comes while processes start
    spans = list(itertools.pairwise(looks))
    trials = looks[-1]["trials"] - looks[0]["trials"]
    seconds = looks[-1]["at"] - looks[0]["at"]
    overhead = [(b["at"] - a["at"]) / (b["trials"] - a["trials"]) for a, b in spans]
    reports = first.num_reports / len(first.ended)
    marks = dict(second.phases)
    scored, end = marks.get("scoring the finalist on the test rows, writing adapters"), marks["end"]
    proposals = counts.proposals_s
    late = proposals[-max(20, len(proposals) // 10) :]
    return {
        "trials": num_trials,
        "at_once": at_once,
        "pace_s": pace_s,
        "overhead_s": round(seconds / trials, 4),
        "overhead_early_s": round(statistics.mean(overhead[: max(1, len(overhead) // 5)]), 4),
        "overhead_late_s": round(statistics.mean(overhead[-max(1, len(overhead) // 5) :]), 4),
        "capacity_per_s": round(at_once / (reports * pace_s), 1),
        "driver_cpu_s": round((looks[-1]["cpu_s"] - looks[0]["cpu_s"]) / trials, 4),
        "reports_per_trial": round(reports, 2),
        "mb_per_1000": round(1000 * (looks[-1]["mb"] - looks[0]["mb"]) / trials, 1),
        "mb": round(looks[-1]["mb"]),
        "files": [looks[0]["files"], looks[-1]["files"]],
        "mlflow_calls_per_s": round(sum(counts.mlflow.values()) / (first.looks[-1]["at"] - first.phases[0][1]), 1),
        "mlflow_calls": dict(counts.mlflow),
        "proposal_ms": round(1000 * statistics.mean(proposals), 1),
        "proposal_late_ms": round(1000 * statistics.mean(late), 1),
        "resume_s": round(second.first_change - second.phases[0][1], 1) if second.first_change else None,
        "adapters": num_adapters,
        "adapter_s": round((end - scored) / num_adapters, 3) if scored and num_adapters else None,
        **parts(looks[0], looks[-1]),
        "looks": first.looks,
    }


def parts(first: Mapping[str, float], last: Mapping[str, float]) -> dict[str, float]:
    """Return what parts beside the driver take: memory and processes at the end, the rest for each trial."""
    taken: dict[str, float] = {}
    for key, value in last.items():
        unit = key.partition("_")[2]
        if unit in ("mb", "processes"):
            taken[key] = round(value)
        elif unit in ("cpu_s", "bytes"):
            taken[f"{key}_per_trial"] = round((value - first.get(key, 0.0)) / (last["trials"] - first["trials"]), 4)
    return taken


def main() -> int:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--trials", type=int, nargs="+", default=[1000, 10_000])
    parser.add_argument("--at-once", type=int, default=256)
    parser.add_argument("--pace", type=float, default=0.5)
    parser.add_argument("--boxes", type=int, default=0)
    parser.add_argument("--team", action="store_true")
    parser.add_argument("--json", type=Path)
    parser.add_argument("--profile", type=Path)
    parser.add_argument("--recorded", type=int)
    arguments = parser.parse_args()
    os.environ["MLFLOW_DISABLE_TELEMETRY"] = "true"
    if arguments.recorded:
        from recorded_study import take_up

        print(json.dumps(take_up(arguments.recorded)))
        return 0
    rows = []
    with a_place(arguments.boxes, arguments.team) as place:
        for num_trials in arguments.trials:
            rows.append(search(place, num_trials, arguments.at_once, arguments.pace, arguments.profile))
            shown = {key: value for key, value in rows[-1].items() if key != "looks"}
            print(json.dumps(shown), file=sys.stderr, flush=True)
            if arguments.json:
                arguments.json.write_text(json.dumps(rows, indent=2) + "\n")
    columns = [key for key in rows[0] if key not in ("looks", "mlflow_calls")]
    print("|", " | ".join(columns), "|\n|", " | ".join("--:" for _ in columns), "|")
    for row in rows:
        print("|", " | ".join(str(row[key]) for key in columns), "|")
    return 0


if __name__ == "__main__":
    sys.exit(main())
