"""An adapter in onnxruntime answers as `predict` does, beside rows of other adapters of the same graph."""

from __future__ import annotations

import importlib.util
import itertools
import json
import re
from collections.abc import Callable, Sequence
from pathlib import Path
from typing import Any

import numpy as np
import numpy.typing as npt
import pytest
import torch
from safetensors.numpy import load_file
from support.families import families

from loraxs_search import load
from loraxs_search.base_model import linear_modules, locate
from loraxs_search.errors import UsageError
from loraxs_search.methods.export import converted
from loraxs_search.records import BaseModel, BaseModelRef, DataSource, Pooling, Prediction, Task
from loraxs_search.tasks.kinds import classifier

from .conftest import WORDS, save_base

TEXTS = [" ".join(WORDS[start : start + length]) for start, length in ((0, 5), (9, 2), (20, 11), (33, 1))]
EXACT = 1e-4
Logits = Callable[[Sequence[Any], Sequence[Any]], npt.NDArray[np.float32]]


def reading(labels: Sequence[str] = ("no", "yes"), pooling: Pooling = "class", **changes: Any) -> Task:
    kind, metric = ("sequence-classification", "accuracy") if labels else ("regression", "pearson")
    given = {"labels": tuple(labels), "pooling": pooling, "max_length": 12, **changes}
    return Task("it", kind, DataSource(), "text", "label", metric, "maximize", (metric,), **given)


@pytest.fixture(scope="module")
def make(make_adapter: Callable[..., Path], tmp_path_factory: pytest.TempPathFactory) -> Callable[..., Path]:
    """Make a LoRA-XS adapter on all layers of a base of a family, beside others of this file: they share graphs."""
    root, numbers = tmp_path_factory.mktemp("adapters"), itertools.count()

    def made(family: str = "bert", *, folder: Path | None = None, **changes: Any) -> Path:
        if not (root / family).exists():
            save_base(root / family, family)
        base = locate(BaseModelRef(str(root / family)))
        names = tuple(module.name for module in linear_modules(base, classifier(2)))
        given = {"rank": 4, "target_modules": names, "task": reading(), **changes}
        return make_adapter((folder or root) / str(next(numbers)), base, **given)

    return made


@pytest.fixture
def opened(monkeypatch: pytest.MonkeyPatch) -> Callable[[Path], Logits]:
    """Return the function that a folder's README.md defines, after its code ran there."""

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


@pytest.mark.parametrize("family", families(["bert", "roberta", "gpt2", "llama"]))
@pytest.mark.parametrize(("pooling", "head"), [("class", "output"), ("mean", "full")])
def test_onnxruntime_answers_as_predict(
    family: str, pooling: Pooling, head: str, make: Callable[..., Path], opened: Callable[[Path], Logits]
) -> None:
    folder = make(family, task=reading(pooling=pooling), head=head)
    made = converted(folder, "onnx")
    about = json.loads((made / "onnx.json").read_text())
    assert (about["labels"], about["max_length"], about["pooling"]) == (["no", "yes"], 12, pooling)
    logits, adapter = opened(made), inputs_of(made)
    together = logits(TEXTS, [adapter] * len(TEXTS))
    check(together, load(folder)(TEXTS))
    alone = np.concatenate([logits([text], [adapter]) for text in TEXTS])
    np.testing.assert_allclose(alone, together, atol=1e-5)


def test_rows_bring_adapters_of_any_rank_and_number_of_labels(
    make: Callable[..., Path], opened: Callable[[Path], Logits]
) -> None:
    some = tuple(f"bert.encoder.layer.{i}.output.dense" for i in (0, 1))
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


def test_pairs_are_read_with_their_segments(
    tiny_base: Path, make_adapter: Callable[..., Path], tmp_path: Path, opened: Callable[[Path], Logits]
) -> None:
    base, names = locate(BaseModelRef(str(tiny_base))), ("bert.encoder.layer.1.attention.self.query",)
    folder = make_adapter(tmp_path / "one", base, task=reading(text_pair="other"), rank=4, target_modules=names)
    made = converted(folder, "onnx")
    pairs = [("a film", "a moving, funny film"), ("it is so very long and dull that", "I left"), ("so", "so")]
    check(opened(made)(pairs, [inputs_of(made)] * len(pairs)), load(folder)(pairs))
    assert "token_type_ids" in json.loads((made / "onnx.json").read_text())["token_inputs"]


def test_one_file_serves_all_adapters_of_a_base(make: Callable[..., Path], tmp_path: Path) -> None:
    first = converted(make(), "onnx") / "model.onnx"
    other = converted(make(rank=9, seed=1, task=reading("abc")), "onnx") / "model.onnx"
    assert first.samefile(other)
    content = first.read_bytes()
    again = converted(make(folder=tmp_path, rank=2, seed=2), "onnx") / "model.onnx"
    assert not first.samefile(again)
    assert again.read_bytes() == content, "it says nothing of who made it"
    assert b"site-packages" not in content
    assert b"loraxs_search" not in content
    again.write_bytes(content[:-9])
    mended = converted(make(folder=tmp_path), "onnx") / "model.onnx"
    assert mended.read_bytes() == content, "a damaged file is not taken"


@pytest.mark.parametrize(
    ("changes", "law"),
    [
        ({"basis": "gaussian", "factor_rank": None}, "`basis: top`.* gaussian"),
        ({"basis": "bottom"}, "`basis: top`.* bottom"),
        ({"target_modules": ("bert.pooler.dense",)}, r"layers in the blocks .* but bert\.pooler\.dense"),
        ({"method": "lora", "method_params": {"rank": 2}}, "for an adapter of method lora, but got 'onnx'"),
    ],
)
def test_what_the_graph_cannot_have_is_refused(changes: dict[str, Any], law: str, make: Callable[..., Path]) -> None:
    folder = make(**changes)
    with pytest.raises(UsageError, match=law) as refused:
        converted(folder, "onnx")
    assert refused.value.hint
    assert not list(folder.parent.glob(f"*{folder.name}*onnx*"))


def test_a_file_that_answers_otherwise_is_refused(make: Callable[..., Path], monkeypatch: pytest.MonkeyPatch) -> None:
    from loraxs_search.methods.export import _onnx_graph

    monkeypatch.setattr(_onnx_graph._CoreLinear, "forward", lambda self, x: self.base_layer(x))
    with pytest.raises(UsageError, match=r"must compute what the adapter does.*a difference of"):
        converted(make(task=reading(pooling="last")), "onnx")


def test_the_extra_is_named_where_it_is_missing(make: Callable[..., Path], monkeypatch: pytest.MonkeyPatch) -> None:
    real = importlib.util.find_spec
    monkeypatch.setattr(
        importlib.util, "find_spec", lambda name, *of: None if name == "onnxscript" else real(name, *of)
    )
    with pytest.raises(UsageError, match="onnxscript is not installed") as refused:
        converted(make(), "onnx")
    assert "pip install '.[onnx]'" in str(refused.value.hint)


def test_the_quickstarts_base(
    quickstart_base: BaseModel, in_warm_home: Path, make_adapter: Callable[..., Path], tmp_path: Path, opened: Any
) -> None:
    names = tuple(module.name for module in linear_modules(quickstart_base, classifier(2)))
    given = {"rank": 8, "target_modules": names, "factor_rank": 64, "init_std": 0.05}
    folder = make_adapter(tmp_path / "one", quickstart_base, task=reading(pooling="mean", max_length=64), **given)
    made = converted(folder, "onnx")
    texts = ["a moving, funny film", "two hours I will never get back", "a dull one, but for its end", "fine"]
    check(opened(made)(texts, [inputs_of(made)] * 4), load(folder)(texts))
    assert (made / "adapter.safetensors").stat().st_size < 16_000
