"""Random commands to a search whose driver is killed again and again: is each carried out once, and how soon?

    python tests/benchmarks/bench_steering.py [--commands 50] [--kills 10] [--seed 0] [--json FILE]
    python tests/benchmarks/bench_steering.py --cost 60 [--pace 2]

Everything is real but the host, which waits instead of training. Commands go through the study folder. The
driver is killed with kill -9 at random moments and resumed. At the end `finish`
is sent, and the journal is held against what was sent. `answered_s` is the time from sending to the answer of commands
that no kill came between.

`--cost` searches for so many seconds, undisturbed, and says what share of that time the driver computes for MLflow's
records and for commands; `--pace` is the seconds between two reports of a trial.
"""

from __future__ import annotations

import argparse
import functools
import json
import os
import random
import statistics
import subprocess
import sys
import tempfile
import threading
import time
from collections import Counter, defaultdict
from collections.abc import Callable
from pathlib import Path
from typing import Any

NAME, PACE_S, TRIALS, AT_ONCE = "steered", 0.4, 400, 6


# ---- the driver, in a process of its own -----------------------------------------------------------------------------
def drive() -> None:
    """Search until the study is finished, or this process is killed."""
    from bench_scale import Gauge, run

    from loraxs_search.mlflow_uri import resolve_uri
    from loraxs_search.search.driver.launch import new_study
    from loraxs_search.search_space import load_space
    from loraxs_search.studies import StudyFolder
    from loraxs_search.tracking.store import ensure_store

    overrides = (f"search.trials={TRIALS}", f"search.pack_size={AT_ONCE}", "search.max_steps=1600", "promotion.seeds=0")
    space = load_space("movie_reviews", overrides=(*overrides, "search.scheduler=none", "promotion.candidates=1"))
    ensure_store(resolve_uri(None))
    info = StudyFolder.open(NAME).info if StudyFolder.exists(NAME) else new_study(space, NAME, resolve_uri(None))
    run(info, space, PACE_S, Gauge(TRIALS, TRIALS + 1, threading.Event()), threading.Event())


def start(home: str) -> subprocess.Popen[bytes]:
    with Path(home, "driver.log").open("ab") as log:
        return subprocess.Popen([sys.executable, __file__, "--drive"], env=os.environ, stdout=log, stderr=log)


# ---- what it costs ---------------------------------------------------------------------------------------------------
class Meter:
    """Counts the processor time of functions, each in whatever thread calls it."""

    def __init__(self) -> None:
        self.seconds: defaultdict[str, float] = defaultdict(float)

    def measure(self, label: str, owner: Any, before: Callable[..., Any]) -> None:
        """Count what a function of a class or a module takes from now on."""

        @functools.wraps(before)
        def measured(*args: Any, **kwargs: Any) -> Any:
            start = time.thread_time()
            try:
                return before(*args, **kwargs)
            finally:
                self.seconds[label] += time.thread_time() - start

        setattr(owner, before.__name__, measured)


def cost(seconds: float, pace_s: float) -> dict[str, Any]:
    """Search for so long, and return the processor time that logging and steering take, and their share."""
    from bench_scale import Gauge, run, study

    from loraxs_search.log.event_log import EventLog
    from loraxs_search.search.driver.commander import Commander, TagSource
    from loraxs_search.search.hosts import study_actors
    from loraxs_search.search.hosts.pool import pool_usage
    from loraxs_search.tracking.tracker import Tracker

    class Timed(Gauge):
        def began(self, phase: str) -> None:
            super().began(phase)
            if phase == "searching":
                threading.Timer(seconds, self.stop.set).start()

    meter, stop = Meter(), threading.Event()
    meter.measure("log", EventLog, EventLog.append)
    meter.measure("records_sent", Tracker, Tracker._apply)
    meter.measure("tags", TagSource, TagSource._look)
    meter.measure("commands", Commander, Commander.on_loop_step)
    meter.measure("hosts_asked", study_actors, pool_usage)
    info, space = study(TRIALS, AT_ONCE)
    view = Timed(TRIALS, TRIALS + 1, stop)
    run(info, space, pace_s, view, stop)
    begun = dict(view.phases)["searching"]
    wall_s = view.phases[-1][1] - begun
    used = {f"{label}_s": round(value, 2) for label, value in meter.seconds.items()}
    share = 100 * sum(meter.seconds.values()) / wall_s
    return {"wall_s": round(wall_s, 1), "reports": view.num_reports, **used, "percent_of_a_core": round(share, 2)}


# ---- the people ------------------------------------------------------------------------------------------------------
def random_command(draw: random.Random) -> Any:
    """Return a command that mostly makes sense as the study stands; some contradict others, or name no trial."""
    from loraxs_search.records import TrialState
    from loraxs_search.steering import steered
    from loraxs_search.steering.send import new_command
    from loraxs_search.studies import StudyFolder

    folder = StudyFolder.open(NAME)
    study = steered(folder, folder.journal())
    running = [name for name, record in study.records.items() if record.state is TrialState.RUNNING]
    verb = draw.choice(("stop", "pause", "pause", "continue", "continue", "continue"))
    if verb != "stop" and draw.random() < 0.1:
        return new_command(verb)  # the whole study
    some = study.paused if verb == "continue" and study.paused else running
    named = draw.sample(some, min(len(some), draw.randint(1, 2))) if draw.random() < 0.95 else ["99999"]
    return new_command(verb, named, {"now": draw.random() < 0.5} if verb == "stop" else {})


def send(command: Any) -> None:
    from loraxs_search.studies import StudyFolder

    StudyFolder.open(NAME).inbox().put(command)


def trials() -> list[str]:
    from loraxs_search.studies import StudyFolder

    return list(StudyFolder.open(NAME).journal().records) if StudyFolder.exists(NAME) else []


def steer(num_commands: int, num_kills: int, draw: random.Random, home: str) -> tuple[dict[str, float], list[float]]:
    """Send commands and kill drivers, in random order; return when each was sent, and when drivers were killed."""
    acts = ["command"] * num_commands + ["kill"] * num_kills
    draw.shuffle(acts)
    sent: dict[str, float] = {}
    kills: list[float] = []
    driver = start(home)
    wait_for(lambda: len(trials()) >= AT_ONCE, driver)
    for act in acts:
        if act == "command":
            command = random_command(draw)
            send(command)
            sent[command.command_id] = time.time()
            time.sleep(draw.uniform(0, 1.5))
            continue
        time.sleep(draw.uniform(0, 2.0))
        driver.kill()
        driver.wait()
        kills.append(time.time())
        driver = start(home)
        if draw.random() < 0.7:  # else commands come, and the next kill, while it starts
            before = driver_starts()
            wait_for(lambda before=before: driver_starts() > before, driver)
    from loraxs_search.steering.send import new_command

    last = new_command("finish")
    send(last)
    sent[last.command_id] = time.time()
    assert driver.wait(600) == 0, Path(home, "driver.log").read_text()[-3000:]
    return sent, kills


def driver_starts() -> int:
    from loraxs_search.studies.folder import studies_root

    return (studies_root() / NAME / "journal.jsonl").read_text().count('"driver_started"')


def wait_for(condition: Any, driver: subprocess.Popen[bytes]) -> None:
    end = time.monotonic() + 300
    while not condition():
        assert driver.poll() is None, "the driver ended early"
        assert time.monotonic() < end, "the driver did not come so far"
        time.sleep(0.1)


# ---- what came of it -------------------------------------------------------------------------------------------------
def summary(sent: dict[str, float], kills: list[float]) -> dict[str, Any]:
    """Hold the journal against what was sent."""
    from loraxs_search.records import AnswerState, TrialState
    from loraxs_search.steering import steered
    from loraxs_search.studies import StudyFolder

    folder = StudyFolder.open(NAME)
    events = [json.loads(line) for line in (folder.path / "journal.jsonl").read_text().splitlines()]
    taken = Counter(event["command"]["command_id"] for event in events if event["event"] == "commanded")
    answered = Counter(event["answer"]["command_id"] for event in events if event["event"] == "answered")
    at = {event["answer"]["command_id"]: event["at"] for event in events if event["event"] == "answered"}
    undisturbed = [
        at[name] - then
        for name, then in sent.items()
        if name in at and not any(then - 30 < k < at[name] for k in kills)
    ]
    study = steered(folder, folder.journal())
    ended = Counter(event["trial_id"] for event in events if event["event"] == "ended")
    states = Counter(record.state.value for record in study.records.values())
    done = [
        record
        for record in study.journal.commands.values()
        if record.answer and record.answer.state is AnswerState.DONE
    ]
    return {
        "sent": len(sent),
        "kills": len(kills),
        "lost": len([name for name in sent if answered[name] == 0]),
        "more_than_once": len([name for name in sent if taken[name] > 1 or answered[name] > 1]),
        "unknown": len(set(taken) - set(sent)),
        "done": len(done),
        "stopped_but_not_ended": len([t for t in study.state.stopping if study.records[t].state is TrialState.RUNNING]),
        "ended_more_than_once": sum(number > 1 for number in ended.values()),
        "trials": dict(states),
        "files_left": len(list(folder.inbox().waiting())),
        "undisturbed": len(undisturbed),
        "answered_s_median": round(statistics.median(undisturbed), 2) if undisturbed else None,
        "answered_s_max": round(max(undisturbed), 2) if undisturbed else None,
    }


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--commands", type=int, default=50)
    parser.add_argument("--kills", type=int, default=10)
    parser.add_argument("--seed", type=int, default=0)
    parser.add_argument("--json", type=Path)
    parser.add_argument("--cost", type=float, metavar="SECONDS", help="measure this instead, for so long")
    parser.add_argument("--pace", type=float, default=2.0, help="seconds between two reports of a trial, for --cost")
    parser.add_argument("--drive", action="store_true", help=argparse.SUPPRESS)
    args = parser.parse_args()
    if args.drive:
        drive()
        return
    with tempfile.TemporaryDirectory(prefix="loraxs-steer-", ignore_cleanup_errors=True) as home:
        os.environ["LORAXS_HOME"] = home
        if args.cost:
            row = cost(args.cost, args.pace)
        else:
            row = summary(*steer(args.commands, args.kills, random.Random(args.seed), home))
    print(json.dumps(row, indent=2))
    if args.json:
        args.json.write_text(json.dumps(row, indent=2))
    if args.cost:
        return
    if row["lost"] or row["more_than_once"] or row["stopped_but_not_ended"] or row["ended_more_than_once"]:
        sys.exit("a command was lost, or counted twice")


if __name__ == "__main__":
    main()
