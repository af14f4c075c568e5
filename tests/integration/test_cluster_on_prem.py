"""`ray up` with cluster/on-prem.yaml over SSH: the file as it is, but for its addresses, on boxes without a network.

Each box has what an index would give it: an environment with everything that the wheel requires.
"""

from __future__ import annotations

import json
import re
import shutil
import subprocess
import sys
from dataclasses import dataclass
from pathlib import Path

import pytest
from support.boxes import Box, Boxes, boxes, no_boxes, no_sshd
from support.shell import until

pytestmark = [pytest.mark.long(part="cluster"), pytest.mark.timeout(1800)]
ROOT = Path(__file__).parents[2]
USER = "loraxs"  # of the file
FILE = "cluster/on-prem.yaml"


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

    def ok(self, *arguments: str, timeout_s: float = 900.0) -> str:
        """Run a command that must succeed, and return what it said."""
        done = self.box.run(*self.command(*arguments), timeout_s=timeout_s)
        assert done.returncode == 0, done.stdout + done.stderr
        return done.stdout + done.stderr

    def on_head(self, command: str, timeout_s: float = 900.0) -> str:
        return self.ok("ray", "exec", FILE, command, timeout_s=timeout_s)

    def nodes(self) -> set[str]:
        """Return the addresses of the nodes that `doctor` finds well."""
        doctor = self.command("ray", "exec", FILE, "loraxs-search doctor --address auto --json")
        done = self.box.run(*doctor, timeout_s=900)
        found = re.search(r"^\[\r?$.*^\]", done.stdout, re.DOTALL | re.MULTILINE)
        results = json.loads(found[0]) if found and done.returncode == 0 else []
        return {box.ip for box in self.machines if any(box.ip in result["node"] for result in results)}

    def wait_for_nodes(self, wanted: set[str]) -> None:
        """Wait until Ray runs on each machine, and then until `doctor` finds them all."""
        until(lambda: all(_runs_ray(box) for box in self.machines), self.autoscaler_log, timeout_s=900.0)
        until(lambda: self.nodes() == wanted, self.autoscaler_log, timeout_s=900.0)

    def autoscaler_log(self) -> str:
        return self.machines[0].run("bash", "-c", "tail -n 40 /tmp/ray/session_latest/logs/monitor.*").stdout


@pytest.fixture(scope="module")
def desk(full_ray, wheel):
    """Three machines with sshd and one from which they are started."""
    if reason := no_boxes() or no_sshd():
        pytest.skip(reason)
    for program in ("ssh", "rsync"):
        if shutil.which(program) is None:
            pytest.skip(f"`{program}` is not installed")
    with boxes(4, users=[USER], sshd=True) as made:
        *machines, here = made.boxes
        _install(machines[0], full_ray)
        for machine in machines[1:]:
            made_once, here_too = (box.disk / "home" / USER / "loraxs-venv" for box in (machines[0], machine))
            subprocess.run(["cp", "--archive", made_once, here_too], check=True)
        _set_desk(here, made, wheel, machines)
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


def _set_desk(here: Box, made: Boxes, wheel: Path, machines: list[Box]) -> None:
    """Write what the head of the file asks for, and the file with the addresses of the machines."""
    home = here.disk / "root"
    checkout = home / "checkout"
    for folder in (home / ".ssh", checkout / "dist", checkout / "cluster"):
        folder.mkdir(parents=True)
    shutil.copy(made.folder / "key", home / ".ssh" / "id_ed25519")
    shutil.copy(wheel, checkout / "dist")
    text = (ROOT / FILE).read_text()
    for line in (f"head_ip: {machines[0].ip}", f"worker_ips: [{', '.join(box.ip for box in machines[1:])}]"):
        text, count = re.subn(rf"{line.split(':')[0]}: .*", line, text)
        assert count == 1
    (checkout / FILE).write_text(text)


def test_a_cluster_over_ssh_searches_loses_a_worker_gets_it_back_and_ends(desk, monkeypatch, sized_down):
    monkeypatch.setenv("LORAXS_HOME", str(desk.machines[0].disk / "home" / USER / ".loraxs-search"))
    everybody = {box.ip for box in desk.machines}
    (make_token,) = re.findall(r"^#     (ray get-auth-token .*)$", (ROOT / FILE).read_text(), re.MULTILINE)
    desk.ok("bash", "-c", make_token)
    desk.ok("ray", "up", "-y", FILE)
    desk.wait_for_nodes(everybody)

    longer = "--set search.trials=6 --set search.max_steps=96 --set search.pack_size=1 --set search.scheduler=none"
    launch = f"loraxs-search launch movie_reviews --name reviews --address auto {' '.join(sized_down)} {longer}"
    command = desk.command("ray", "exec", FILE, launch)
    worker = desk.machines[-1]
    with subprocess.Popen([*desk.box.prefix, *command], stdout=subprocess.PIPE, text=True) as search:
        until(lambda: search.poll() is not None or _hosts_of("reviews") >= everybody, timeout_s=900.0)
        assert search.poll() is None, "it has to lose a worker on its way"
        worker.power_cut()
        talk, _ = search.communicate(timeout=900)
    assert search.returncode == 0, talk
    assert _states("reviews") == ["COMPLETE"] * 6
    desk.on_head("loraxs-search promote reviews --force")
    desk.on_head(f"loraxs-search pull movie-reviews --out /home/{USER}/adapter")
    desk.ok("ray", "rsync-down", FILE, f"/home/{USER}/adapter/", "adapter/")
    pulled = {path.name for path in (desk.box.disk / "root" / "checkout" / "adapter").iterdir()}
    assert {"adapter_config.json", "adapter_model.safetensors", "manifest.json"} <= pulled

    worker.reboot()
    desk.wait_for_nodes(everybody)
    desk.ok("ray", "down", "-y", FILE)
    until(lambda: not any(_runs_ray(box) for box in desk.machines), timeout_s=900.0)


def _hosts_of(study: str) -> set[str]:
    """Return the addresses of the nodes that have reported."""
    from loraxs_search.studies.folder import StudyFolder

    reports = StudyFolder.open(study).journal().reports if StudyFolder.exists(study) else []
    return {report.host.split()[0] for report in reports if report.host}


def _states(study: str) -> list[str]:
    from loraxs_search.studies.folder import StudyFolder

    return [record.state.value for record in StudyFolder.open(study).journal().records.values()]


def _runs_ray(box: Box) -> bool:
    return box.run("pgrep", "raylet").returncode == 0
