"""A share of a real NFS server, ganesha, and its clients: Linux in user mode, each in a box.

Boxes have one kernel, and so one NFS client with one cache. A client here has a kernel of its own, with the address of
its box, whose files it sees and cannot change.
"""

from __future__ import annotations

import contextlib
import os
import shutil
import subprocess
import sys
import time
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path

from support.boxes import Box, boxes, no_boxes

SHARE = "/run/share"  # where clients mount it
_ROOT = Path(__file__).parents[2]
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


def no_nfs() -> str | None:
    """Say why there can be no server and clients here; None when there can."""
    for program, packages in _PROGRAMS.items():
        if shutil.which(program) is None:
            return f"`{program}` (Debian packages {packages}) is not installed"
    return no_boxes()


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


@contextlib.contextmanager
def nfs(num_clients: int, program: str) -> Iterator[list[Client]]:
    """Serve an empty share, and start clients that have mounted it.

    Args:
        program: What each client runs, in Python; its first line says `ready`.
    """
    with boxes(num_clients + 1) as made, contextlib.ExitStack() as stack:
        server, *others = made.boxes
        (made.folder / "program.py").write_text(program)
        _serve(server)
        clients = [Client(box, _boot(box, server.ip)) for box in others]
        for client in clients:
            stack.callback(client.power_cut)
        for client in clients:
            said = [client.line()]
            while said[-1] != "ready":
                said.append(client.line())
        yield clients


def _serve(server: Box) -> None:
    for name in ("export", "recovery"):
        (server.disk / name).mkdir()
    plugins = next(Path("/usr/lib").glob("*/ganesha"))
    config, log = server.disk / "ganesha.conf", server.disk / "ganesha.log"
    config.write_text(_SERVER.format(ip=server.ip, port=_PORT, disk=server.disk, plugins=plugins))
    server.serve("ganesha.nfsd", "-F", "-L", "/dev/stdout", "-f", str(config), "-p", "/run/ganesha.pid", log=log)
    end = time.monotonic() + 200
    while server.run("bash", "-c", f": <>/dev/tcp/{server.ip}/{_PORT}").returncode != 0:
        assert time.monotonic() < end, log.read_text()[-4000:]
        time.sleep(0.1)


def _boot(box: Box, server: str) -> subprocess.Popen[str]:
    script = box.disk / "client.sh"
    program = box.disk.parent / "program.py"
    script.write_text(
        _CLIENT.format(box=box, server=server, share=SHARE, root=_ROOT, python=sys.executable, program=program)
    )
    script.chmod(0o755)
    box.run("ip", "address", "flush", "dev", "eth0")  # the client answers there, and its box no more
    kernel = ["linux.uml", "mem=512M", "root=/dev/root", "rootfstype=hostfs", "rootflags=/", "ro", f"init={script}"]
    kernel += ["vec0:transport=raw,ifname=eth0,depth=64", "con0=fd:0,fd:1", "con=null", "ssl=null", "quiet"]
    env = os.environ | {"HOME": str(box.disk)}  # where the kernel keeps its own files; one below /tmp is not in a box
    pipe = subprocess.PIPE
    return subprocess.Popen([*box.prefix, *kernel], stdin=pipe, stdout=pipe, text=True, cwd="/", env=env)
