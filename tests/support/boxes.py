"""Hosts on this machine: boxes with an address, processes, mounts, a name and sshd of their own, on one network.

A box is a set of namespaces. It is ended by the pid of its first process: the kernel then ends all others in it. The
pid namespace matters: `ray stop` ends every Ray that it sees in /proc. A box has the machine's programs; its own are
/tmp, /run and /dev/shm, empty at each start, and /home and /root, its disk.
"""

from __future__ import annotations

import contextlib
import os
import secrets
import shlex
import shutil
import signal
import subprocess
import sys
import tempfile
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass, field
from pathlib import Path

_ROOT = Path(__file__).parents[2]
_NAMESPACES = ("--net", "--uts", "--pid", "--mount", "--ipc")
_SSHD_CONFIG = """
HostKey {folder}/host_key
AuthorizedKeysFile {folder}/key.pub
PidFile none
UsePAM no
StrictModes no
PasswordAuthentication no
PermitRootLogin prohibit-password
Subsystem sftp internal-sftp
"""
_USER_ID = 4242


# ---- what is missing here --------------------------------------------------------------------------------------------
def no_boxes() -> str | None:
    """Say why boxes cannot be made here; None when they can."""
    for program, package in {"ip": "iproute2", "unshare": "util-linux", "nsenter": "util-linux"}.items():
        if shutil.which(program) is None:
            return f"`{program}` (Debian package {package}) is not installed"
    name = f"lx{secrets.token_hex(3)}"
    spaces = ["unshare", *_NAMESPACES, "--fork", "--mount-proc", "true"]
    for command in (["ip", "link", "add", name, "type", "bridge"], ["ip", "link", "del", name], spaces):
        done = subprocess.run(command, capture_output=True, text=True, check=False)
        if done.returncode != 0:
            return f"no right to make namespaces and networks: {done.stderr.strip()}"
    return None


# ---- one box ---------------------------------------------------------------------------------------------------------
@dataclass
class Box:
    """A host.

    Args:
        number: Its number on the network, from 1 on.
        network: Beginning of the names of its interfaces on this machine.
        start_script: What its first process runs once its cable is plugged in.
        disk: What stays when its power is cut, with its logs.
    """

    number: int
    ip: str
    network: str
    start_script: str
    disk: Path
    pid: int = 0
    _process: subprocess.Popen[str] | None = None
    _served: list[subprocess.Popen[bytes]] = field(default_factory=list)

    @property
    def name(self) -> str:
        return f"box{self.number}"

    @property
    def prefix(self) -> tuple[str, ...]:
        """What a command is started with to run here; another one after each start."""
        return ("nsenter", "--target", str(self.pid), *_NAMESPACES, "--")

    def serve(self, *command: str, log: Path, env: Mapping[str, str] | None = None) -> None:
        """Start a program here, as root, that ends with the box."""
        with log.open("ab") as out:
            process = subprocess.Popen(
                [*self.prefix, *command],
                env={**os.environ, **(env or {})},
                stdin=subprocess.DEVNULL,
                stdout=out,
                stderr=out,
                start_new_session=True,
            )
        self._served.append(process)

    def run(
        self, *command: str, env: Mapping[str, str] | None = None, timeout_s: float = 60.0
    ) -> subprocess.CompletedProcess[str]:
        """Run a command here, as root, and return what it said; whether it succeeded is the caller's to look at."""
        return subprocess.run(
            [*self.prefix, *command],
            env={**os.environ, **(env or {})},
            capture_output=True,
            text=True,
            timeout=timeout_s,
            check=False,
        )

    # ---- power -------------------------------------------------------------------------------------------------------
    def start(self) -> None:
        """Start it, and return when its network and sshd are there."""
        assert self._process is None, f"{self.name} runs"
        command = ["unshare", *_NAMESPACES, "--fork", "--kill-child", "--mount-proc", "bash", "-c", self.start_script]
        with (self.disk / "start.log").open("a") as log:
            self._process = process = subprocess.Popen(
                command,
                stdin=subprocess.PIPE,
                stdout=subprocess.PIPE,
                stderr=log,
                text=True,
                cwd="/",
                start_new_session=True,
            )
        assert process.stdin is not None
        self._await("pid")  # as the box counts; this machine's number is
        self.pid = int(Path(f"/proc/{process.pid}/task/{process.pid}/children").read_text())
        plug, inner = self._interface("v"), self._interface("p")
        _ip("link", "add", plug, "type", "veth", "peer", "name", inner, "address", f"02:00:00:00:00:{self.number:02x}")
        _ip("link", "set", inner, "netns", str(self.pid))
        _ip("link", "set", plug, "arp", "off")  # this machine must not answer on it what others are asked
        self.join()
        process.stdin.write(f"{inner}\n")
        process.stdin.flush()
        self._await("ready")

    def power_cut(self) -> None:
        """End everything on it at once. Nobody is told: no connection is closed."""
        if self._process is None:
            return
        with contextlib.suppress(subprocess.CalledProcessError):  # a start that failed had none yet
            _ip("link", "del", self._interface("v"))
        with self._process:  # it ends when all in the box have
            os.kill(self.pid or self._process.pid, signal.SIGKILL)
        while self._served:
            self._served.pop().wait()
        self._process, self.pid = None, 0

    def reboot(self) -> None:
        """Cut the power, if it is on, and start again, with an empty /tmp and the same disk."""
        self.power_cut()
        self.start()

    def _await(self, word: str) -> None:
        assert self._process is not None
        assert self._process.stdout is not None
        if self._process.stdout.readline().split()[:1] != [word]:
            self.power_cut()
            raise AssertionError(f"{self.name} did not start: {(self.disk / 'start.log').read_text()[-2000:]}")

    def say_memory(self, *, left: bool) -> None:
        """Let its kernel say how much memory this machine has left, or that none is left; until its next start."""
        said, own = "/proc/meminfo", "/root/meminfo"
        full = f"awk '/^Mem(Free|Available):/ {{$2 = 1000}} 1' {said} >{own} && mount --bind {own} {said}"
        self.run("bash", "-c", f"umount {said}" if left else full).check_returncode()

    # ---- cable -------------------------------------------------------------------------------------------------------
    def cut(self) -> None:
        """Pull its cable."""
        _ip("link", "set", self._interface("v"), "down")

    def join(self) -> None:
        """Plug its cable in."""
        _ip("link", "set", self._interface("v"), "master", f"{self.network}b", "up")

    def _interface(self, kind: str) -> str:
        return f"{self.network}{kind}{self.number}"


# ---- all of them -----------------------------------------------------------------------------------------------------
@dataclass
class Boxes:
    """Hosts on one network.

    Args:
        folder: Keys, disks and logs; every box sees it at this path, and every user may read it.
        ip: This machine's own address on the network.
    """

    folder: Path
    ip: str
    boxes: list[Box]


@contextlib.contextmanager
def boxes(count: int, *, show: Sequence[Path] = (), users: Sequence[str] = (), sshd: bool = False) -> Iterator[Boxes]:
    """Start hosts with a network between them, and take all of it away.

    Args:
        show: Folders of this machine that boxes see at the same path, beside the checkout and the environment of the
            tests; those that lie below /tmp, /run, /home and /root would be hidden otherwise.
        users: Accounts of the boxes, each with a folder below /home.
        sshd: Whether sshd runs; root and `users` get in with `key` of the folder.
    """
    name, net = f"lx{secrets.token_hex(2)}", f"10.{71 + secrets.randbelow(100)}.{secrets.randbelow(250)}"
    folder = Path(tempfile.mkdtemp(prefix="lx-", dir="/tmp"))
    folder.chmod(0o755)
    shown = [folder, _ROOT, Path(sys.prefix), Path(sys.base_prefix), *show]
    made = Boxes(folder, f"{net}.254", [])
    try:
        _write_accounts(folder, count, net, users)
        if sshd:
            for key in ("host_key", "key"):
                subprocess.run(["ssh-keygen", "-q", "-t", "ed25519", "-N", "", "-f", folder / key], check=True)
            (folder / "sshd_config").write_text(_SSHD_CONFIG.format(folder=folder))
        for number in range(1, count + 1):
            disk = folder / str(number)
            for part in ("home", "root", "tmp", "run"):
                (disk / part).mkdir(parents=True)
            for user_id, user in enumerate(users, _USER_ID):
                copied = shutil.copytree("/etc/skel", disk / "home" / user)
                for path in (copied, *copied.rglob("*")):
                    os.chown(path, user_id, user_id)
            script = _start_script(f"box{number}", f"{net}.{number}", disk, shown, sshd=sshd)
            made.boxes.append(Box(number, f"{net}.{number}", name, script, disk))
        _ip("link", "add", f"{name}b", "type", "bridge")
        _ip("address", "add", f"{made.ip}/24", "dev", f"{name}b")
        _ip("link", "set", f"{name}b", "up")
        for box in made.boxes:
            box.start()
        yield made
    finally:
        for box in made.boxes:
            box.power_cut()
        subprocess.run(["ip", "link", "del", f"{name}b"], capture_output=True, check=False)
        mounts = [line for line in Path("/proc/self/mountinfo").read_text().splitlines() if f" {folder}/" in line]
        assert not mounts, f"removing {folder} would remove what is mounted there: {mounts}"
        shutil.rmtree(folder)


def _write_accounts(folder: Path, count: int, net: str, users: Sequence[str]) -> None:
    """Write what each box has in /etc instead of this machine's files."""
    hosts = ["127.0.0.1 localhost", *(f"{net}.{number} box{number}" for number in range(1, count + 1))]
    (folder / "hosts").write_text("\n".join(hosts) + "\n")
    for name, line in {
        "passwd": "{user}:x:{id}:{id}::/home/{user}:/bin/bash",
        "group": "{user}:x:{id}:",
        "shadow": "{user}:*:20000:0:99999:7:::",  # `!` would be a locked account, which sshd refuses
    }.items():
        theirs = [line.format(user=user, id=_USER_ID + number) for number, user in enumerate(users)]
        (folder / name).write_text("\n".join([Path("/etc", name).read_text().rstrip("\n"), *theirs]) + "\n")
        (folder / name).chmod(0o600 if name == "shadow" else 0o644)


def _start_script(name: str, ip: str, disk: Path, shown: Sequence[Path], *, sshd: bool) -> str:
    """Return what the first process of a box runs; it reads the name of its interface."""
    own = {place: disk / place[1:] for place in ("/run", "/root", "/home", "/tmp")}  # /tmp has the disk: it comes last
    lines = ["set -euo pipefail", 'echo "pid $$"', "read -r plug", f"hostname {name}"]
    lines += ["ip link set lo up", 'ip link set "$plug" name eth0', f"ip address add {ip}/24 dev eth0"]
    lines += ["ip link set eth0 up"]
    for file in ("hosts", "passwd", "group", "shadow"):
        lines.append(f"mount --bind {disk.parent}/{file} /etc/{file}")
    for target, place in own.items():
        if target in ("/run", "/tmp"):
            lines.append(f"mount -t tmpfs -o mode={'1777' if target == '/tmp' else '755'} tmpfs {place}")
        for path in shown:
            if path.is_relative_to(target):
                inside = shlex.quote(str(place / path.relative_to(target)))
                lines.append(f"mkdir -p {inside} && mount --bind {shlex.quote(str(path))} {inside}")
    lines += [f"mount --rbind {place} {target}" for target, place in own.items()]
    lines += ["mount -t tmpfs -o mode=1777 tmpfs /dev/shm"]
    if sshd:
        lines += ["mkdir /run/sshd"]
        lines += [f"/usr/sbin/sshd -D -e -f {disk.parent}/sshd_config >>{disk}/sshd.log 2>&1 </dev/null &"]
        lines += [f"until (: <>/dev/tcp/{ip}/22) 2>/dev/null; do kill -0 $!; sleep 0.05; done"]
    # Bash, as pid 1, collects those whose parents have ended.
    lines += ["echo ready", "sleep infinity </dev/null >/dev/null & wait"]
    return "\n".join(lines)


def _ip(*arguments: str) -> None:
    subprocess.run(["ip", *arguments], check=True, capture_output=True)
