from __future__ import annotations

import contextlib
import dataclasses
import threading
from collections.abc import Callable, Iterator
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from pathlib import Path

import pytest
from mlflow import MlflowClient
from support.sealed import manifest_of, seal
from support.toys import HYPERPARAMETERS, rows

from loraxs_search.manifest import Manifest
from loraxs_search.records.adapter import ReferenceLogits
from loraxs_search.records.search import Baseline, Candidate, PromotionRule
from loraxs_search.records.task import BaseModelRef, DataSource, Task
from loraxs_search.records.trial import AdapterSize
from loraxs_search.registry.card import model_card
from loraxs_search.registry.changes import Promoter
from loraxs_search.registry.promotion import Scored
from loraxs_search.registry.store import Registry

TASK = Task(
    name="movie-reviews",
    kind="sequence-classification",
    source=DataSource(data_files={"train": "/data/train.jsonl.gz"}),
    text="sentence",
    label="label",
    metric="accuracy",
    direction="maximize",
    metrics=("accuracy", "f1"),
    labels=("negative", "positive"),
)


def plain_candidate(trial_id: str, accuracy: float, stored_bytes: int = 1000, **other) -> Candidate:
    """A candidate with one score on both splits, and without baselines."""
    scores = {"accuracy": accuracy}
    made = Candidate("s1", trial_id, TASK.name, scores, scores, stored_bytes, "data", "base")
    return dataclasses.replace(made, **other)


@pytest.fixture(scope="session")
def task():
    return TASK


@pytest.fixture(scope="session")
def candidate():
    def make(trial_id: str = "t0", accuracy: float = 0.8, stored_bytes: int = 1000, **other) -> Candidate:
        constant = Baseline("constant", test_metrics={"accuracy": 0.5})
        measured = {"test_metrics": {"accuracy": accuracy, "f1": accuracy - 0.01}, "baselines": (constant,)}
        return plain_candidate(trial_id, accuracy, stored_bytes, **(measured | other))

    return make


@pytest.fixture(scope="session")
def manifest(task):
    def make(trial_id: str = "t0", **other) -> Manifest:
        fields = {
            "base_digest": "base",
            "data_fingerprint": "data",
            "study": "s1",
            "params": {"rank": 4, "learning_rate": 0.001},
            "validation_metrics": {"accuracy": 0.81, "f1": 0.8},
            "test_metrics": {"accuracy": 0.8},
            "size": AdapterSize(r_parameters=32, head_parameters=10, stored_bytes=400),
            "probe": ReferenceLogits(input_ids=((1, 2),), logits=((0.5, -0.25),)),
            "task": task,
            "base_model": BaseModelRef(id="org/base", revision="abc123"),
            "hyperparameters": HYPERPARAMETERS,
        }
        return manifest_of(trial_id=trial_id, **(fields | other))

    return make


@pytest.fixture
def make_folder(tmp_path, manifest):
    """Make a sealed adapter folder of a trial."""

    def make(trial_id: str = "t0", **other) -> Path:
        folder, made = tmp_path / "made" / trial_id, manifest(trial_id, **other)
        folder.mkdir(parents=True)
        (folder / "adapter_model.safetensors").write_bytes(f"R of {trial_id}".encode())
        (folder / "adapter_config.json").write_text('{"peft_type": "LORAXS"}')
        (folder / "README.md").write_text(model_card(made))
        seal(folder, made)
        return folder

    return make


CONSTANT = PromotionRule(require="constant")


@pytest.fixture
def with_versions(promote, registry):
    """Have a registry with one to three versions: of t0, t1 and t2, with 300, 340 and 380 right answers."""

    def start(count: int) -> Registry:
        for number in range(count):
            promote(f"t{number}", 300 + 40 * number)
        return registry

    return start


def scored_anew(rows, test="data", metrics=None):
    """What scores a champion anew: it has these answers to other test rows."""
    known = metrics or {"accuracy": float((rows.predictions == rows.labels).mean())}
    fields = {"test_metrics": known, "data_fingerprint": test, "test_fingerprint": test}
    return lambda champion: Scored(dataclasses.replace(champion.candidate, **fields), rows)


@pytest.fixture
def killed_at():
    """Be killed when MLflow's client is about to do something, with a key that begins so."""

    @contextlib.contextmanager
    def kill(call, key=""):
        original = getattr(MlflowClient, call)

        def killed(client, name, *arguments):
            if str(arguments[0]).startswith(key):
                raise KeyboardInterrupt
            return original(client, name, *arguments)

        with pytest.MonkeyPatch.context() as patch, pytest.raises(KeyboardInterrupt):
            patch.setattr(MlflowClient, call, killed)
            yield

    return kill


@contextlib.contextmanager
def served(answer: Callable[[BaseHTTPRequestHandler], None]) -> Iterator[str]:
    """Have a server answer so; yields its address."""

    class Handler(BaseHTTPRequestHandler):
        protocol_version = "HTTP/1.1"

        def do_GET(self) -> None:
            answer(self)

        def do_POST(self) -> None:
            self.rfile.read(int(self.headers["Content-Length"]))
            answer(self)

        def log_message(self, *_: object) -> None: ...

    with ThreadingHTTPServer(("127.0.0.1", 0), Handler) as server:
        thread = threading.Thread(target=server.serve_forever)
        thread.start()
        yield f"http://127.0.0.1:{server.server_port}"
        server.shutdown()
        thread.join()


@pytest.fixture
def registry(store_uri):
    return Registry(store_uri)


@pytest.fixture
def promoter(store_uri):
    return Promoter(store_uri, TASK.name)


@pytest.fixture
def promote(promoter, task, candidate, make_folder, tmp_path):
    """Promote one candidate with its answers to 400 rows; returns the decision and the version."""

    def promote(
        trial_id,
        right,
        *,
        base="org/Tiny",
        rescore=None,
        forced=False,
        data="data",
        seen=(),
        rule=CONSTANT,
        answers=None,
        **other,
    ):
        digest = f"digest of {base}"
        own = {"base_model": base, "base_digest": digest, "data_fingerprint": data, "test_fingerprint": data} | other
        found = candidate(trial_id, right / 400, **own)
        path = tmp_path / f"{trial_id}.safetensors"
        path.write_bytes((answers or rows(right)).to_bytes())
        folder = tmp_path / "made" / trial_id
        if not folder.exists():
            make_folder(trial_id, base_digest=digest, data_fingerprint=data)
        folders = {trial_id: folder}
        rows_of = {trial_id: path}
        return promoter.promote(rule, task, [found], folders, forced, rows_of, rescore, seen=seen)

    return promote
