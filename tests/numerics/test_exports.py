"""An adapter in onnxruntime, and in transformers and PEFT alone, answers as `predict` does."""

from __future__ import annotations

import importlib.util
import itertools
import json
import re
import subprocess
import sys
from collections.abc import Callable, Sequence
from dataclasses import replace
from functools import partial
from pathlib import Path
from typing import Any

import numpy as np
import numpy.typing as npt
import onnx
import pytest
import torch
from safetensors.numpy import load_file
from support.bases import save_language_model
from support.toy_language import writing
from support.toys import seal
from transformers import AutoTokenizer, BertConfig, GenerationConfig, pipeline

from loraxs_search import load, predict
from loraxs_search.base_model.locate import locate
from loraxs_search.errors import UsageError
from loraxs_search.manifest import read_manifest
from loraxs_search.methods.export import _onnx_graph
from loraxs_search.methods.export._base import ExportOptions
from loraxs_search.methods.export.folder import converted
from loraxs_search.methods.export.onnx import MOST_MOVED
from loraxs_search.records.adapter import Prediction
from loraxs_search.records.codec import Pooling
from loraxs_search.records.task import BaseModel, BaseModelRef, DataSource, Task
from loraxs_search.registry.card import model_card

from .conftest import FAMILIES, SMALL, VOCAB, WORDS, save_base

TEXTS = [" ".join(WORDS[start : start + length]) for start, length in ((0, 5), (9, 2), (20, 11), (33, 1))]
EXACT = 1e-4
Logits = Callable[[Sequence[Any], Sequence[Any]], npt.NDArray[np.float32]]
LONG = pytest.mark.long(part="bases")  # an export takes seconds
OTHERS = [pytest.param(name, marks=LONG) for name in ("roberta", "gpt2", "llama")]


# ---- onnxruntime: rows of other adapters share the graph -------------------------------------------------------------
def reading(labels: Sequence[str] = ("no", "yes"), pooling: Pooling = "class", **changes: Any) -> Task:
    kind, metric = ("sequence-classification", "accuracy") if labels else ("regression", "pearson")
    given = {"labels": tuple(labels), "pooling": pooling, "max_length": 12, **changes}
    return Task("it", kind, DataSource(), "text", "label", metric, "maximize", (metric,), **given)


@pytest.fixture(scope="module")
def make(make_adapter, tmp_path_factory):
    """Make a LoRA-XS adapter on all layers of a base of a family, beside others of this file: they share graphs."""
    root, numbers = tmp_path_factory.mktemp("adapters"), itertools.count()

    def made(family: str = "bert", **changes: Any) -> Path:
        if not (root / family).exists():
            save_base(root / family, family)
            tokens = AutoTokenizer.from_pretrained(root / family)
            tokens.model_input_names = [*tokens.model_input_names, *(["token_type_ids"] if family == "bert" else [])]
            tokens.save_pretrained(root / family)
        base = locate(BaseModelRef(str(root / family)))
        given = {"rank": 4, "task": reading(), **changes}
        return make_adapter(root / str(next(numbers)), base, **given)

    return made


@pytest.fixture(autouse=True)
def small(monkeypatch):
    """Have a BERT of one layer, half of what an export takes, and one whose matrices are most of its graph."""
    monkeypatch.setitem(FAMILIES, "bert", lambda: BertConfig(**{**SMALL, "num_hidden_layers": 1}, intermediate_size=48))
    sizes = {"vocab_size": VOCAB, "hidden_size": 96, "intermediate_size": 256}
    config = BertConfig(**sizes, num_hidden_layers=1, num_attention_heads=4, pad_token_id=0)
    monkeypatch.setitem(FAMILIES, "wide", lambda: config)


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


def check(logits: npt.NDArray[np.float32], answers: Sequence[Prediction], *, is_exclusive: bool = True) -> None:
    """Compare what a row's logits mean with what `predict` said."""
    for row, answer in zip(logits, answers, strict=True):
        if answer.probabilities is None:
            assert row[0] == pytest.approx(answer.score, abs=EXACT)
            assert np.isneginf(row[1:]).all()
            continue
        values = torch.from_numpy(row)
        shares = (values.softmax(-1) if is_exclusive else values.sigmoid()).numpy()
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


def test_rows_bring_adapters_of_any_rank_and_number_of_labels_to_one_graph(make, opened):
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
    content = (made[0] / "model.onnx").read_bytes()
    assert all((other / "model.onnx").read_bytes() == content for other in made)
    assert b"site-packages" not in content and b"loraxs_search" not in content, "nothing says who made it"


@pytest.mark.parametrize(("kind", "metric"), [("ordinal", "accuracy"), ("multi-label", "micro_f1")])
def test_levels_and_several_labels_are_answered_by_the_graph_and_by_transformers_pipeline(kind, metric, make, opened):
    folder = make(task=replace(reading("abc"), kind=kind, metric=metric, metrics=(metric,)))
    answers, made = load(folder)(TEXTS), converted(folder, "onnx")
    check(opened(made)(TEXTS, [inputs_of(made)] * len(TEXTS)), answers, is_exclusive=kind == "ordinal")
    pipe = pipeline("text-classification", str(converted(folder, "merged")), top_k=None)
    for said, answer in zip(pipe(TEXTS, truncation=True, max_length=12), answers, strict=True):
        assert {each["label"]: each["score"] for each in said} == pytest.approx(answer.probabilities, abs=EXACT)
        assert answer.label == "|".join(k for k, p in answer.probabilities.items() if p >= 0.3) or kind == "ordinal"
    pages = [(converted(folder, form) / "README.md").read_text() for form in ("lora", "merged", "onnx")]
    assert ("problem_type" in pages[0]) == (kind == "multi-label")
    assert all({"ordinal": "the median level", "multi-label": "at least 0.3"}[kind] in page for page in pages)


def test_pairs_are_read_with_their_segments(make, opened):
    folder = make(task=reading(text_pair="other"))
    made = converted(folder, "onnx")
    pairs = [("w1", "w2 w3 w4"), (" ".join(WORDS[:11]), "w5 w6"), ("w7", "w7")]
    logits = opened(made)(pairs, [inputs_of(made)] * len(pairs))
    check(logits, load(folder)(pairs))
    joined = opened(converted(make(), "onnx"))([" ".join(pair) for pair in pairs], [inputs_of(made)] * len(pairs))
    assert not np.allclose(joined, logits, atol=EXACT)
    assert "token_type_ids" in json.loads((made / "onnx.json").read_text())["token_inputs"]


def test_matrices_are_stored_in_fewer_bytes_and_answers_hardly_move(make, opened):
    folder = make("wide", rank=7, init_std=0.1, task=reading(pooling="mean"))
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
    int8, exact = (
        torch.from_numpy(opened(it)(TEXTS, [own] * 4)) for it, own in zip((made, whole), inputs, strict=True)
    )
    assert 0 < float((int8.softmax(-1) - exact.softmax(-1)).abs().max()) < MOST_MOVED


def test_a_file_that_answers_otherwise_is_refused(make, monkeypatch):
    monkeypatch.setattr(_onnx_graph._CoreLinear, "forward", lambda self, x: self.base_layer(x))
    folder = make("wide", init_std=2.0, task=reading(pooling="mean"))
    with pytest.raises(UsageError, match="`--precision int8` must move a probability by at most 0"):
        converted(folder, "onnx", ExportOptions(precision="int8"))
    with pytest.raises(UsageError, match="must compute what the adapter does"):
        converted(folder, "onnx")
    assert not list(folder.parent.glob(f"{folder.name}.onnx*"))


def test_what_the_graph_cannot_have_is_refused_and_the_extra_is_named_where_it_is_missing(make, monkeypatch):
    def refused(law: str, **changes: Any) -> str:
        folder = make(**changes)
        with pytest.raises(UsageError, match=law) as error:
            converted(folder, "onnx")
        assert not [path for path in folder.parent.iterdir() if path.name.lstrip(".").startswith(f"{folder.name}.")]
        return str(error.value.hint)

    for law, changes in {
        "`basis: top`.* gaussian": {"basis": "gaussian", "factor_rank": None},
        "`basis: top`.* bottom": {"basis": "bottom"},
        r"layers in the blocks .* but bert\.pooler\.dense": {"target_modules": ("bert.pooler.dense",)},
        "for an adapter of method lora, but got 'onnx'": {"method": "lora", "method_params": {"rank": 2}},
    }.items():
        assert refused(law, **changes)
    real = importlib.util.find_spec
    monkeypatch.setattr(
        importlib.util, "find_spec", lambda name, *of: None if name == "onnxscript" else real(name, *of)
    )
    assert "pip install '.[onnx]'" in refused("onnxscript is not installed")


# ---- transformers and PEFT -------------------------------------------------------------------------------------------
CARD = """
import json, os, sys
sys.modules["loraxs_search"] = None
for folder, code in json.loads(sys.argv[1]):
    os.chdir(folder)
    exec(code, space := {"print": lambda answer: None})
    print(json.dumps(space["answer"]))
"""


@pytest.fixture
def penalised(tmp_path):
    """A base that generates with a penalty, as those of chats do, which `predict` does not know."""
    folder = save_language_model(tmp_path / "base")
    settings = GenerationConfig.from_pretrained(folder)
    settings.repetition_penalty = 1.7
    settings.save_pretrained(folder)
    return locate(BaseModelRef(str(folder)))


def code_of(folder: Path, base: BaseModel) -> str:
    """Return the code of a README.md but for the first block of a card, which is of this package alone."""
    blocks = re.findall(r"```python\n(.*?)```", (folder / "README.md").read_text(), flags=re.S)
    return "".join(blocks[-2:]).replace('"base"', repr(str(base.path)))


def test_the_code_beside_it_asks_as_in_training(make_adapter, tmp_path, penalised, monkeypatch):
    """In each form it runs in the adapter's folder, and writes what `predict` gives for the columns' names."""
    task = writing(generation={"max_new_tokens": 12, "stop": ["e"]})
    common = {name: value for name, value in task.settings.items() if name != "prompt"}
    plain, expected = list[list[str]](), list[str]()
    for key, asked in {"prompt": "say {words}", "messages": [{"role": "user", "content": "say {words}"}]}.items():
        own = replace(task, settings={**common, key: asked}, max_length=64)
        folder = make_adapter(tmp_path / key, penalised, task=own, seed=3, rank=8)
        manifest = read_manifest(folder)
        (folder / "README.md").write_text(model_card(manifest))
        seal(folder, manifest)
        (answer,) = predict(folder, "<words>")
        assert answer.label
        monkeypatch.chdir(folder)
        exec(code_of(folder, penalised), space := {"print": lambda answer: None})
        assert space["answer"].strip() == answer.label
        forms = map(partial(converted, folder), ("lora", "merged"))
        plain += [[str(form), code_of(form, penalised)] for form in forms]
        expected += [answer.label] * 2
    command = [sys.executable, "-c", CARD, json.dumps(plain)]
    done = subprocess.run(command, capture_output=True, text=True, timeout=120, check=False)
    assert done.returncode == 0, done.stderr
    assert [json.loads(line).strip() for line in done.stdout.splitlines()] == expected


def test_a_merged_model_writes_as_in_training_by_default(make_adapter, tmp_path, penalised):
    task = writing(generation={"max_new_tokens": 5, "stop": ["e"], "temperature": 0.5})
    folder = make_adapter(tmp_path / "adapter", penalised, task=task, rank=2)
    settings = GenerationConfig.from_pretrained(converted(folder, "merged"))
    assert (settings.max_new_tokens, settings.do_sample, settings.temperature) == (5, True, 0.5)
    assert settings.stop_strings is None
    assert settings.repetition_penalty is None
    assert (settings.eos_token_id, settings.pad_token_id) == ([1], 0)
