"""What every test gets: an empty home of its own, and nothing of the caller's MLflow or Ray."""

from __future__ import annotations

import gzip
import itertools
import os
import shutil
import signal
import sqlite3
import subprocess
import sys
from collections import defaultdict
from collections.abc import Callable, Mapping
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import hypothesis
import pytest
from faults.world import titled, tree
from filelock import FileLock
from support.servers import MlflowServer
from support.shell import Said, free_port
from support.spaces import QUICKSTART, REVIEWS, SMOLLM2, SPACE

from loraxs_search.base_model.locate import KNOWN_PACKAGES

# Machines are noisy, and pytest-timeout ends what hangs. `make explore` looks for new examples.
hypothesis.settings.register_profile("here", deadline=None, derandomize="LORAXS_EXPLORE" not in os.environ)
hypothesis.settings.load_profile("here")
# Started in the background of a script, a process inherits SIGINT as ignored, and so would the programs tested here.
signal.signal(signal.SIGINT, signal.default_int_handler)
os.environ["MLFLOW_DISABLE_TELEMETRY"] = "true"
os.environ.setdefault("OMP_WAIT_POLICY", "PASSIVE")  # spinning threads starve the other processes of a test
if "PYTEST_XDIST_WORKER" in os.environ:
    os.environ.setdefault("OMP_NUM_THREADS", "1")  # the workers take the cores
os.environ["HF_HUB_OFFLINE"] = "1"  # tests reach no hub
for name in ("MLFLOW_TRACKING_URI", "MLFLOW_RUN_ID", "MLFLOW_EXPERIMENT_ID", "MLFLOW_EXPERIMENT_NAME", "RAY_ADDRESS"):
    os.environ.pop(name, None)

SHARED = ("ray_here", "searched", "mlflow_server")  # fixtures that take long to make
# Files of few tests that take half a minute: at the end, one core would wait for them.
LONG_FILES = ("test_exports", "test_base_locate", "test_export_formats")
PARTS = {
    "bases": "other families of base models",
    "browser": "MLflow's UI, and all of our pages, in Chromium",
    "cluster": "Ray on several nodes: processes, namespaces as hosts, Slurm, `ray up`, KubeRay, jobs",
    "faults": "what is killed, cut off, full or late, one at a time and at random; its arena and its judge",
    "search": "more whole searches",
    "software": "vLLM, llama.cpp, sentence-transformers, Ray Serve, PEFT's own test matrices",
    "storage": "object stores, NFS, PostgreSQL, accounts, and another machine that goes on from them",
}


def pytest_addoption(parser: pytest.Parser) -> None:
    parser.addoption("--long", action="store_true", help="run the tests marked `long` too")


def pytest_configure(config: pytest.Config) -> None:
    parts = "; ".join(f"{part} ({content})" for part, content in PARTS.items())
    config.addinivalue_line("markers", f"long(part): takes many minutes, see `make long`. Parts: {parts}")


@pytest.hookimpl(tryfirst=True)  # before xdist reads the groups
def pytest_collection_modifyitems(config: pytest.Config, items: list[pytest.Item]) -> None:
    """Leave out long tests, and group: a file, or whatever needs the one Ray or the one search; the longest first."""
    long = [item for item in items if item.get_closest_marker("long")]
    for item in long:
        if any(mark.kwargs.get("part") not in PARTS for mark in item.iter_markers("long")):
            raise pytest.UsageError(f"{item.nodeid} must be `long` with a part of {', '.join(PARTS)}.")
    if not config.getoption("--long"):
        config.hook.pytest_deselected(items=long)
        items[:] = [item for item in items if item not in set(long)]
    groups: dict[str, list[pytest.Item]] = defaultdict(list)
    for item in items:
        names = getattr(item, "fixturenames", ())
        groups[next((name for name in SHARED if name in names), item.path.stem)].append(item)
    for group, members in groups.items():
        for item in members:
            item.add_marker(pytest.mark.xdist_group(group))
            if group in SHARED and item.get_closest_marker("timeout") is None:
                item.add_marker(pytest.mark.timeout(900))  # the first one makes what all of them share

    def length(group: str) -> tuple[bool, bool, int]:
        members = groups[group]
        is_slow = group in LONG_FILES or any(item.get_closest_marker("slow") for item in members)
        return group in SHARED, is_slow, len(members)

    items[:] = [item for group in sorted(groups, key=length, reverse=True) for item in groups[group]]


@pytest.fixture(scope="session", autouse=True)
def warm_home(tmp_path_factory):
    """A home shared by all workers of the session, so that the base is unpacked, tokenised and decomposed once.

    It is also the home of fixtures that several tests share; its folder is the session's.
    """
    folder = tmp_path_factory.getbasetemp()
    home = (folder.parent if "PYTEST_XDIST_WORKER" in os.environ else folder) / "warm-home"
    home.mkdir(exist_ok=True)
    with pytest.MonkeyPatch.context() as patch:
        patch.setenv("LORAXS_HOME", str(home))
        yield home


@pytest.fixture(autouse=True)
def fresh_home(tmp_path, monkeypatch):
    """An empty home for this test alone, in which `init` knows one base for each use, whatever is installed here."""
    home = tmp_path / "home"
    monkeypatch.delitem(KNOWN_PACKAGES, "sentence-transformers/all-mpnet-base-v2")
    monkeypatch.setenv("LORAXS_HOME", str(home))
    for name in ("MLFLOW_TRACKING_USERNAME", "MLFLOW_TRACKING_PASSWORD"):
        monkeypatch.setenv(name, "")  # what an address with an account sets goes away with the test
        monkeypatch.delenv(name)
    return home


@pytest.fixture
def in_warm_home(fresh_home, warm_home, monkeypatch):
    """Let this test work in the shared home."""
    monkeypatch.setenv("LORAXS_HOME", str(warm_home))
    yield warm_home


def _shared_folder(folder: Path, make: Callable[[Path], None]) -> Path:
    """Return a folder; the first worker of the session that asks makes it, the others wait.

    Args:
        make: Fills an empty folder, which is renamed when it is whole.
    """
    with FileLock(folder.with_suffix(".lock")):
        if not folder.exists():
            part = folder.with_suffix(".part")
            shutil.rmtree(part, ignore_errors=True)  # of a worker that failed
            part.mkdir()
            make(part)
            part.rename(folder)
    return folder


@pytest.fixture(scope="session")
def store_template(warm_home):
    """An empty MLflow database, made once: its migrations take more than a second."""
    from loraxs_search.tracking.store import ensure_store

    folder = warm_home.with_name("store")
    return _shared_folder(folder, lambda part: ensure_store(f"sqlite:///{part / 'mlflow.db'}")) / "mlflow.db"


@pytest.fixture(scope="session")
def _unsynced_sqlite():
    """Let SQLite in this process not wait for the disk: no test pulls the plug of the machine."""
    from sqlalchemy import Engine, event

    def switch(connection: Any, _: object) -> None:
        if isinstance(connection, sqlite3.Connection):
            connection.execute("PRAGMA synchronous = OFF")

    event.listen(Engine, "connect", switch)
    yield
    event.remove(Engine, "connect", switch)


@pytest.fixture
def store_uri(_unsynced_sqlite, store_template, fresh_home, tmp_path, monkeypatch):
    """The embedded store of this test's home, empty; the working directory is another folder."""
    fresh_home.mkdir()
    shutil.copy(store_template, fresh_home / "mlflow.db")
    (tmp_path / "cwd").mkdir()
    monkeypatch.chdir(tmp_path / "cwd")
    return f"sqlite:///{fresh_home / 'mlflow.db'}"


@pytest.fixture
def say(capsys, monkeypatch):
    """Run a command line in this process; one of its own (`shell`) takes seconds to start."""
    from loraxs_search.cli._main import run

    monkeypatch.setenv("COLUMNS", "120")

    def command(*args: str) -> Said:
        capsys.readouterr()
        code = run(args)
        return Said(code, *capsys.readouterr())

    return command


@pytest.fixture
def descendants():
    """Return the processes under a process whose title holds a text; there must be some, unless `least` is 0."""

    def find(pid: int, title: str, least: int = 1) -> list[int]:
        found = [process.pid for process in titled(tree(pid), title)]
        assert len(found) >= least
        return found

    return find


@pytest.fixture(scope="session")
def mlflow_server(store_template, tmp_path_factory):
    """The one server of all tests that need no other, started: who kills it starts it again."""
    folder = tmp_path_factory.mktemp("server")
    shutil.copy(store_template, folder / "server.db")
    with MlflowServer(folder) as server:
        yield server


@pytest.fixture(scope="session")
def s3_server():
    """A real server of the S3 protocol on this machine."""
    from moto.server import ThreadedMotoServer

    port = free_port()
    server = ThreadedMotoServer("127.0.0.1", port, verbose=False)
    server.start()
    yield f"http://127.0.0.1:{port}"
    server.stop()


@pytest.fixture
def s3_bucket(s3_server, tmp_path, monkeypatch):
    """The address of an empty bucket there, and the environment that leads to it."""
    import boto3

    for name, value in {"ENDPOINT_URL": s3_server, "ACCESS_KEY_ID": "test", "SECRET_ACCESS_KEY": "test"}.items():
        monkeypatch.setenv(f"AWS_{name}", value)
    bucket = f"b{abs(hash(tmp_path))}"
    boto3.client("s3", region_name="us-east-1").create_bucket(Bucket=bucket)
    return f"s3://{bucket}"


def _located(home: Path, ref: dict[str, str]) -> Any:
    from loraxs_search.base_model.locate import locate
    from loraxs_search.records.task import BaseModelRef

    with pytest.MonkeyPatch.context() as patch:
        patch.setenv("LORAXS_HOME", str(home))
        return locate(BaseModelRef(**ref))


@pytest.fixture(scope="session")
def quickstart_base(warm_home):
    """The quickstart's base, unpacked once per session."""
    return _located(warm_home, QUICKSTART)


@pytest.fixture(scope="session")
def smollm2(warm_home):
    """SmolLM2-135M-Instruct, converted once per session: a decoder that has learnt something."""
    return _located(warm_home, SMOLLM2)


@pytest.fixture(scope="session")
def tiny_base(warm_home, quickstart_base):
    """A two-layer BERT of random weights with the quickstart's tokenizer: real code paths in milliseconds."""
    import torch
    from transformers import BertConfig, BertModel

    from loraxs_search.base_model.tokenizer import load_tokenizer

    def make(folder: Path) -> None:
        tokenizer = load_tokenizer(quickstart_base)
        tokenizer.save_pretrained(folder)
        with torch.random.fork_rng():
            torch.manual_seed(7)
            size = {"hidden_size": 32, "num_hidden_layers": 2, "num_attention_heads": 4, "intermediate_size": 64}
            BertModel(BertConfig(vocab_size=len(tokenizer), **size)).save_pretrained(folder)

    return _shared_folder(warm_home.with_name("tiny-base"), make)


@pytest.fixture(scope="session")
def tiny_space_text(tiny_base):
    """A space on the tiny base that searches in seconds; tests change it with overrides."""
    return SPACE.format(
        task="tiny-reviews", base=tiny_base, trials=6, steps=8, every=2, promotion="{candidates: 2, seeds: 1}"
    )


@pytest.fixture
def tiny_space(tmp_path, tiny_space_text):
    """The tiny space as a file."""
    path = tmp_path / "tiny.yaml"
    path.write_text(tiny_space_text)
    return path


# ---- adapters, and what carries a base ------------------------------------------------------------------------------
@pytest.fixture
def install(tmp_path, monkeypatch):
    """Install a distribution that must not be imported, holding the given files; return the folder it is in."""
    site = tmp_path / "site"

    def make(files: Mapping[str, bytes], name: str = "carrier-model") -> Path:
        info = f"{name.replace('-', '_')}-1.0.dist-info"
        contents = {"carrier_model/__init__.py": b"raise SystemExit('imported')", **files}
        contents[f"{info}/METADATA"] = f"Metadata-Version: 2.1\nName: {name}\nVersion: 1.0\n".encode()
        for file, data in contents.items():
            (site / file).parent.mkdir(parents=True, exist_ok=True)
            (site / file).write_bytes(data)
        (site / info / "RECORD").write_text("".join(f"{file},,\n" for file in contents))
        monkeypatch.syspath_prepend(site)
        return site

    return make


@pytest.fixture(scope="session")
def make_adapter():
    """Make an adapter folder as the registry hands it out; `support.toys` says from what."""
    from support.toys import make_adapter

    return make_adapter


# ---- the command line ------------------------------------------------------------------------------------------------
@pytest.fixture(scope="session")
def sized_down():
    """Options that make a shipped search one of seconds."""
    search = ("search.trials=2", "search.max_steps=24", "search.report_every=12", "promotion.candidates=1")
    few = ("promotion.seeds=1", "task.validation_rows=32", "task.max_length=32")  # at the end all rows are scored
    rule = ("promotion.require=constant",)  # so short a search beats no other baseline
    return [part for override in (*search, *few, *rule) for part in ("--set", override)]


@pytest.fixture(scope="session")
def wheel(tmp_path_factory):
    """The wheel of this checkout, built without the network."""
    out = tmp_path_factory.mktemp("wheel")
    root = Path(__file__).parents[1]
    build = [sys.executable, "-m", "build", "--wheel", "--no-isolation", "--outdir", str(out), str(root)]
    done = subprocess.run(build, capture_output=True, text=True, timeout=120, check=False)
    assert done.returncode == 0, done.stdout + done.stderr
    return next(out.glob("*.whl"))


@pytest.fixture(scope="session")
def searched(warm_home, sized_down, tmp_path_factory):
    """The one search that the tests of the command line and of the documents share, and its promotion.

    It scores all of its rows at the end: of the shipped reviews it has the first ones alone.
    """
    from support.in_process import InProcess

    folder, few = tmp_path_factory.mktemp("reviews"), list[str]()
    for split, count in {"train": 600, "validation": 200, "test": 400}.items():
        with gzip.open(REVIEWS / f"{split}.jsonl.gz", "rt") as rows:
            (folder / f"{split}.jsonl").write_text("".join(itertools.islice(rows, count)))
        few += ["--set", f"task.data.data_files.{split}={folder / split}.jsonl"]
    shell = InProcess(warm_home, tmp_path_factory.mktemp("elsewhere"))
    launched = shell.run("launch", "movie_reviews", "--name", "reviews", *sized_down, *few)
    assert launched.returncode == 0, launched.stderr
    promoted = shell.run("promote")
    assert promoted.returncode == 0, promoted.stderr
    return SimpleNamespace(shell=shell, study="reviews", launched=launched, promoted=promoted)
