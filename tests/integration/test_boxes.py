"""Hosts in namespaces are like hosts: they have what is theirs, lose power and cables, and leave nothing behind."""

from __future__ import annotations

import contextlib
import os
import subprocess
import sys
from collections.abc import Sequence
from dataclasses import dataclass, field
from pathlib import Path

import psutil
import pytest
from faults.world import kill_tree
from support.boxes import Box, Boxes, boxes, no_boxes

pytestmark = [pytest.mark.long(part="cluster"), pytest.mark.timeout(120)]
PORT = 7000
# Answers each line, and prints each datagram.
SERVER = """
import socket, threading
def tcp():
    server = socket.create_server(("", PORT))
    while True:
        with server.accept()[0] as connection, connection.makefile("rwb", buffering=0) as lines:
            for line in lines:
                lines.write(line)
threading.Thread(target=tcp, daemon=True).start()
datagrams = socket.socket(socket.AF_INET, socket.SOCK_DGRAM)
datagrams.bind(("", PORT))
print("ready", flush=True)
while True:
    print(datagrams.recv(100).decode(), flush=True)
""".replace("PORT", str(PORT))
# Connects, and prints how long an answer takes; holds the connection if it is to.
CLIENT = """
import socket, sys, time
with socket.create_connection((sys.argv[1], PORT)) as connection, connection.makefile("rwb", buffering=0) as lines:
    began = time.monotonic()
    lines.write(b"hello\\n")
    lines.readline()
    print(time.monotonic() - began, flush=True)
    if "hold" in sys.argv:
        lines.readline()
""".replace("PORT", str(PORT))
SEND = """
import socket, sys
with socket.socket(socket.AF_INET, socket.SOCK_DGRAM) as sender:
    for text in sys.argv[2:]:
        sender.sendto(text.encode(), (sys.argv[1], PORT))
""".replace("PORT", str(PORT))


@pytest.fixture(scope="module", autouse=True)
def _possible():
    if reason := no_boxes():
        pytest.skip(reason)


@pytest.fixture(scope="module")
def pair(_possible):
    with boxes(2) as made:
        yield made


@dataclass
class Programs:
    """Runs programs on boxes, and ends them with the test."""

    started: list[subprocess.Popen[str]] = field(default_factory=list)

    def start(self, prefix: Sequence[str], program: str, *arguments: str) -> subprocess.Popen[str]:
        command = [*prefix, sys.executable, "-I", "-S", "-c", program, *arguments]
        self.started.append(subprocess.Popen(command, stdout=subprocess.PIPE, text=True))
        return self.started[-1]

    def serve(self, box: Box) -> subprocess.Popen[str]:
        server = self.start(box.prefix, SERVER)
        assert line(server) == "ready"
        return server

    def send(self, box: Box, to: Box, *texts: str) -> None:
        assert self.start(box.prefix, SEND, to.ip, *texts).wait() == 0

    def answer_s(self, box: Box | None, of: Box) -> float:
        """Return how long an answer takes; without `box`, on this machine."""
        return float(line(self.start(box.prefix if box else (), CLIENT, of.ip)))

    def end(self) -> None:
        for program in self.started:
            with program:
                kill_tree(program.pid)  # nsenter, and what runs on the box


@pytest.fixture
def programs():
    made = Programs()
    yield made
    made.end()


def line(process: subprocess.Popen[str]) -> str:
    assert process.stdout is not None
    return process.stdout.readline().strip()


def tcp_states(box: Box) -> list[str]:
    """Return the states of connections to a server, as the kernel numbers them."""
    rows = [row.split() for row in Path(f"/proc/{box.pid}/net/tcp").read_text().splitlines()[1:]]
    return [row[3] for row in rows if row[2].endswith(f":{PORT:04X}")]


def test_a_box_has_a_name_processes_folders_and_an_address_of_its_own(pair, programs):
    first, second = pair.boxes
    assert first.run("hostname").stdout == "box1\n"
    (Path("/tmp") / f"seen-{first.network}").touch()
    listing = first.run("ls", "/tmp").stdout.split()
    (Path("/tmp") / f"seen-{first.network}").unlink()
    assert pair.folder.name in listing
    assert f"seen-{first.network}" not in listing
    assert first.run("bash", "-c", "echo mine >/tmp/mine; echo mine >/dev/shm/mine").returncode == 0
    assert second.run("cat", "/tmp/mine").returncode != 0
    assert second.run("cat", "/dev/shm/mine").returncode != 0
    seen = first.run("ps", "-eo", "pid,comm").stdout
    assert "1 bash" in seen
    assert "python" not in seen
    assert second.ip in second.run("hostname", "--all-ip-addresses").stdout
    programs.serve(second)
    assert programs.answer_s(first, second) >= 0


def test_after_a_power_cut_nobody_is_told_and_only_the_disk_is_left(pair, programs):
    first, second = pair.boxes
    server = programs.serve(second)
    client = programs.start(first.prefix, CLIENT, second.ip, "hold")
    line(client)
    second.run("bash", "-c", "echo kept >/home/kept; echo lost >/tmp/lost; setsid sleep 1000 >/dev/null 2>&1 &")
    second.power_cut()
    assert server.wait() != 0
    open_, closed_there = "01", "08"
    assert open_ in tcp_states(first)
    assert closed_there not in tcp_states(first), "that is what a process does that is ended"
    assert client.poll() is None
    second.reboot()
    assert second.run("cat", "/home/kept").stdout == "kept\n"
    assert second.run("cat", "/tmp/lost").returncode != 0
    assert "sleep 1000" not in second.run("ps", "-eo", "args").stdout
    programs.serve(second)
    assert programs.answer_s(first, second) >= 0


def test_a_cable_can_be_cut_in_one_direction_or_both(pair, programs):
    first, second = pair.boxes
    here, there = programs.serve(first), programs.serve(second)
    programs.send(first, second, "a")  # both know each other's hardware address
    programs.send(second, first, "b")
    assert (line(there), line(here)) == ("a", "b")
    first.cut("out")
    programs.send(first, second, "lost")
    programs.send(second, first, "comes")
    assert line(here) == "comes"
    first.cut("in")
    programs.send(second, first, "lost")
    programs.send(first, second, "arrives")
    assert line(there) == "arrives"
    first.cut()
    assert "NO-CARRIER" in first.run("ip", "link", "show", "eth0").stdout
    first.join()
    programs.send(first, second, "joined")
    programs.send(second, first, "joined")
    assert (line(there), line(here)) == ("joined", "joined")


def test_a_cable_can_be_slow_and_lossy_for_other_hosts_and_for_this_machine(pair, programs):
    first, second = pair.boxes
    server = programs.serve(second)
    second.slow(delay_s=0.1)
    assert programs.answer_s(first, second) >= 0.2
    assert programs.answer_s(None, second) >= 0.2
    second.slow(loss=0.5)
    programs.send(first, second, *map(str, range(200)), *["end"] * 40)  # one of these comes, and after the others
    arrived = list(iter(lambda: line(server), "end"))
    assert 50 < len(arrived) < 150


def test_a_box_says_that_no_memory_is_left_and_this_machine_does_not(pair):
    def available_kb(said: str) -> int:
        return int(said.partition("MemAvailable:")[2].split()[0])

    box = pair.boxes[0]
    box.say_memory(left=False)
    assert available_kb(box.run("cat", "/proc/meminfo").stdout) == 1000
    assert available_kb(Path("/proc/meminfo").read_text()) > 1000
    box.say_memory(left=True)
    assert available_kb(box.run("cat", "/proc/meminfo").stdout) > 1000


def test_nothing_is_left_of_boxes_whatever_ran_in_them():
    spaces = set[str]()
    with pytest.raises(ZeroDivisionError), boxes(2, users=["searcher"]) as made:
        first, second = made.boxes
        daemon = ["bash", "-c", "setsid nohup sleep 1000 >/dev/null 2>&1 & disown"]
        for box in made.boxes:
            assert box.run(*daemon).returncode == 0
            spaces.add(_pid_space(box.pid))
        first.slow(delay_s=0.01)
        second.cut("out")
        first.power_cut()
        first.reboot()
        spaces.add(_pid_space(first.pid))
        assert all(_traces(made, spaces))
        raise ZeroDivisionError
    assert not made.folder.exists()
    assert not any(_traces(made, spaces))


def _traces(made: Boxes, pid_spaces: set[str]) -> tuple[list[str], list[psutil.Process]]:
    """Return the interfaces and processes of boxes that this machine has."""
    network = made.boxes[0].network
    interfaces = [name for name in os.listdir("/sys/class/net") if name.startswith(network)]  # noqa: PTH208
    processes = []
    for process in psutil.process_iter():
        with contextlib.suppress(OSError, psutil.Error):  # it has ended since
            if _pid_space(process.pid) in pid_spaces or any(network in word for word in process.cmdline()):
                processes.append(process)
    return interfaces, processes


def _pid_space(pid: int) -> str:
    return str(Path(f"/proc/{pid}/ns/pid").readlink())
