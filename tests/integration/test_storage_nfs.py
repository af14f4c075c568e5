"""A storage on a real NFS share that two machines have mounted, each with a kernel, and so a cache, of its own."""

from __future__ import annotations

import ast
import re
import sys
from collections.abc import Callable, Iterator
from pathlib import Path

import pytest
from support.nfs import SHARE, Client, nfs, no_nfs

pytestmark = [pytest.mark.long(part="storage"), pytest.mark.timeout(600)]
CONTRACT = Path(__file__).parents[1] / "unit" / "studies" / "test_studies_buckets.py"
# Answers each line, an expression. When a second of its clock passes, it says so and waits for a line.
PROGRAM = f"""
import logging, subprocess, sys
from loraxs_search.errors import LoraxsError
from loraxs_search.studies.storage import Storage
from loraxs_search.log.clock import Clock
from loraxs_search.studies.lease import Lease

class HandClock(Clock):
    time = 0.0

    def now(self):
        return self.time

    def sleep(self, seconds):
        self.time += seconds
        print("slept", flush=True)
        sys.stdin.readline()

logging.disable()  # answers are all that is read
storage, clock = Storage({SHARE!r}), HandClock()
print("ready", flush=True)
for line in sys.stdin:
    try:
        print(repr(eval(line)), flush=True)
    except LoraxsError as error:
        print(f"{{type(error).__name__}}: {{error}}", flush=True)
"""


@pytest.fixture(scope="module")
def clients() -> Iterator[list[Client]]:
    if reason := no_nfs():
        pytest.skip(reason)
    with nfs(2, PROGRAM) as made:
        yield made


def test_a_share_keeps_the_contract_of_a_storage(clients: list[Client]) -> None:
    few = ["PYTEST_DISABLE_PLUGIN_AUTOLOAD=1", sys.executable, "-m", "pytest", "-p", "xdist", "-p", "pytest_timeout"]
    options = ["-q", "-p", "no:cacheprovider", f"--basetemp={SHARE}/tests", str(CONTRACT), "-k", "[folder]"]
    clients[0].send(f"subprocess.run(['env', *{few}, *{options}], capture_output=True, text=True).stdout")
    said = ast.literal_eval(clients[0].line())
    assert re.fullmatch(r"\d+ passed, \d+ deselected.*", said.splitlines()[-1]), said


def test_of_two_machines_one_creates_an_object_and_both_see_it_so(clients: list[Client]) -> None:
    names, winners = [client.box.name for client in clients], []
    for number in range(30):
        key = f"race/{number}"
        for client in clients if number % 2 else reversed(clients):
            client.send(f"storage.create({key!r}, b'of {client.box.name}')")
        made = {name: client.line() for name, client in zip(names, clients, strict=True)}
        (winner,) = (name for name in names if made[name] != "None")
        for client in clients:
            assert client.ask(f"storage.versions('race')[{key!r}], storage.get({key!r})") == (
                f"({made[winner]}, b'of {winner}')"
            )
        winners.append(winner)
    assert set(winners) == set(names), "they raced"


def test_a_lease_is_refused_while_it_is_held_and_taken_over_when_its_holder_says_nothing(clients: list[Client]) -> None:
    one, two = clients
    for client in clients:
        assert client.ask("globals().update(lease=Lease(storage, 'study', clock))") == "None"
    assert take(one) == ("None", 0)
    said, slept = take(two, meanwhile=lambda slept: slept == 20 and one.ask("lease.renew()"))
    assert said.startswith("StudyError:")
    assert (f"one on {one.box.name}" in said, slept) == (True, 20)
    assert take(two) == ("None", 30)
    one.ask("setattr(clock, 'time', 30)")
    assert f"one on {two.box.name} took over" in one.ask("lease.check()")
    assert f"one on {two.box.name} took over" in one.ask("lease.renew()")
    assert two.ask("lease.renew()") == "None"
    two.power_cut()
    assert one.ask("globals().update(lease=Lease(storage, 'study', clock))") == "None"
    assert take(one) == ("None", 30)


def take(client: Client, meanwhile: Callable[[int], object] = str) -> tuple[str, int]:
    """Have a client take the lease, and return what it said and how many seconds of its clock had passed.

    Args:
        meanwhile: Called at each of them with their number.
    """
    said, slept = client.ask("lease.take()"), 0
    while said == "slept":
        slept += 1
        meanwhile(slept)
        said = client.ask("")
    return said, slept
