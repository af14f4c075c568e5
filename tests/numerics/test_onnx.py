"""An adapter in onnxruntime answers as `predict` does, beside rows of other adapters of the same graph."""

from __future__ import annotations

import importlib.util
import itertools
import json
import re
from collections.abc import Callable, Sequence
from functools import partial
from pathlib import Path
from typing import Any

import numpy as np
import numpy.typing as npt
import onnx
import pytest
import torch
from safetensors.numpy import load_file
from transformers import AutoTokenizer, BertConfig

from loraxs_search import load
from loraxs_search.base_model.layers import linear_modules
from loraxs_search.base_model.locate import locate
from loraxs_search.errors import UsageError
from loraxs_search.methods.export._base import ExportOptions
from loraxs_search.methods.export.folder import converted
from loraxs_search.methods.export.onnx import MOST_MOVED
from loraxs_search.records.adapter import Prediction
from loraxs_search.records.codec import Pooling
from loraxs_search.records.task import BaseModelRef, DataSource, Task
from loraxs_search.tasks.kinds import classifier

from .conftest import FAMILIES, SMALL, VOCAB, WORDS, save_base

TEXTS = [" ".join(WORDS[start : start + length]) for start, length in ((0, 5), (9, 2), (20, 11), (33, 1))]
EXACT = 1e-4
Logits = Callable[[Sequence[Any], Sequence[Any]], npt.NDArray[np.float32]]
LONG = pytest.mark.long(part="bases")  # an export takes seconds
OTHERS = [pytest.param(name, marks=LONG) for name in ("roberta", "gpt2", "llama")]


def reading(labels: Sequence[str] = ("no", "yes"), pooling: Pooling = "class", **changes: Any) -> Task:
    kind, metric = ("sequence-classification", "accuracy") if labels else ("regression", "pearson")
    given = {"labels": tuple(labels), "pooling": pooling, "max_length": 12, **changes}
    return Task("it", kind, DataSource(), "text", "label", metric, "maximize", (metric,), **given)


@pytest.fixture(scope="module")
def make(make_adapter, tmp_path_factory):
    """Make a LoRA-XS adapter on all layers of a base of a family, beside others of this file: they share graphs."""
    root, numbers = tmp_path_factory.mktemp("adapters"), itertools.count()

    def made(family: str = "bert", *, folder: Path | None = None, **changes: Any) -> Path:
        if not (root / family).exists():
            save_base(root / family, family)
            tokens = AutoTokenizer.from_pretrained(root / family)
            tokens.model_input_names = [*tokens.model_input_names, *(["token_type_ids"] if family == "bert" else [])]
            tokens.save_pretrained(root / family)
        base = locate(BaseModelRef(str(root / family)))
        names = tuple(module.name for module in linear_modules(base, classifier(2)))
        given = {"rank": 4, "target_modules": names, "task": reading(), **changes}
        return make_adapter((folder or root) / str(next(numbers)), base, **given)

    return made


@pytest.fixture(autouse=True)
def small(monkeypatch):
    """Have a BERT of one layer: half of what an export takes."""
    monkeypatch.setitem(FAMILIES, "bert", lambda: BertConfig(**{**SMALL, "num_hidden_layers": 1}, intermediate_size=48))


@pytest.fixture
def wide(make, monkeypatch):
    """Make an adapter on a base whose matrices are most of its graph."""
    sizes = {"vocab_size": VOCAB, "hidden_size": 96, "intermediate_size": 256}
    config = BertConfig(**sizes, num_hidden_layers=1, num_attention_heads=4, pad_token_id=0)
    monkeypatch.setitem(FAMILIES, "wide", lambda: config)
    return partial(make, "wide", init_std=0.1, task=reading(pooling="mean"))


def softmax(logits: npt.NDArray[np.float32]) -> npt.NDArray[np.float32]:
    shares: npt.NDArray[np.float32] = torch.from_numpy(logits).softmax(-1).numpy()
    return shares


@pytest.fixture
def opened(monkeypatch):
    """Return a function that a folder's README.md defines, after its code ran there."""

    def run(folder: Path) -> Logits:
        (code,) = re.findall(r"```python\n(.*?)```", (folder / "README.md").read_text(), flags=re.S)
        assert "torch" not in code
        assert "loraxs" not in code
        names: dict[str, Any] = {}
        with monkeypatch.context() as patch:
            patch.chdir(folder)
            exec(code, names)
        found: Logits = names["logits"]
        return found

    return run


def inputs_of(folder: Path) -> dict[str, npt.NDArray[Any]]:
    return load_file(folder / "adapter.safetensors")


def check(logits: npt.NDArray[np.float32], answers: Sequence[Prediction]) -> None:
    """Compare what a row's logits mean with what `predict` said."""
    for row, answer in zip(logits, answers, strict=True):
        if answer.probabilities is None:
            assert row[0] == pytest.approx(answer.score, abs=EXACT)
            assert np.isneginf(row[1:]).all()
            continue
        shares = torch.from_numpy(row).softmax(-1).numpy()
        expected = [*answer.probabilities.values()]
        np.testing.assert_allclose(shares[: len(expected)], expected, atol=EXACT)
        assert not shares[len(expected) :].any()


@pytest.mark.parametrize("family", ["bert", *OTHERS])
@pytest.mark.parametrize(("pooling", "head"), [pytest.param("class", "output", marks=LONG), ("mean", "full")])
def test_onnxruntime_answers_as_predict(family, pooling, head, make, opened):
    folder = make(family, task=reading(pooling=pooling), head=head)
    made = converted(folder, "onnx")
    about = json.loads((made / "onnx.json").read_text())
    assert (about["labels"], about["max_length"], about["pooling"]) == (["no", "yes"], 12, pooling)
    logits, adapter = opened(made), inputs_of(made)
    together = logits(TEXTS, [adapter] * len(TEXTS))
    check(together, load(folder)(TEXTS))
    alone = np.concatenate([logits([text], [adapter]) for text in TEXTS])
    np.testing.assert_allclose(alone, together, atol=1e-5)


def test_rows_bring_adapters_of_any_rank_and_number_of_labels(make, opened):
    some = tuple(f"bert.encoder.layer.0.{name}" for name in ("attention.self.key", "output.dense"))
    folders = [
        make(sigma="none", scale=3.0),
        make(rank=7, seed=1, task=reading("abcde")),
        make(rank=1, seed=2, task=reading(()), target_modules=some),
    ]
    made = [converted(folder, "onnx") for folder in folders]
    ways = [row % 3 for row in range(12)]
    texts = [TEXTS[row // 3] for row in range(12)]
    logits = opened(made[0])(texts, [inputs_of(made[way]) for way in ways])
    for way, folder in enumerate(folders):
        check(logits[way::3], load(folder)(TEXTS))


def test_pairs_are_read_with_their_segments(make, opened):
    folder = make(task=reading(text_pair="other"))
    made = converted(folder, "onnx")
    pairs = [("w1", "w2 w3 w4"), (" ".join(WORDS[:11]), "w5 w6"), ("w7", "w7")]
    logits = opened(made)(pairs, [inputs_of(made)] * len(pairs))
    check(logits, load(folder)(pairs))
    joined = opened(converted(make(), "onnx"))([" ".join(pair) for pair in pairs], [inputs_of(made)] * len(pairs))
    assert not np.allclose(joined, logits, atol=EXACT)
    assert "token_type_ids" in json.loads((made / "onnx.json").read_text())["token_inputs"]


# ---- precisions ------------------------------------------------------------------------------------------------------
def test_matrices_are_stored_in_fewer_bytes_and_answers_hardly_move(wide, opened):
    folder = wide(rank=7)
    made, whole = (converted(folder, "onnx", ExportOptions(precision=precision)) for precision in ("int8", None))
    sizes = [(each / "model.onnx").stat().st_size for each in (made, whole)]
    assert sizes[0] < 0.45 * sizes[1], "the graph itself has 60,000 bytes"
    for each, name in ((made, "int8"), (whole, "float32")):
        assert json.loads((each / "onnx.json").read_text())["precision"] == name
        model = onnx.load(each / "model.onnx")
        assert {it.key: it.value for it in model.metadata_props} == {"precision": name}
        read = {it for node in model.graph.node for it in node.input}
        assert {tensor.name for tensor in model.graph.initializer} <= read, "runtimes warn of others"
    assert "stored as int8" in (made / "README.md").read_text()
    inputs = [inputs_of(each) for each in (made, whole)]
    assert all((value == inputs[1][name]).all() for name, value in inputs[0].items()), "R and head are float32"
    moved = softmax(opened(made)(TEXTS, inputs[:1] * 4)) - softmax(opened(whole)(TEXTS, inputs[1:] * 4))
    assert 0 < abs(moved).max() < MOST_MOVED


def test_a_file_that_answers_otherwise_is_refused(wide, monkeypatch):
    from loraxs_search.methods.export import _onnx_graph

    monkeypatch.setattr(_onnx_graph._CoreLinear, "forward", lambda self, x: self.base_layer(x))
    folder = wide(init_std=2.0)
    with pytest.raises(UsageError, match="`--precision int8` must move a probability by at most 0"):
        converted(folder, "onnx", ExportOptions(precision="int8"))
    with pytest.raises(UsageError, match="must compute what the adapter does"):
        converted(folder, "onnx")
    assert not list(folder.parent.glob(f"{folder.name}.onnx*"))


def test_all_adapters_of_a_base_have_the_same_file(make):
    first, other = (converted(folder, "onnx") for folder in (make(), make(rank=9, seed=1, task=reading("abc"))))
    content = (first / "model.onnx").read_bytes()
    assert (other / "model.onnx").read_bytes() == content
    assert b"site-packages" not in content and b"loraxs_search" not in content, "nothing says who made it"


@pytest.mark.parametrize(
    ("changes", "law"),
    [
        ({"basis": "gaussian", "factor_rank": None}, "`basis: top`.* gaussian"),
        ({"basis": "bottom"}, "`basis: top`.* bottom"),
        ({"target_modules": ("bert.pooler.dense",)}, r"layers in the blocks .* but bert\.pooler\.dense"),
        ({"method": "lora", "method_params": {"rank": 2}}, "for an adapter of method lora, but got 'onnx'"),
    ],
)
def test_what_the_graph_cannot_have_is_refused(changes, law, make):
    folder = make(**changes)
    with pytest.raises(UsageError, match=law) as refused:
        converted(folder, "onnx")
    assert refused.value.hint
    assert not list(folder.parent.glob(f"*{folder.name}*onnx*"))


def test_the_extra_is_named_where_it_is_missing(make, monkeypatch):
    real = importlib.util.find_spec
    monkeypatch.setattr(
        importlib.util, "find_spec", lambda name, *of: None if name == "onnxscript" else real(name, *of)
    )
    with pytest.raises(UsageError, match="onnxscript is not installed") as refused:
        converted(make(), "onnx")
    assert "pip install '.[onnx]'" in str(refused.value.hint)
