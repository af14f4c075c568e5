"""Several machines, which are boxes: Slurm with its script, `ray up` over SSH with its file, and a share over NFS."""

from __future__ import annotations

import contextlib
import json
import os
import re
import secrets
import shutil
import signal
import subprocess
import sys
from collections.abc import Callable, Mapping
from dataclasses import dataclass
from pathlib import Path

import pytest
from support.boxes import Box, boxes, no_boxes
from support.pages import ROOT
from support.servers import Server
from support.shell import num_reports, until

from loraxs_search.studies.folder import StudyFolder


def require(**packages: str) -> None:
    """Skip the test unless boxes can be made here, with these programs, by the Debian packages that bring them."""
    for program, package in packages.items():
        if shutil.which(program) is None:
            pytest.skip(f"`{program}` (Debian package {package}) is not installed")
    if reason := no_boxes():
        pytest.skip(reason)


# ---- cluster/slurm.sbatch, byte for byte, on a real Slurm ------------------------------------------------------------
SCRIPT = ROOT / "cluster" / "slurm.sbatch"
ENDED = ("COMPLETED", "FAILED", "CANCELLED", "TIMEOUT", "NODE_FAIL", "OUT_OF_MEMORY")
_CONFIG = """
ClusterName=test
SlurmctldHost={boxes[0].name}({boxes[0].ip})
SlurmUser=root
SlurmdUser=root
AuthType=auth/munge
AuthInfo=socket={folder}/munge.socket
CredType=cred/munge
StateSaveLocation={folder}/controller
SlurmdSpoolDir={folder}/%n
SlurmctldPidFile={folder}/slurmctld.pid
SlurmdPidFile={folder}/slurmd-%n.pid
ProctrackType=proctrack/linuxproc
TaskPlugin=task/none
JobAcctGatherType=jobacct_gather/none
SelectType=select/cons_tres
SelectTypeParameters=CR_Core
SchedulerParameters=sched_interval=1,bf_interval=1
MpiDefault=none
ReturnToService=2
SlurmdParameters=config_overrides
SlurmdTimeout=20
KillWait=10
{nodes}
PartitionName=main Nodes=ALL Default=YES MaxTime=INFINITE State=UP
"""
_NODE = "NodeName={box.name} NodeAddr={box.ip} CPUs=8 RealMemory=16000 State=UNKNOWN"


@dataclass
class Slurm:
    """A cluster, as who submits jobs on its first node sees it.

    Args:
        folder: Configuration and logs; every box sees it.
        desk: The folder that jobs are submitted in.
    """

    boxes: list[Box]
    folder: Path
    desk: Path

    def run(self, *command: str, env: Mapping[str, str] | None = None) -> subprocess.CompletedProcess[str]:
        """Run a command on the first node, whatever comes of it."""
        return self.boxes[0].run(*command, env={"SLURM_CONF": str(self.folder / "slurm.conf"), **(env or {})})

    def ok(self, *command: str) -> str:
        """Run a command that must succeed, and return what it printed."""
        done = self.run(*command)
        assert done.returncode == 0, f"{command}: {done.stdout}{done.stderr}"
        return done.stdout.strip()

    def sbatch(self, *arguments: str) -> subprocess.CompletedProcess[str]:
        """Submit, from a shell that may open few files."""
        low = 'ulimit -Sn 1024; cd "$0"; exec sbatch --parsable "$@"'
        return self.run("bash", "-c", low, str(self.desk), *arguments, env={"VENV": sys.prefix})

    def state(self, job: str) -> str:
        """Return the state of a job, such as RUNNING."""
        return self.ok("squeue", "--noheader", f"--jobs={job}", "--states=all", "--format=%T")

    def all_idle(self) -> bool:
        done = self.run("sinfo", "--noheader", "--Node", "--format=%T")
        return done.stdout.split() == ["idle"] * len(self.boxes)

    def log(self, job: str) -> str:
        return (self.desk / f"loraxs-{job}.log").read_text()

    def wait_for(self, reached: Callable[[], bool], job: str) -> None:
        """Wait until something is so, while the job has not ended."""
        until(lambda: reached() or self.state(job) in ENDED, lambda: f"{self.state(job)}: {self.log(job)}", 900.0)
        assert reached(), f"{self.log(job)}\n{self.ok('scontrol', 'show', 'job', job)}\n{self.logs()}"

    def logs(self) -> str:
        """Return the end of each daemon's log."""
        return "\n".join(f"{path.name}:\n{path.read_text()[-2000:]}" for path in sorted(self.folder.glob("*.log")))


@pytest.fixture
def slurm(warm_home, tmp_path_factory):
    """Slurm on two nodes without GPUs, which see the folder of the whole session."""
    require(munged="munge", slurmctld="slurmctld", slurmd="slurmd", sbatch="slurm-client")
    with boxes(2, show=[warm_home.parent]) as made:
        folder = made.folder / "slurm"
        (folder / "controller").mkdir(parents=True)
        nodes = "\n".join(_NODE.format(box=box) for box in made.boxes)
        (folder / "slurm.conf").write_text(_CONFIG.format(boxes=made.boxes, folder=folder, nodes=nodes))
        (folder / "cgroup.conf").write_text("CgroupPlugin=disabled\n")
        (folder / "munge.key").touch(mode=0o600)
        (folder / "munge.key").write_bytes(secrets.token_bytes(128))
        files = {"socket": "munge.socket", "key-file": "munge.key", "pid-file": "munge.pid", "seed-file": "munge.seed"}
        command = ["munged", "--foreground", *(f"--{name}={folder / file}" for name, file in files.items())]
        is_up = (folder / "munge.socket").exists
        with Server(command, folder / "munged.log", is_up, end=signal.SIGTERM):  # it lets the daemons know each other
            env = {"SLURM_CONF": str(folder / "slurm.conf")}
            for program, box in (("slurmctld", made.boxes[0]), *(("slurmd", box) for box in made.boxes)):
                box.serve(program, "-D", env=env, log=folder / f"{program}-{box.name}.log")
            found = Slurm(made.boxes, folder, tmp_path_factory.mktemp("user"))
            until(found.all_idle, found.logs, 60)
            yield found


@pytest.mark.long(part="cluster")
@pytest.mark.timeout(1800)
def test_the_time_limit_stops_the_search_and_the_job_goes_on_by_itself(
    slurm, tiny_space, tiny_space_text, in_search_home, agree
):
    study, few = "slurm", ("trials: 6, max_steps: 8, report_every: 2", "{candidates: 2, seeds: 1}")
    assert all(part in tiny_space_text for part in few)
    longer = "trials: 4, max_steps: 12000, report_every: 1200, scheduler: none, device: cpu"
    tiny_space.write_text(tiny_space_text.replace(few[0], longer).replace(few[1], "{candidates: 1, seeds: 0}"))
    what = (str(SCRIPT), str(tiny_space), study)
    (said,) = re.findall(r'a Slurm that has no GPUs says "(.*)"', SCRIPT.read_text())
    assert said in slurm.sbatch(*what).stderr
    submitted = slurm.sbatch("--gpus-per-node=0", "--cpus-per-task=1", *what)
    assert submitted.returncode == 0, submitted.stderr
    job = submitted.stdout.strip()
    slurm.wait_for(lambda: num_reports(study) >= 2, job)
    for box in slurm.boxes:
        limits = box.run("bash", "-c", "cat $(printf '/proc/%s/limits ' $(pgrep raylet))").stdout
        (limit,) = re.findall(r"Max open files +(\d+)", limits)
        assert int(limit) > 1024, "what Ray needs, whatever the limit where the job was submitted"
    *_, minutes, _ = slurm.ok("squeue", "--noheader", f"--jobs={job}", "--format=%M").split(":")
    shorter = f"TimeLimit={int(minutes) + 2}"  # the signal comes within a minute
    slurm.ok("scontrol", "update", f"JobId={job}", shorter)
    slurm.wait_for(lambda: slurm.state(job) == "PENDING" and slurm.all_idle(), job)
    # Spare it most of the two minutes that Slurm gives the nodes. Not all: what a job may start by is revoked by the
    # second when it ends, so it must start in another one.
    slurm.ok("scontrol", "update", f"JobId={job}", "StartTime=now+3")
    reported = num_reports(study)
    slurm.ok("scontrol", "update", f"JobId={job}", "TimeLimit=60")
    slurm.wait_for(lambda: slurm.state(job) == "COMPLETED", job)
    log = slurm.log(job)
    assert 2 <= reported < num_reports(study)
    assert log.count(f"Study '{study}' was interrupted") == 1, "the log holds both runs"
    assert f"next: loraxs-search promote {study}" in log
    assert not [part for part in ("DUE TO TIME LIMIT", "Killed", "srun: error", "Traceback") if part in log], log
    agree(study, 4)


# ---- `ray up` with cluster/on-prem.yaml, as it is but for its addresses, on boxes without a network ------------------
USER, FILE = "loraxs", "cluster/on-prem.yaml"  # the user is the file's


@dataclass(frozen=True)
class Desk:
    """A machine from which a cluster is started: a box of its own, with a folder that holds the file and the wheel.

    Args:
        ray: Its `ray`, as the head of the file wants it.
        machines: Those of the cluster, the head first.
    """

    box: Box
    ray: Path
    machines: list[Box]

    def command(self, *arguments: str) -> list[str]:
        where = 'export HOME=/root PATH="$0:$PATH"; cd ~/checkout; exec "$@"'
        return ["env", "--unset=PYTHONPATH", "bash", "-c", where, str(self.ray.parent), *arguments]

    def ok(self, *arguments: str) -> None:
        """Run a command that must succeed."""
        done = self.box.run(*self.command(*arguments), timeout_s=900)
        assert done.returncode == 0, done.stdout + done.stderr

    def nodes(self) -> set[str]:
        """Return the addresses of the nodes that `doctor` finds well."""
        doctor = self.command("ray", "exec", FILE, "loraxs-search doctor --address auto --json")
        done = self.box.run(*doctor, timeout_s=900)
        found = re.search(r"^\[\r?$.*^\]", done.stdout, re.DOTALL | re.MULTILINE)
        results = json.loads(found[0]) if found and done.returncode == 0 else []
        return {box.ip for box in self.machines if any(box.ip in result["node"] for result in results)}

    def run_ray(self) -> list[bool]:
        return [box.run("pgrep", "raylet").returncode == 0 for box in self.machines]

    def wait_for_all(self) -> None:
        """Wait until Ray runs on each machine, and then until `doctor` finds them all."""

        def log() -> str:
            return self.machines[0].run("bash", "-c", "tail -n 40 /tmp/ray/session_latest/logs/monitor.*").stdout

        until(lambda: all(self.run_ray()), log, timeout_s=900.0)
        until(lambda: self.nodes() == {box.ip for box in self.machines}, log, timeout_s=900.0)


@pytest.fixture
def desk(full_ray, wheel):
    """Three machines with sshd and one from which they are started.

    Each has what an index would give it: an environment with everything that the wheel requires.
    """
    require(sshd="openssh-server", ssh="openssh-client", rsync="rsync")
    with boxes(4, users=[USER], sshd=True) as made:
        *machines, here = made.boxes
        _install(machines[0], full_ray)
        for machine in machines[1:]:
            made_once, here_too = (box.disk / "home" / USER / "loraxs-venv" for box in (machines[0], machine))
            subprocess.run(["cp", "--archive", made_once, here_too], check=True)
        home, checkout = here.disk / "root", here.disk / "root" / "checkout"
        for folder in (home / ".ssh", checkout / "dist", checkout / "cluster"):
            folder.mkdir(parents=True)
        shutil.copy(made.folder / "key", home / ".ssh" / "id_ed25519")
        shutil.copy(wheel, checkout / "dist")
        text = (ROOT / FILE).read_text()
        for line in (f"head_ip: {machines[0].ip}", f"worker_ips: [{', '.join(box.ip for box in machines[1:])}]"):
            text, count = re.subn(rf"{line.split(':')[0]}: .*", line, text)
            assert count == 1
        (checkout / FILE).write_text(text)
        yield Desk(here, full_ray, machines)


def _install(machine: Box, full_ray: Path) -> None:
    """Give a user's environment all that is installed here, but for this package: links take no room and no time."""
    places = (Path(sys.prefix), full_ray.parents[1])
    ours, extras = (next(place.glob("lib/python3*/site-packages")) for place in places)
    script = f"""
        set -euo pipefail
        cd ~{USER}
        {Path(sys.base_prefix) / "bin" / "python3"} -m venv --without-pip loraxs-venv
        cd loraxs-venv/lib/python3*/site-packages
        echo {extras} >extras.pth
        for entry in {ours}/*; do
          case ${{entry##*/}} in
            __pycache__ | *.pth | *loraxs_search*) ;;
            *) ln -s "$entry" . ;;
          esac
        done
        cd ~{USER}/loraxs-venv/bin
        printf '#!%s/python\nfrom ray.scripts.scripts import main\nmain()\n' "$PWD" >ray
        printf '#!%s/python\nfrom pip._internal.cli.main import main\nraise SystemExit(main())\n' "$PWD" >pip
        chmod +x ray pip
        chown -hR {USER}: ~{USER}
        runuser -u {USER} -- ./python -c 'import ray'
    """
    done = machine.run("env", "--unset=PYTHONPATH", "bash", "-c", script, timeout_s=300)
    if "Permission denied" in done.stderr:
        pytest.skip(f"other users must be able to read {sys.prefix}, but: {done.stderr.strip()}")
    assert done.returncode == 0, done.stderr


@pytest.mark.long(part="cluster")
@pytest.mark.timeout(1800)
def test_a_cluster_over_ssh_searches_loses_a_worker_gets_it_back_and_ends(desk, monkeypatch, sized_down):
    monkeypatch.setenv("LORAXS_HOME", str(desk.machines[0].disk / "home" / USER / ".loraxs-search"))
    (make_token,) = re.findall(r"^#     (ray get-auth-token .*)$", (ROOT / FILE).read_text(), re.MULTILINE)
    desk.ok("bash", "-c", make_token)
    desk.ok("ray", "up", "-y", FILE)
    desk.wait_for_all()

    def have_all_reported() -> bool:
        reports = StudyFolder.open("reviews").journal().reports if StudyFolder.exists("reviews") else []
        return {report.host.split()[0] for report in reports if report.host} >= {box.ip for box in desk.machines}

    longer = "--set search.trials=6 --set search.max_steps=96 --set search.pack_size=1 --set search.scheduler=none"
    launch = f"loraxs-search launch movie_reviews --name reviews --address auto {' '.join(sized_down)} {longer}"
    command = desk.command("ray", "exec", FILE, launch)
    worker = desk.machines[-1]
    with subprocess.Popen([*desk.box.prefix, *command], stdout=subprocess.PIPE, text=True) as search:
        until(lambda: search.poll() is not None or have_all_reported(), timeout_s=900.0)
        assert search.poll() is None, "it has to lose a worker on its way"
        worker.power_cut()
        talk, _ = search.communicate(timeout=900)
    assert search.returncode == 0, talk
    records = StudyFolder.open("reviews").journal().records.values()
    assert [record.state.value for record in records] == ["COMPLETE"] * 6
    desk.ok("ray", "exec", FILE, "loraxs-search promote reviews --force")
    desk.ok("ray", "exec", FILE, f"loraxs-search pull movie-reviews --out /home/{USER}/adapter")
    desk.ok("ray", "rsync-down", FILE, f"/home/{USER}/adapter/", "adapter/")
    pulled = {path.name for path in (desk.box.disk / "root" / "checkout" / "adapter").iterdir()}
    assert {"adapter_config.json", "adapter_model.safetensors", "manifest.json"} <= pulled

    worker.reboot()
    desk.wait_for_all()
    desk.ok("ray", "down", "-y", FILE)
    until(lambda: not any(desk.run_ray()), timeout_s=900.0)


# ---- a storage on an NFS share, of two machines that have a kernel each, and so a cache ------------------------------
SHARE = "/run/share"  # where clients mount it
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
# Answers each line, an expression.
_PROGRAM = f"""
import sys
from loraxs_search.studies.storage import Storage
storage = Storage({SHARE!r})
print("> ready", flush=True)
for line in sys.stdin:
    print(">", repr(eval(line)), flush=True)
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
        while not (line := self.kernel.stdout.readline()).startswith("> "):  # what its kernel says
            assert line, f"{self.box.name} ended"
        return line.removeprefix("> ").strip()

    def ask(self, line: str) -> str:
        """Send a line and return the answer."""
        self.send(line)
        return self.line()

    def power_cut(self) -> None:
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
    """Start a client, whose program will say `ready`."""
    script, program = box.disk / "client.sh", box.disk / "program.py"
    program.write_text(_PROGRAM)
    words = {"server": server.ip, "share": SHARE, "root": ROOT, "python": sys.executable, "program": program}
    script.write_text(_CLIENT.format(box=box, **words))
    script.chmod(0o755)
    box.run("ip", "address", "flush", "dev", "eth0")  # the client answers there, and its box no more
    kernel = ["linux.uml", "mem=512M", "root=/dev/root", "rootfstype=hostfs", "rootflags=/", "ro", f"init={script}"]
    kernel += ["vec0:transport=raw,ifname=eth0,depth=64", "con0=fd:0,fd:1", "con=null", "ssl=null", "quiet"]
    env = os.environ | {"HOME": str(box.disk)}  # where the kernel keeps its own files; one below /tmp is not in a box
    pipe, command = subprocess.PIPE, [*box.prefix, *kernel]
    return Client(box, subprocess.Popen(command, stdin=pipe, stdout=pipe, text=True, cwd="/", env=env))


@pytest.mark.long(part="storage")
@pytest.mark.timeout(600)
def test_of_two_machines_one_creates_an_object_and_both_see_it_so_and_what_it_becomes():
    require(**{"ganesha.nfsd": "nfs-ganesha-vfs", "linux.uml": "user-mode-linux", "modprobe": "kmod"})
    with boxes(3) as made, contextlib.ExitStack() as stack:
        server, *others = made.boxes
        _serve(server)
        clients = {box.name: _boot(box, server) for box in others}
        for client in clients.values():
            stack.callback(client.power_cut)
        for client in clients.values():
            assert client.line() == "ready"
        winners = set()
        for number in range(30):
            key = f"race/{number}"
            seen = f"storage.versions('race')[{key!r}], storage.get({key!r})"
            for name in clients if number % 2 else reversed(clients):
                clients[name].send(f"storage.create({key!r}, b'of {name}')")
            versions = {name: client.line() for name, client in clients.items()}
            (winner,) = (name for name, version in versions.items() if version != "None")
            for content in (f"of {winner}", "more"):
                assert [client.ask(seen) for client in clients.values()] == [f"({versions[winner]}, b'{content}')"] * 2
                versions[winner] = clients[winner].ask(f"storage.write({key!r}, b'more', {versions[winner]})")
            winners.add(winner)
        assert winners == {*clients}, "they raced"
