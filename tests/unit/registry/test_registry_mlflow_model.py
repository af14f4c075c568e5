"""MLflow loads what was promoted, and answers as `predict` does."""

from __future__ import annotations

import json
import threading
import time
from concurrent.futures import ThreadPoolExecutor
from dataclasses import asdict, replace
from pathlib import Path
from typing import Any

import mlflow
import pandas as pd
import pytest
import torch
from mlflow import pyfunc
from mlflow.exceptions import MlflowException
from support.toy_language import choosing, save_base
from support.toys import promote, seal

import loraxs_search
from loraxs_search.base_model.layers import linear_modules
from loraxs_search.base_model.locate import locate
from loraxs_search.errors import IntegrityError
from loraxs_search.factors.store import FactorStore
from loraxs_search.manifest import folder_digest, verify
from loraxs_search.mlflow_flavor import MlflowPredictor
from loraxs_search.predictor import Predictor
from loraxs_search.records.adapter import Prediction
from loraxs_search.records.task import BaseModelRef, Task, TaskModel
from loraxs_search.registry.factor_sets import factors_at
from loraxs_search.registry.pull import pull
from loraxs_search.registry.store import Registry
from loraxs_search.tracking.store import connect

from .conftest import content, killed_at

URI = "models:/task-2@champion"
TEXTS = ["a moving, funny film", "two hours that I will never get back", "so so"]


@pytest.fixture(autouse=True)
def _store_of_mlflow(store_uri, monkeypatch):
    monkeypatch.setenv("MLFLOW_TRACKING_URI", store_uri)


@pytest.fixture
def make(make_adapter, tiny_base, tmp_path):
    """Make an adapter of a task, on a base that fits it."""

    def make(task: Task | None = None) -> Path:
        base, modules = tiny_base, ("bert.encoder.layer.0.attention.self.query",)
        if task is not None:
            base = tmp_path / "base"
            save_base(base)
            body = TaskModel("AutoModelForCausalLM")
            modules = tuple(it.name for it in linear_modules(locate(BaseModelRef(str(base))), body))
        located = locate(BaseModelRef(str(base)))
        return make_adapter(tmp_path / "adapter", located, task=task, rank=4, seed=3, target_modules=modules)

    return make


@pytest.fixture
def files(make, store_uri):
    """Where the files of a promoted version lie, `task-2:1`."""
    Path("uv.lock").write_text("")
    return Path(Registry(store_uri).resolve(promote(make(), store_uri)).source)


# ---- answers ---------------------------------------------------------------------------------------------------------
@pytest.mark.parametrize(
    ("task", "rows"),
    [
        (None, {"text": TEXTS}),
        (choosing(options="choices"), {"choices": [["w1", "w2"], "w3 | w4 | w5"], "words": ["w1 w2", "w3"]}),
    ],
    ids=["classes", "chooses"],
)
def test_mlflow_answers_as_predict_does(make, store_uri, task, rows):
    frame = pd.DataFrame({"id": "other", **rows}).iloc[::-1]
    name = promote(make(task), store_uri)
    model = pyfunc.load_model(f"models:/{name}@champion")
    found = model.predict(frame)
    expected = [asdict(answer) for answer in loraxs_search.predict(name, frame)]
    assert list(found.index) == list(frame.index)
    assert json.loads(json.dumps(found.to_dict("records"), allow_nan=False)) == [
        {key: value for key, value in json.loads(json.dumps(row)).items() if key in found.columns} for row in expected
    ]
    said = {key for row in expected for key, value in row.items() if value is not None}
    assert {*found.columns} == {"label", "score"} | said - {"text"}
    assert len(model.predict(model.input_example)) == 1


def fixed(*answers: Prediction) -> Predictor:
    """What says the same whatever it is asked, and not to two at a time."""
    asked = threading.Lock()

    def answer(*_: Any, **__: Any) -> list[Prediction]:
        assert asked.acquire(blocking=False), "it is not for several threads at once"
        time.sleep(0.01)
        asked.release()
        return list(answers)

    return answer


def test_a_number_stays_a_number_and_nothing_is_none():
    frame = pd.DataFrame({"text": ["a", "b"]})
    regressed = MlflowPredictor(fixed(Prediction("a", None, 0.5), Prediction("b", None, 1.5))).predict(frame)
    assert (regressed["score"].dtype, regressed["label"].tolist()) == (float, [None, None])
    mixed = MlflowPredictor(fixed(Prediction("a", "x", 0.5), Prediction("b", None, None))).predict(frame)
    assert mixed["score"].tolist() == [0.5, None], "NaN is not JSON"
    levels = (Prediction(text, "1", 0.5, expected=mean) for text, mean in (("a", 1.5), ("b", 2.5)))
    assert MlflowPredictor(fixed(*levels)).predict(frame)["expected"].tolist() == [1.5, 2.5]


def test_what_mlflow_shows_of_a_version(files, store_uri):
    meta = pyfunc.load_model(URI).metadata
    assert [(it["name"], it["type"]) for it in meta.signature.inputs.to_dict()] == [("text", "string")]
    flavor = meta.flavors["loraxs_search"]
    assert (flavor["task"], flavor["kind"]) == ("task-2", "sequence-classification")
    assert flavor["digest"] == folder_digest(files)
    requirements = (files / "requirements.txt").read_text().splitlines()
    assert all("==" in line and "+" not in line for line in requirements)
    names = {line.partition("==")[0] for line in requirements}
    assert {"torch", "transformers", "mlflow"} <= names
    assert "loraxs-search" not in names  # whoever takes this name on an index must not be installed


def test_a_row_that_cannot_be_answered_is_refused_with_the_reason(files):
    with pytest.raises(MlflowException, match=r"task-2 must be given") as refused:
        pyfunc.load_model(URI).predict(pd.DataFrame({"text": pd.Series(["fine", None], dtype=object)}))
    assert refused.value.get_http_status_code() == 400


def test_threads_of_a_server_take_turns():
    model, frame = MlflowPredictor(fixed(Prediction("a", "x", 0.5))), pd.DataFrame({"text": ["a"]})
    with ThreadPoolExecutor(4) as threads:
        answers = list(threads.map(lambda _: model.predict(frame)["label"].item(), range(12)))
    assert answers == ["x"] * 12


def test_factors_come_from_the_registry_where_it_can_be_reached(make, store_uri, tmp_path, monkeypatch, caplog):
    key, checksum = FactorStore().identify(torch.randn(12, 10, generator=torch.Generator().manual_seed(3)), rank=4)
    folder = make()
    seal(folder, replace(verify(folder), factors={key: checksum}))
    promote(folder, store_uri)
    downloaded = mlflow.artifacts.download_artifacts(URI, dst_path=str(tmp_path / "downloaded"))
    monkeypatch.setenv("LORAXS_HOME", str(tmp_path / "elsewhere"))
    monkeypatch.setenv("MLFLOW_TRACKING_URI", f"sqlite:///{tmp_path / 'nothing.db'}")
    pyfunc.load_model(downloaded)
    assert "factors could not be fetched" in caplog.text
    assert not factors_at(key, checksum, unchecked=True)
    monkeypatch.setenv("MLFLOW_TRACKING_URI", store_uri)
    pyfunc.load_model(downloaded)
    assert factors_at(key, checksum, unchecked=True)


def test_what_was_changed_in_the_registry_is_not_loaded(files):
    (files / "adapter_model.safetensors").write_bytes(b"other")
    with pytest.raises(IntegrityError):
        pyfunc.load_model(URI)


# ---- what lies beside the adapter ------------------------------------------------------------------------------------
def test_a_version_is_pulled_as_it_was_promoted(files, store_uri, tmp_path):
    assert "uv.lock" not in content(files), "nothing of the working directory gets into a version"
    pyfunc.load_model(URI)
    assert (files / "registered_model_meta").exists(), "MLflow writes into the registry's own folder"
    pulled = pull("task-2", uri=store_uri, cache=tmp_path / "cache")
    assert content(pulled) == content(tmp_path / "adapter")
    assert pulled.name == folder_digest(tmp_path / "adapter") == folder_digest(files)


def test_a_promotion_that_was_killed_is_made_whole_by_the_next(make, store_uri):
    folder = make()
    for call in ("log_model_artifact", "set_registered_model_alias"):  # of `MLmodel`; after it
        with killed_at(call):
            promote(folder, store_uri)
        path = Path(connect(store_uri).get_model_version("task-2", "1").source) / "MLmodel"
        assert path.exists() is (call != "log_model_artifact")
    before = path.read_bytes()
    promote(folder, store_uri)
    assert pyfunc.load_model(URI).metadata.flavors["loraxs_search"]["task"] == "task-2"
    assert path.read_bytes() == before, "it is written once"
    assert [version.version for version in Registry(store_uri).versions("task-2")] == [1]
