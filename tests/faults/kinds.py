"""The kinds of faults of `chaos.py`: how each is made and unmade, and which of them an episode has."""

from __future__ import annotations

import contextlib
import random
import signal
import subprocess
import threading
from collections.abc import Callable, Iterator
from dataclasses import dataclass

import psutil

from faults.arena import SEARCH_S, STORED, STUDIES, Arena
from faults.world import signal_all, titled, tree
from loraxs_search.studies.lease import LEASE_S

FAULTS_FOR_S = 100.0  # of an episode
_EVERY_S = 4.0  # a fault, on average

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


def _killed(find: Callable[[Arena, int], list[psutil.Process]]) -> Strike:
    @contextlib.contextmanager
    def strike(place: Arena, victim: int) -> Iterator[bool]:
        signal_all(found := find(place, victim), signal.SIGKILL)
        yield bool(found)

    return strike


def _frozen(find: Callable[[Arena, int], list[psutil.Process]]) -> Strike:
    @contextlib.contextmanager
    def strike(place: Arena, victim: int) -> Iterator[bool]:
        signal_all(found := find(place, victim), signal.SIGSTOP)
        yield bool(found)
        signal_all(found, signal.SIGCONT)

    return strike


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


@contextlib.contextmanager
def _power_cut(place: Arena, victim: int) -> Iterator[bool]:
    place.box(victim).power_cut()
    yield True
    place.reboot(victim)


@contextlib.contextmanager
def _worker_memory_full(place: Arena, victim: int) -> Iterator[bool]:
    """Have the worker's kernel say that its memory is full: Ray's monitor ends what runs there, again and again."""
    place.box(victim).say_memory(left=False)
    yield True
    place.box(victim).say_memory(left=True)


@contextlib.contextmanager
def _cable_cut(place: Arena, victim: int) -> Iterator[bool]:
    place.box(victim).cut()
    yield True
    place.box(victim).join()


def _server_killed(name: str) -> Strike:
    @contextlib.contextmanager
    def strike(place: Arena, _: int) -> Iterator[bool]:
        server = getattr(place.store, name)
        server.kill(signal.SIGQUIT if name == "database" else signal.SIGKILL)  # PostgreSQL ends at once by SIGQUIT
        yield True
        server.start()

    return strike


@contextlib.contextmanager
def _disk_full(place: Arena, _: int) -> Iterator[bool]:
    place.disk.fill()
    yield True
    place.disk.free()


KINDS = {
    "driver killed": FaultKind(_killed(_driver), "driver {}"),
    "driver frozen": FaultKind(_frozen(_driver), "driver {}"),
    "second driver": FaultKind(_second_driver, "driver {}"),
    "driver elsewhere": FaultKind(_driver_elsewhere, "elsewhere"),
    "driver overtaken": FaultKind(_driver_overtaken, "elsewhere"),
    "host process killed": FaultKind(_killed(_titled("HostActor")), "worker {}"),
    "trial process killed": FaultKind(_killed(_titled("TrialAdvancer")), "worker {}"),
    "worker's power cut": FaultKind(_power_cut, "worker {}"),
    "worker frozen": FaultKind(_frozen(_worker), "worker {}"),
    "worker's memory full": FaultKind(_worker_memory_full, "worker {}"),
    "worker's cable cut": FaultKind(_cable_cut, "worker {}"),
    "MLflow killed": FaultKind(_server_killed("mlflow"), "store", hides_registry=True),
    "MLflow frozen": FaultKind(_frozen(_server("mlflow")), "store", hides_registry=True),
    "PostgreSQL killed": FaultKind(_server_killed("database"), "store", hides_registry=True),
    "S3 killed": FaultKind(_server_killed("s3"), "store", hides_registry=True),
    "S3 frozen": FaultKind(_frozen(_server("s3")), "store", hides_registry=True),
    "disk full": FaultKind(_disk_full, "disk", hides_registry=True),
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
