"""What a search itself costs when it is large: thousands of trials that wait instead of training.

    python tests/benchmarks/bench_scale.py [--trials 1000 10000] [--at-once 256] [--pace 0.5] [--json FILE]
                                           [--profile FILE] [--recorded N]

Everything is real but the host: driver, sampler, ASHA, journal, snapshot store, MLflow (the embedded store) and Tune
with a process for each trial in flight; those take some 60 to 100 MB each, so --at-once is what fits. Trials report
four times, `--pace` seconds apart, or until ASHA stops them.

A search is interrupted when 95 % of its trials have ended, and resumed to its end. `overhead` is wall time by trials
ended while it runs; it is the driver's own cost as long as slots wait for it, which `capacity` tells (trials a second
that the slots could take). The first trials, while the slots' processes start, are left out.

--recorded N runs nothing: it writes a study of N trials that have ended and measures what a resumed driver does with it
before its first trial, and how long proposals take.
"""

from __future__ import annotations

import argparse
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
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass, field, replace
from pathlib import Path
from typing import TYPE_CHECKING, Any

import psutil

if TYPE_CHECKING:
    from loraxs_search.log.events import ShownEvent

OVERRIDES = ("search.max_steps=160", "search.report_every=40", "promotion.candidates=3")


@dataclass
class Gauge:
    """A search view that measures the driver each time some more trials have ended, and may stop the search.

    Args:
        every: Trials between two looks.
        stop_at: Trials after which `stop` is set.
    """

    every: int
    stop_at: int
    stop: threading.Event
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
            self.looks.append({"trials": len(self.ended), "at": time.time(), **measure()})
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
def search(num_trials: int, at_once: int, pace_s: float, profile: Path | None) -> dict[str, Any]:
    """Run one search of `num_trials`, interrupted and resumed, in an empty home."""
    with tempfile.TemporaryDirectory(prefix="loraxs-scale-") as folder:
        os.environ["LORAXS_HOME"] = folder
        info, space = study(num_trials, at_once)
        stop, counts = threading.Event(), Counts()
        first = Gauge(max(10, num_trials // 20), int(0.95 * num_trials), stop)
        profiler = cProfile.Profile() if profile else None
        with counts.taken():
            run(info, space, pace_s, first, stop, profiler)
        if profiler is not None and profile is not None:
            profiler.dump_stats(profile)
        again, second = threading.Event(), Gauge(num_trials, num_trials + 1, threading.Event())
        result = run(info, space, pace_s, second, again)
        assert len(result.trials) == num_trials
        return summary(num_trials, at_once, pace_s, first, second, counts, len(list_adapters(folder)))


def study(num_trials: int, at_once: int) -> tuple[Any, Any]:
    from loraxs_search.mlflow_uri import resolve_uri
    from loraxs_search.search.driver.launch import new_study
    from loraxs_search.search_space import load_space
    from loraxs_search.tracking.store import ensure_store

    overrides = (*OVERRIDES, f"search.trials={num_trials}", f"search.pack_size={at_once}")
    space = load_space("movie_reviews", overrides=overrides)
    uri = resolve_uri(None)
    ensure_store(uri)
    info = new_study(space, f"scale-{num_trials}", uri)
    return info, space


def run(info: Any, space: Any, pace_s: float, view: Gauge, stop: threading.Event, profiler: Any = None) -> Any:
    """Drive the study on a Ray of its own with simulated hosts; return its result, None when it was interrupted."""
    import simulated_host

    from loraxs_search.errors import SearchInterruptedError
    from loraxs_search.search.cluster.connection import connected
    from loraxs_search.search.driver.driver import Driver
    from loraxs_search.search.hosts.host_config import host_config
    from loraxs_search.search.hosts.pool import HostPool

    with connected(None):
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
        "looks": first.looks,
    }


def main() -> int:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--trials", type=int, nargs="+", default=[1000, 10_000])
    parser.add_argument("--at-once", type=int, default=256)
    parser.add_argument("--pace", type=float, default=0.5)
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
    for num_trials in arguments.trials:
        rows.append(search(num_trials, arguments.at_once, arguments.pace, arguments.profile))
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
