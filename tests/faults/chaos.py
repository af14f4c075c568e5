"""Random faults in random combinations, while people search, promote and pull; then every answer judged.

    python tests/faults/chaos.py [--minutes 5] [--seed 0] [--history FOLDER]

An episode is made from its seed: faults, whom they hit, when and for how long. It begins with a champion, goes on until
both of its searches have ended, and is judged by `history.py` and by what lies in the study folders, in MLflow and in
the registry then. Episodes follow each other, seed by seed, until the minutes are over. One that breaks a rule prints
its seed. When a fault strikes is the same in each run, what it interrupts is not.
"""

from __future__ import annotations

import argparse
import contextlib
import functools
import operator
import os
import random
import signal
import subprocess
import sys
import tempfile
import threading
import time
from collections import Counter, defaultdict
from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import psutil

if __name__ == "__main__":
    sys.path.insert(0, str(Path(__file__).parents[1]))

from faults.arena import REPORTS, SEARCH_S, STORED, STUDIES, Arena, arena, missing_means
from faults.history import broken_log, is_continued, violations
from faults.world import signal_all, titled, tree
from loraxs_search.studies.lease import LEASE_S

SETTLE_S = 420.0  # until everything has to have ended after the last fault
_PAUSE_S = 0.3

FAULTS_FOR_S = 100.0  # of an episode
_EVERY_S = 4.0  # a fault, on average

# ---- kinds of faults: how each is made and unmade --------------------------------------------------------------------
Strike = Callable[[Arena, int], contextlib.AbstractContextManager[bool]]


@dataclass(frozen=True)
class Fault:
    """A fault of an episode.

    Args:
        at: Seconds from the beginning.
        victim: Which of the things that it can hit; a number that is taken modulo how many there are.
    """

    kind: str
    at: float
    lasts: float
    victim: int


@dataclass(frozen=True)
class FaultKind:
    """How a fault is made.

    Args:
        strike: Makes it, and unmakes it when its context ends; yields whether there was anything to hit.
        target: Two faults at one target do not overlap: the second waits.
        hides_registry: Whether readers may have to answer from what they know.
    """

    strike: Strike
    target: str
    hides_registry: bool = False


def _under(process: subprocess.Popen[bytes] | None) -> list[psutil.Process]:
    return tree(process.pid) if process else []


def _driver(place: Arena, victim: int) -> list[psutil.Process]:
    return place.driver(STUDIES[victim % 2])


def _worker(place: Arena, victim: int) -> list[psutil.Process]:
    return _under(place.worker(victim).process)


def _titled(title: str) -> Callable[[Arena, int], list[psutil.Process]]:
    return lambda place, victim: titled(_worker(place, victim), title)


def _server(name: str) -> Callable[[Arena, int], list[psutil.Process]]:
    return lambda place, _: _under(getattr(place.store, name).process)


def _signalled(
    number: signal.Signals, find: Callable[[Arena, int], list[psutil.Process]], then: signal.Signals | None = None
) -> Strike:
    @contextlib.contextmanager
    def strike(place: Arena, victim: int) -> Iterator[bool]:
        signal_all(found := find(place, victim), number)
        yield bool(found)
        if then is not None:
            signal_all(found, then)

    return strike


_killed = functools.partial(_signalled, signal.SIGKILL)
_frozen = functools.partial(_signalled, signal.SIGSTOP, then=signal.SIGCONT)


@contextlib.contextmanager
def _second_driver(place: Arena, victim: int) -> Iterator[bool]:
    """Resume a study that is being searched, as somebody does who does not know."""
    is_searched = bool(_driver(place, victim))
    place.drive(STUDIES[victim % 2], SEARCH_S)
    yield is_searched


@contextlib.contextmanager
def _driver_elsewhere(place: Arena, _: int) -> Iterator[bool]:
    """Have somebody on another machine go on with a study that may be searched here."""
    is_searched = bool(place.driver(STORED))
    place.drive_elsewhere()
    yield is_searched


@contextlib.contextmanager
def _driver_overtaken(place: Arena, _: int) -> Iterator[bool]:
    """Freeze a driver until another machine's has had time to take its study over, and let it go on beside that."""
    other = threading.Thread(target=place.drive_elsewhere)
    with _frozen(lambda place, _: place.driver(STORED))(place, 0) as is_hit:
        other.start()
        other.join(2 * LEASE_S)
        yield is_hit
    other.join()


def _made(make: Callable[[Arena, int], object], unmake: Callable[[Arena, int], object]) -> Strike:
    @contextlib.contextmanager
    def strike(place: Arena, victim: int) -> Iterator[bool]:
        make(place, victim)
        yield True
        unmake(place, victim)

    return strike


def _server_killed(name: str) -> Strike:
    number = signal.SIGQUIT if name == "database" else signal.SIGKILL  # PostgreSQL ends at once by SIGQUIT
    server = operator.attrgetter(f"store.{name}")
    return _made(lambda place, _: server(place).kill(number), lambda place, _: server(place).start())


KINDS = {
    "driver killed": FaultKind(_killed(_driver), "driver {}"),
    "driver frozen": FaultKind(_frozen(_driver), "driver {}"),
    "second driver": FaultKind(_second_driver, "driver {}"),
    "driver elsewhere": FaultKind(_driver_elsewhere, "elsewhere"),
    "driver overtaken": FaultKind(_driver_overtaken, "elsewhere"),
    "host process killed": FaultKind(_killed(_titled("HostActor")), "worker {}"),
    "trial process killed": FaultKind(_killed(_titled("TrialAdvancer")), "worker {}"),
    "worker's power cut": FaultKind(_made(lambda place, it: place.box(it).power_cut(), Arena.reboot), "worker {}"),
    "worker frozen": FaultKind(_frozen(_worker), "worker {}"),
    # The kernel says that the memory is full: Ray's monitor ends what runs there, again and again.
    "worker's memory full": FaultKind(
        _made(
            lambda place, it: place.box(it).say_memory(left=False),
            lambda place, it: place.box(it).say_memory(left=True),
        ),
        "worker {}",
    ),
    "worker's cable cut": FaultKind(
        _made(lambda place, it: place.box(it).cut(), lambda place, it: place.box(it).join()), "worker {}"
    ),
    "MLflow killed": FaultKind(_server_killed("mlflow"), "store", hides_registry=True),
    "MLflow frozen": FaultKind(_frozen(_server("mlflow")), "store", hides_registry=True),
    "PostgreSQL killed": FaultKind(_server_killed("database"), "store", hides_registry=True),
    "S3 killed": FaultKind(_server_killed("s3"), "store", hides_registry=True),
    "S3 frozen": FaultKind(_frozen(_server("s3")), "store", hides_registry=True),
    "disk full": FaultKind(
        _made(lambda place, _: place.disk.fill(), lambda place, _: place.disk.free()), "disk", hides_registry=True
    ),
}


def plan(seed: int) -> tuple[Fault, ...]:
    """Return the faults of an episode, by time."""
    rng, found, free_at = random.Random(seed), list[Fault](), dict[str, float]()
    at = rng.uniform(1.0, _EVERY_S)
    while at < FAULTS_FOR_S:
        kind, victim, lasts = rng.choice(list(KINDS)), rng.randrange(2), rng.uniform(1.0, 15.0)
        target = KINDS[kind].target.format(victim)
        if free_at.get(target, 0.0) <= at:
            found.append(Fault(kind, round(at, 2), round(lasts, 2), victim))
            free_at[target] = at + lasts + 5.0
        at += rng.expovariate(1 / _EVERY_S)
    return tuple(found)


# ---- an episode ------------------------------------------------------------------------------------------------------
class Episode:
    """People and faults at once, and the rules that must hold for them."""

    def __init__(self, place: Arena, faults: Sequence[Fault]) -> None:
        self._place, self._faults = place, faults
        self.history = place.history
        self._over = threading.Event()
        self._broken = list[str]()
        self._targets = defaultdict[str, threading.Lock](threading.Lock)

    def run(self) -> list[str]:
        """Return the rules that were broken."""
        began = time.monotonic()
        searches = [threading.Thread(target=self._search, args=(study,)) for study in STUDIES]
        faults = [threading.Thread(target=self._strike, args=(began, fault)) for fault in self._faults]
        around = [
            threading.Thread(target=self._again_and_again, args=(act,))
            for act in (
                *(self._place.pull, self._place.look, self._place.look_at_lease),
                *(self._watch_logs, self._promote),
            )
        ]
        for thread in [*searches, *faults, *around]:
            thread.start()
        for thread in faults:
            thread.join()
        end = time.monotonic() + SETTLE_S
        for thread in searches:
            thread.join(max(0.0, end - time.monotonic()))
        stuck = [study for study, thread in zip(STUDIES, searches, strict=True) if thread.is_alive()]
        self._over.set()
        for study in stuck:
            signal_all(self._place.driver(study), signal.SIGKILL)
        for thread in [*searches, *around]:
            thread.join()
        if stuck:
            return [*self._broken, *(f"{study} has not ended {SETTLE_S:g} s after the last fault" for study in stuck)]
        return [*self._broken, *self._judged()]

    def _search(self, study: str) -> None:
        """Search as a patient person does: begin again until it has ended."""
        while not self._over.is_set():
            op = self._place.drive(study)
            if op.value.get("code") == 0:
                return
            self._over.wait(3.0)

    def _strike(self, began: float, fault: Fault) -> None:
        kind = KINDS[fault.kind]
        target = self._targets[kind.target.format(fault.victim)]
        self._over.wait(max(0.0, began + fault.at - time.monotonic()))

        def strike() -> dict[str, Any]:
            with target, kind.strike(self._place, fault.victim) as is_hit:  # it may take longer than planned to unmake
                time.sleep(fault.lasts)
            return {"is_hit": is_hit}

        op = self.history.do("fault", strike, fault=fault.kind, hides_registry=kind.hides_registry)
        if op.error:
            self._broken.append(f"the fault itself failed: {fault}: {op.error}")

    def _again_and_again(self, act: Callable[[], object]) -> None:
        while not self._over.is_set():
            try:
                act()
            except Exception as error:  # noqa: BLE001  # a fault of this script may not pass for a quiet history
                self._broken.append(f"{act.__name__} failed: {error!r}")
                return
            self._over.wait(_PAUSE_S)

    def _promote(self) -> None:
        self._place.promote()
        self._over.wait(2.0)

    def _watch_logs(self) -> None:
        for study in STUDIES:
            before, after = self._place.log_grown(study)
            if not is_continued(before, after):
                self._broken.append(f"{study}'s log has lost lines that it had")

    def _judged(self) -> list[str]:
        place, found = self._place, list[str]()
        for study in STUDIES:
            found += [f"{study}: {fault}" for fault in broken_log(place.events(study), place.world.trials, REPORTS)]
        for study in STUDIES:
            code, said = place.world.end(place.resume(study))  # what MLflow lacks is written now
            if code:
                found.append(f"{study} cannot be resumed at the end: {said[-500:]}")
            if place.differs_from_copy(study):
                found.append(f"{study}'s log and its copy in the storage differ")
        found += [f"log and MLflow differ: {lost}" for lost in place.world.losses()]
        for ask in (place.look, place.pull, place.look_at_lease):
            if (op := ask()).error:
                found.append(f"a {op.kind} gets no answer at the end: {op.error}")
        return [*found, *violations(self.history, place.versions())]


# ---- the command -----------------------------------------------------------------------------------------------------
def main() -> int:
    """Run episodes until the minutes are over; exit 1 where a rule was broken."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--minutes", type=float, default=5.0)
    parser.add_argument("--seed", type=int, default=0)
    parser.add_argument("--history", type=Path, help="a folder for one file an episode")
    arguments = parser.parse_args()
    os.environ |= {"MLFLOW_DISABLE_TELEMETRY": "true", "HF_HUB_OFFLINE": "1", "OMP_WAIT_POLICY": "PASSIVE"}
    with tempfile.TemporaryDirectory(prefix="lx-") as folder:
        if reason := missing_means(Path(folder)):
            parser.error(reason)
    end, seed, broken = time.monotonic() + 60 * arguments.minutes, arguments.seed, list[int]()
    while seed == arguments.seed or time.monotonic() < end:
        faults = plan(seed)
        with arena() as place:
            found, history = Episode(place, faults).run(), place.history
        if arguments.history:
            history.write(arguments.history / f"{seed}.jsonl")
        hits = Counter(op.value["fault"] for op in history.done("fault") if op.value["is_hit"])
        print(f"seed {seed}: {hits.total()} of {len(faults)} faults hit, {len(found)} rules broken", flush=True)
        for line in (f"{dict(hits)}", *found):
            print(f"  {line}", flush=True)
        broken += [seed] if found else []
        seed += 1
    print(f"{seed - arguments.seed} episodes, seeds that break a rule: {broken}")
    return 1 if broken else 0


if __name__ == "__main__":
    sys.exit(main())
