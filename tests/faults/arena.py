"""Where an episode of chaos happens: hosts, servers, a small disk, and what people do there."""

from __future__ import annotations

import contextlib
import json
import os
import secrets
import shutil
import signal
import subprocess
import tempfile
import threading
import time
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import psutil
import requests
from support import servers
from support.boxes import Box, Boxes, boxes, no_boxes
from support.clocks import no_wrong_clock, wrong_clock
from support.ports import free_port

from faults import disks, nodes, stores
from faults.history import History, Op
from faults.world import World, kill_tree, signal_all, tree
from loraxs_search.registry import pull
from loraxs_search.registry.reader import RegistryReader

TASK = "faulty-reviews"
TEXTS = ("a film to remember", "dull from the first minute", "so-so", "I left early, and gladly", "wonderful!")
EARLIER, STUDIES = ("first", "second"), ("one", "two")  # studies that end before the first fault, and those it hits
_SEEDS = {study: seed for seed, study in enumerate((*EARLIER, *STUDIES))}  # adapters that all differ
_PACK_SIZES = {"one": "1", "two": "auto"}  # trials alone, and in packs
_DISK_MB = 700
_ASK_S = 60.0


@dataclass
class Arena:
    """Everything that faults can hit, and people's deeds, each of which the history notes.

    Args:
        boxes: Machines of the workers; this machine has the head of the cluster.
    """

    world: World
    boxes: Boxes
    cluster: nodes.Cluster
    store: stores.TeamStore
    disk: disks.Disk
    history: History = field(default_factory=History)
    _drivers: dict[str, list[subprocess.Popen[str]]] = field(default_factory=dict)
    _server: subprocess.Popen[str] | None = None
    _serving: threading.Lock = field(default_factory=threading.Lock)
    _port: int = field(default_factory=free_port)
    _logs: dict[str, bytes] = field(default_factory=dict)
    _promoting: int = 0
    _champion_version: int | None = None

    # ---- what is hit -------------------------------------------------------------------------------------------------
    def worker(self, victim: int) -> nodes.Node:
        """Return a worker's Ray node."""
        return self.cluster.places[1 + victim % 2]

    def box(self, victim: int) -> Box:
        """Return a worker's machine."""
        return self.boxes.boxes[victim % 2]

    def reboot(self, victim: int) -> None:
        """Start a worker's machine again, and its Ray node."""
        node, box = self.worker(victim), self.box(victim)
        node.kill()
        box.reboot()
        node.prefix = box.prefix
        self.cluster.start_again(1 + victim % 2)

    def signal_driver(self, study: str, number: signal.Signals) -> subprocess.Popen[str] | None:
        """Send a signal to the driver of a study that began last, if it lives."""
        alive = [process for process in self._drivers.get(study, ()) if process.poll() is None]
        if not alive:
            return None
        alive[-1].send_signal(number)
        return alive[-1]

    @contextlib.contextmanager
    def frozen(self, processes: Sequence[psutil.Process]) -> Iterator[None]:
        """Stop processes, and let those that are left go on."""
        signal_all(processes, signal.SIGSTOP)
        yield
        signal_all(processes, signal.SIGCONT)

    @contextlib.contextmanager
    def wrong_clock(self, offset: str) -> Iterator[None]:
        """Let whatever people start have a wrong clock."""
        right = self.world.env
        self.world.env = right | wrong_clock(offset)
        yield
        self.world.env = right

    # ---- what people do ----------------------------------------------------------------------------------------------
    def drive(self, study: str) -> Op:
        """Launch a study, or resume it, and wait for the end of its driver."""

        def ask() -> dict[str, Any]:
            options = ["--address", self.cluster.address]
            if not (self.world.home / "studies" / study / "study.json").exists():
                options += ["--tracking-uri", self.store.uri, "--set", f"search.seed={_SEEDS[study]}"]
                options += ["--set", f"search.pack_size={_PACK_SIZES[study]}"]
            process = self.world.launch_or_resume(study, *options)
            self._drivers.setdefault(study, []).append(process)
            _, said = process.communicate()
            return {"code": process.returncode, "said": said}

        return self.history.do("driver", ask, study=study)

    def promote(self) -> Op:
        """Promote one study after the other by force, whether it has ended or not."""
        study = (*EARLIER, "one", *EARLIER, "two")[self._promoting % 6]
        self._promoting += 1

        def ask() -> dict[str, Any]:
            command = ["promote", study, "--force", "--tracking-uri", self.store.uri, "--json"]
            process = self.world.start(*command)
            out, said = process.communicate()
            is_done = process.returncode == 0
            # Without a version: it is the champion already.
            version = json.loads(out)["version"] or self._champion_version if is_done else None
            self._champion_version = version or self._champion_version
            return {"code": process.returncode, "said": said, "version": version}

        return self.history.do("promote", ask, study=study)

    def look(self) -> Op:
        """Ask the registry who the champion is."""

        def ask() -> dict[str, Any]:
            champion = RegistryReader(self.store.uri).champion(TASK)
            return {"version": champion.version if champion is not None else None}

        return self.history.do("champion", ask)

    def pull(self) -> Op:
        """Pull the task's champion; where clocks are wrong, by a command, which has such a clock."""

        def ask() -> dict[str, Any]:
            if "FAKETIME" not in self.world.env:
                return {"digest": pull(TASK, uri=self.store.uri).name}
            process = self.world.start("pull", TASK, "--tracking-uri", self.store.uri)
            folder, said = process.communicate()
            if process.returncode:
                raise RuntimeError(said)
            return {"digest": Path(folder.strip()).name}

        return self.history.do("pull", ask)

    def ask(self) -> Op:
        """Ask the server about a text."""
        text = secrets.randbelow(len(TEXTS))

        def ask() -> dict[str, Any]:
            answer = self._post(text)
            done = {"status": answer.status_code, "said": answer.text[:300]}
            if answer.status_code == 200:
                done |= {"digest": answer.headers["x-loraxs-digest"], "probs": answer.json()["data"][0]["probs"]}
            return done

        return self.history.do("answer", ask, text=text)

    def _post(self, text: int) -> requests.Response:
        url = f"http://127.0.0.1:{self._port}/classify"
        return requests.post(url, json={"model": TASK, "input": TEXTS[text]}, timeout=_ASK_S)

    # ---- a server of adapters ----------------------------------------------------------------------------------------
    def start_serving(self) -> None:
        """Start a server, again and again where it fails, until it is ready; on the port that it had."""
        with self._serving:
            while True:
                self._server = self.world.start(
                    "serve",
                    TASK,
                    "--port",
                    str(self._port),
                    "--tracking-uri",
                    self.store.uri,
                    output=subprocess.DEVNULL,
                )
                while self._server.poll() is None:
                    with contextlib.suppress(requests.RequestException):
                        if requests.get(f"http://127.0.0.1:{self._port}/health", timeout=5).ok:
                            return
                    time.sleep(0.1)

    def stop_serving(self) -> None:
        """Kill the server."""
        with self._serving:
            if self._server is not None:
                self._server.kill()
                self._server.wait()

    def serves_champion(self) -> bool:
        """Return whether the server comes to answer with the adapter that the registry calls champion."""
        champion, end = RegistryReader(self.store.uri).champion(TASK), time.monotonic() + _ASK_S
        assert champion is not None
        while time.monotonic() < end:
            answer = self._post(0)
            if answer.ok and answer.headers["x-loraxs-digest"] == champion.digest:
                return True
            time.sleep(0.2)
        return False

    # ---- what there is at the end ------------------------------------------------------------------------------------
    def log_grown(self, study: str) -> tuple[bytes, bytes]:
        """Return a study's log as it was when this was asked last, and as it is now."""
        path = self.world.home / "studies" / study / "journal.jsonl"
        before, after = self._logs.get(study, b""), path.read_bytes() if path.exists() else b""
        self._logs[study] = after
        return before, after

    def events(self, study: str) -> list[dict[str, Any]]:
        """Return a study's log."""
        path = self.world.home / "studies" / study / "journal.jsonl"
        return [json.loads(line) for line in path.read_text().splitlines()]

    def versions(self) -> dict[int, str]:
        """Return the digest of each version of the task."""
        return {own.version: own.digest for own in RegistryReader(self.store.uri).versions(TASK)}

    def truths(self, digests: Mapping[int, str]) -> dict[str, list[list[float]]]:
        """Return what the adapter of each version answers by itself, without a server: probabilities for each text."""
        from loraxs_search.predictor import Predictor

        found = dict[str, list[list[float]]]()
        for version, digest in digests.items():
            if digest not in found:
                predictor = Predictor(pull(f"{TASK}:{version}", uri=self.store.uri))
                answers = [answer.probabilities or {} for answer in predictor(list(TEXTS))]
                found[digest] = [[answer[label] for label in predictor.labels] for answer in answers]
        return found

    def keep_evidence(self, folder: Path) -> None:
        """Copy logs of studies and of Ray, and write where each process stands, if py-spy is on PATH."""
        for study in (self.world.home / "studies").iterdir():
            shutil.copytree(study, folder / study.name)
        shutil.copytree(self.cluster.folder, folder / "ray", symlinks=True, ignore=_sockets)
        drivers = [process.pid for own in self._drivers.values() for process in own if process.poll() is None]
        nodes_of_ray = [node.process.pid for node in self.cluster.places if node.process is not None]
        pythons = [each for pid in (*drivers, *nodes_of_ray) for each in tree(pid) if "python" in each.name()]
        if spy := shutil.which("py-spy"):
            for each in pythons:
                with (folder / f"{each.pid}.txt").open("w") as file:
                    subprocess.run([spy, "dump", "--pid", str(each.pid)], stdout=file, stderr=file, check=False)

    def close(self) -> None:
        """End what people have started."""
        self.stop_serving()
        for process in (each for own in self._drivers.values() for each in own):
            if process.poll() is None:
                kill_tree(process.pid)
                process.communicate()


@contextlib.contextmanager
def arena(warm: Path) -> Iterator[Arena]:
    """Yield an arena with a champion that is served; everything is ended and removed at the end.

    Args:
        warm: A home with base and factors; made where there is none.
    """
    folder = Path(tempfile.mkdtemp(prefix="lx-"))
    with contextlib.ExitStack() as closing:
        closing.callback(shutil.rmtree, folder)
        disk = closing.enter_context(disks.disk(folder / "d", _DISK_MB))
        home = disk.path / "home"
        if warm.exists():
            shutil.copytree(warm, home)
        else:
            home.mkdir()
        before = os.environ.get("LORAXS_HOME")
        closing.callback(_set_home, before)
        _set_home(str(home))
        machines = closing.enter_context(boxes(2, show=[folder, disk.path]))
        store = closing.enter_context(stores.team_store(folder / "s", machines.ip))
        cluster = closing.enter_context(nodes.cluster_on(machines, folder / "c"))
        world = World(folder, home, env=dict(cluster.env), pack_size="1")
        place = Arena(world, machines, cluster, store, disk)
        closing.callback(place.close)
        world.trials = 1
        for study in EARLIER:
            options = (
                "--address",
                cluster.address,
                "--tracking-uri",
                store.uri,
                "--set",
                f"search.seed={_SEEDS[study]}",
            )
            world.finish(world.launch(study, *options), timeout_s=1200.0)
        world.trials = 4
        if not warm.exists():
            _keep_warm(home, warm)
        assert place.promote().value.get("version") == 1, place.history.ops[-1]
        place.start_serving()
        yield place


def _sockets(folder: str, names: list[str]) -> list[str]:
    return [name for name in names if not (Path(folder) / name).is_file() and not (Path(folder) / name).is_dir()]


def _set_home(home: str | None) -> None:
    if home is None:
        os.environ.pop("LORAXS_HOME", None)
    else:
        os.environ["LORAXS_HOME"] = home


def _keep_warm(home: Path, warm: Path) -> None:
    warm.mkdir(parents=True)
    for name in ("base_models", "factors", "datasets"):
        if (home / name).is_dir():
            shutil.copytree(home / name, warm / name)


def missing_means(folder: Path) -> str | None:
    """Say why there can be no arena here; None when there can."""
    return no_boxes() or disks.no_mounts(folder) or servers.no_postgres() or no_wrong_clock()
