"""A storage on a real NFS share that two machines have mounted, each with a kernel, and so a cache, of its own."""

from __future__ import annotations

import contextlib
import os
import shutil
import subprocess
import sys
from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path

import pytest
from support.boxes import Box, boxes, no_boxes
from support.pages import ROOT
from support.shell import until

SHARE = "/run/share"  # where clients mount it
_PROGRAMS = {"ganesha.nfsd": "nfs-ganesha, nfs-ganesha-vfs", "linux.uml": "user-mode-linux", "modprobe": "kmod"}
_PORT = 2049
_SERVER = """
NFS_CORE_PARAM {{
  Protocols = 4; Bind_addr = {ip}; NFS_Port = {port}; Enable_NLM = false; Enable_RQUOTA = false;
  allow_set_io_flusher_fail = true; Plugins_Dir = {plugins};
}}
NFSV4 {{ Graceless = true; RecoveryBackend = fs; RecoveryRoot = {disk}/recovery; Minor_Versions = 1, 2; }}
EXPORT {{
  Export_Id = 1; Path = {disk}/export; Pseudo = /studies; Access_Type = RW; Squash = No_Root_Squash;
  SecType = sys; Protocols = 4; Transports = TCP; FSAL {{ Name = VFS; }}
}}
"""
# The first process of a client. Options of the mount are the defaults.
_CLIENT = """#!/bin/bash
set -eu
export PATH=/usr/sbin:/usr/bin:/sbin:/bin HOME=/run TMPDIR=/run LORAXS_HOME=/run/home PYTHONPATH={root}
mount -t proc proc /proc
mount -t tmpfs tmpfs /run
hostname {box.name}
ip link set lo up
ip address add {box.ip}/24 dev vec0
ip link set vec0 up
mkdir -p /run/modules/lib {share}
ln -s /usr/lib/uml/modules /run/modules/lib/modules
modprobe --dirname=/run/modules nfsv4
mount -t nfs4 -o vers=4.2,addr={server},clientaddr={box.ip} {server}:/studies {share}
stty -echo
cd {root}
exec {python} {program}
"""


@dataclass
class Client:
    """A machine that has mounted the share, and runs one program."""

    box: Box
    kernel: subprocess.Popen[str]

    def send(self, line: str) -> None:
        """Send the program a line."""
        assert self.kernel.stdin is not None
        self.kernel.stdin.write(f"{line}\n")
        self.kernel.stdin.flush()

    def line(self) -> str:
        """Wait for a line of the program, and return it."""
        assert self.kernel.stdout is not None
        line = self.kernel.stdout.readline()
        assert line, f"{self.box.name} ended"
        return line.strip()

    def ask(self, line: str) -> str:
        """Send a line and return the answer."""
        self.send(line)
        return self.line()

    def power_cut(self) -> None:
        """End it at once; the server is not told."""
        self.box.power_cut()
        self.kernel.communicate()


def _serve(server: Box) -> None:
    for name in ("export", "recovery"):
        (server.disk / name).mkdir()
    plugins = next(Path("/usr/lib").glob("*/ganesha"))
    config, log = server.disk / "ganesha.conf", server.disk / "ganesha.log"
    config.write_text(_SERVER.format(ip=server.ip, port=_PORT, disk=server.disk, plugins=plugins))
    server.serve("ganesha.nfsd", "-F", "-L", "/dev/stdout", "-f", str(config), "-p", "/run/ganesha.pid", log=log)
    asked = ("bash", "-c", f": <>/dev/tcp/{server.ip}/{_PORT}")
    until(lambda: server.run(*asked).returncode == 0, lambda: log.read_text()[-4000:])


def _boot(box: Box, server: Box) -> Client:
    """Start a client, and return when its program says `ready`."""
    script, program = box.disk / "client.sh", box.disk / "program.py"
    program.write_text(PROGRAM)
    words = {"server": server.ip, "share": SHARE, "root": ROOT, "python": sys.executable, "program": program}
    script.write_text(_CLIENT.format(box=box, **words))
    script.chmod(0o755)
    box.run("ip", "address", "flush", "dev", "eth0")  # the client answers there, and its box no more
    kernel = ["linux.uml", "mem=512M", "root=/dev/root", "rootfstype=hostfs", "rootflags=/", "ro", f"init={script}"]
    kernel += ["vec0:transport=raw,ifname=eth0,depth=64", "con0=fd:0,fd:1", "con=null", "ssl=null", "quiet"]
    env = os.environ | {"HOME": str(box.disk)}  # where the kernel keeps its own files; one below /tmp is not in a box
    pipe = subprocess.PIPE
    command = [*box.prefix, *kernel]
    return Client(box, subprocess.Popen(command, stdin=pipe, stdout=pipe, text=True, cwd="/", env=env))


pytestmark = [pytest.mark.long(part="storage"), pytest.mark.timeout(600)]
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
def clients():
    """An empty share, and two machines that have mounted it."""
    for program, packages in _PROGRAMS.items():
        if shutil.which(program) is None:
            pytest.skip(f"`{program}` (Debian packages {packages}) is not installed")
    if reason := no_boxes():
        pytest.skip(reason)
    with boxes(3) as made, contextlib.ExitStack() as stack:
        server, *others = made.boxes
        _serve(server)
        clients = [_boot(box, server) for box in others]
        for client in clients:
            stack.callback(client.power_cut)
        for client in clients:
            while client.line() != "ready":
                pass  # what its kernel says
        yield clients


def test_of_two_machines_one_creates_an_object_and_both_see_it_so(clients):
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


def test_a_lease_is_refused_while_it_is_held_and_taken_over_when_its_holder_says_nothing(clients):
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
