"""Trials whose heads read a pool: packed as alone, resumed as uninterrupted, loaded as trained."""

from __future__ import annotations

import contextlib
import json
import re
import shutil
import warnings
from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest
import torch
from peft import PeftModel
from safetensors.torch import load_file
from torch import Tensor
from torch.nn.functional import linear
from transformers import AutoModel, AutoModelForSequenceClassification, BertConfig, BertForMaskedLM, PreTrainedModel

from loraxs_search import AdapterBank
from loraxs_search.base_model.layers import linear_modules, repeated_layers
from loraxs_search.base_model.load import load_model, missing_poolers
from loraxs_search.base_model.locate import locate
from loraxs_search.base_model.reading import place_pooling, pool, pooling_of
from loraxs_search.engine.pruning import LastLayerPruning
from loraxs_search.errors import UsageError
from loraxs_search.methods import get_method
from loraxs_search.methods.export.folder import converted, write_plain_lora
from loraxs_search.methods.loading import compare_reference_logits, load_adapter_folder, reference_logits, tolerance
from loraxs_search.packing.host import TrialHost
from loraxs_search.records.codec import Pooling
from loraxs_search.records.task import BaseModel, BaseModelRef, DataSource, Task
from loraxs_search.records.trial import TrialSpec
from loraxs_search.search_space.load import load_space
from loraxs_search.tasks.kinds import classifier

from .conftest import FAMILIES, VOCAB, save_base, tokenizer

LONG = pytest.mark.long(part="bases")
CLOSE = {"atol": 1e-5, "rtol": 1e-5}


def test_the_last_layer_is_cut_where_the_pool_allows_it(world):
    for pooling, cuts in (("class", True), ("cls", True), ("mean", False)):
        place_pooling(world.model, pooling)
        pruning = LastLayerPruning(world.model, repeated_layers(world.model, world.names)[1])
        before = [len(module._forward_pre_hooks) for module in world.model.modules()]
        with pruning.placed():
            assert ([len(module._forward_pre_hooks) for module in world.model.modules()] != before) is cuts


def test_a_host_says_what_auto_comes_to_and_trains_so(tiny_space, tiny_base, in_warm_home, tmp_path):
    """And what it stores gives in PEFT the logits that it gave there."""
    folder = tmp_path / "encoder"
    shutil.copytree(tiny_base, folder)
    modules = [{"path": "", "type": "a.Transformer"}, {"path": "1_Pooling", "type": "a.Pooling"}]
    (folder / "modules.json").write_text(json.dumps(modules))
    (folder / "1_Pooling").mkdir()
    (folder / "1_Pooling" / "config.json").write_text('{"pooling_mode_mean_tokens": true}')
    space = load_space(str(tiny_space), overrides=[f"base_model={folder}"])
    assert space.task.pooling == "auto"
    host = TrialHost(space.base_model, space.task, precision="float32")
    info = host.info(space.task)
    assert info.pooling == "mean"
    params = {"rank": 4, "target_modules": "attention", "learning_rate": 1e-2}
    spec = TrialSpec("00000", params, space.hyperparameters(params, info.modules, seed=1))
    for task in (space.task, replace(space.task, pooling=info.pooling)):
        _, state = host.advance(spec, 2, None, task)
    confirmation = host.confirm(spec, state)
    for name, content in confirmation.files.items():
        (tmp_path / name).write_bytes(content)
    model = PeftModel.from_pretrained(plain(BaseModel("b", str(folder), "")), str(tmp_path)).eval()
    probe = confirmation.probe
    compare_reference_logits(reference_logits(model, probe.input_ids), probe, tolerance(model))
    (folder / "1_Pooling" / "config.json").write_text('{"pooling_mode_max_tokens": true}')
    other = TrialHost(space.base_model, space.task, precision="float32").info(space.task)
    assert other.pooling == "class"
    assert any("pooling by max" in warning for warning in other.data.warnings)


# ---- stored adapters -------------------------------------------------------------------------------------------------
def inputs(num_rows: int = 4) -> dict[str, Tensor]:
    ids = torch.randint(4, VOCAB, (num_rows, 9), generator=torch.Generator().manual_seed(3))
    mask = torch.arange(9) < torch.tensor([4, 9, 6, 7])[:num_rows, None]
    return {"input_ids": ids.masked_fill(~mask, 0), "attention_mask": mask.long()}


@torch.no_grad()
def logits(model: torch.nn.Module) -> Tensor:
    found: Tensor = model(**inputs()).logits
    return found


def reading(pooling: Pooling) -> Task:
    metrics = ("accuracy",)
    source, labels = DataSource(), ("no", "yes")
    kind = "sequence-classification"
    return Task("it", kind, source, "text", "label", *metrics, "maximize", metrics, labels=labels, pooling=pooling)


def plain(base: BaseModel) -> PreTrainedModel:
    return AutoModelForSequenceClassification.from_pretrained(base.path, num_labels=2).eval()


@pytest.fixture
def base(request, tmp_path):
    save_base(tmp_path / "base", getattr(request, "param", "bert"))
    return locate(BaseModelRef(str(tmp_path / "base")))


@pytest.fixture
def make_pooled(base, make_adapter, tmp_path):
    """Make a LoRA-XS adapter whose head reads a pool."""
    names = tuple(module.name for module in linear_modules(base, classifier(2)))

    def make(pooling: Pooling, name: str = "", **changes: Any) -> Path:
        given = {"rank": 2, "target_modules": names, "task": reading(pooling), **changes}
        return make_adapter(tmp_path / (name or pooling), base, **given)

    return make


def test_a_merged_model_says_that_its_pool_is_not_saved(make_pooled, base):
    model = PeftModel.from_pretrained(plain(base), str(make_pooled("mean"))).eval()
    expected = logits(model)
    with pytest.warns(UserWarning, match="reads `mean` pooling, which `save_pretrained` does not save"):
        merged = model.merge_and_unload()
    torch.testing.assert_close(logits(merged), expected, **CLOSE)
    with warnings.catch_warnings(record=True) as seen:
        warnings.simplefilter("always")
        PeftModel.from_pretrained(plain(base), str(make_pooled("class"))).merge_and_unload()
    assert not any("pooling" in str(each.message) for each in seen)


def test_adapters_of_one_model_read_one_pool(make_pooled, base):
    mean, cls = make_pooled("mean"), make_pooled("cls")
    model = PeftModel.from_pretrained(plain(base), str(mean)).eval()
    expected = logits(model)
    with pytest.raises(UsageError, match="mean and cls"):
        model.load_adapter(str(cls), "other")
    assert pooling_of(model.get_base_model()) == "mean"
    assert torch.equal(logits(model), expected)


def test_a_bank_reads_each_row_as_its_adapter_was_trained(make_pooled, base):
    ways: list[Pooling] = ["mean", "class", "last"]
    folders = {name: make_pooled(name, seed=seed) for seed, name in enumerate(ways)}
    bank = AdapterBank(base)
    for name, folder in folders.items():
        bank.load(name, folder)
    names = ["last", "mean", None, "class"]
    for index, (name, found) in enumerate(zip(names, bank.logits(names, inputs()), strict=True)):
        model = load_model(base, classifier(2)) if name is None else load_adapter_folder(folders[name], base=base)
        torch.testing.assert_close(found, logits(model)[index], **CLOSE)


def encoded(folder: Path, base: BaseModel) -> Tensor:
    """Return what sentence-transformers makes of `inputs` by the modules of a folder; their code is short."""
    (before,) = re.findall(r"```python\n(.*?)import sentence_transformers", (folder / "README.md").read_text(), re.S)
    with contextlib.chdir(folder):  # what its page says of a base that is a folder
        exec(before.replace(f'"{Path(base.id).name}"', repr(base.path)), {})
    modules = json.loads((folder / "modules.json").read_text())
    assert [module["type"].rpartition(".")[2] for module in modules[:2]] == ["Transformer", "Pooling"]
    pooling = json.loads((folder / modules[1]["path"] / "config.json").read_text())
    flags = {"cls": "pooling_mode_cls_token", "mean": "pooling_mode_mean_tokens", "last": "pooling_mode_lasttoken"}
    (how,) = [name for name, flag in flags.items() if pooling[flag]]
    with torch.no_grad():
        body = AutoModel.from_pretrained(folder).eval()  # with the adapter beside it, where there is one
        x = pool(body(**inputs()).last_hidden_state, inputs()["attention_mask"], how)
        for module in modules[2:]:
            assert module["type"] == "sentence_transformers.models.Dense"
            config = json.loads((folder / module["path"] / "config.json").read_text())
            state = load_file(folder / module["path"] / "model.safetensors")
            x = linear(x, state["linear.weight"], state.get("linear.bias"))
            x = getattr(torch.nn, config["activation_function"].rpartition(".")[2])()(x)
    return x


@pytest.mark.parametrize(
    ("base", "pooling"),
    [
        *(("bert", way) for way in ("cls", "last")),
        ("roberta", "mean"),  # its head has two layers
        pytest.param("gpt2", "mean", marks=LONG),
    ],
    indirect=["base"],
)
def test_exports_of_a_pooled_adapter_are_sentence_encoders_of_its_logits(base, pooling, make_pooled):
    check_exports(make_pooled(pooling), base)


def check_exports(folder: Path, base: BaseModel) -> None:
    for form in ("merged", "lora"):
        made = converted(folder, form)
        torch.testing.assert_close(encoded(made, base), logits(load_adapter_folder(folder)), **CLOSE)
        page = (made / "README.md").read_text()
        assert "sentence_transformers.SentenceTransformer" in page
        assert 'model.encode(["text"])' in page


def test_so_are_those_of_other_methods_and_their_page_asks_for_all_texts_of_a_row(make_pooled, base):
    check_exports(make_pooled("mean", rank=0, method="lora", **get_method("lora").fields({"rank": 2}, {})), base)
    pairs = replace(reading("mean"), text="first", text_pair="second")
    for form in ("merged", "lora"):
        page = (converted(make_pooled("mean", f"pairs-{form}", task=pairs), form) / "README.md").read_text()
        assert 'model.encode([("first", "second")])' in page


@pytest.mark.parametrize("base", ["modernbert"], indirect=True)
def test_a_configuration_that_has_a_place_for_it_says_the_pool(make_pooled):
    folder = make_pooled("mean")
    merged = AutoModelForSequenceClassification.from_pretrained(converted(folder, "merged")).eval()
    torch.testing.assert_close(logits(merged), logits(load_adapter_folder(folder)), **CLOSE)
    with pytest.raises(UsageError, match="The head of ModernBertForSequenceClassification"):
        converted(folder, "lora")


# ---- a checkpoint without the pooler that its head reads -------------------------------------------------------------
def test_an_adapter_on_a_checkpoint_without_its_pooler_is_the_same_wherever_it_is_loaded(make_adapter, tmp_path):
    """Whatever others draw for the pooler; the base was saved with the head for masked words, as many are."""
    torch.manual_seed(0)
    config = FAMILIES["bert"]()
    assert isinstance(config, BertConfig)
    BertForMaskedLM(config).save_pretrained(tmp_path / "base")
    tokenizer().save_pretrained(tmp_path / "base")
    base = BaseModel(id="poolerless", path=str(tmp_path / "base"), weight_digest="0" * 64)
    names = tuple(module.name for module in linear_modules(base, classifier(2)))
    model = load_adapter_folder(make_adapter(tmp_path / "native", base, rank=4, target_modules=names), base=base)
    expected, drawn = logits(model), list[Tensor]()
    write_plain_lora(get_method("lora-xs").plain_lora(model), tmp_path / "lora")
    for seed, form in enumerate(("native", "native", "lora")):
        torch.manual_seed(seed)
        there = plain(base)
        drawn.append(logits(there))
        torch.testing.assert_close(
            logits(PeftModel.from_pretrained(there, str(tmp_path / form)).eval()), expected, **CLOSE
        )
    assert not torch.allclose(drawn[0], drawn[1], atol=1e-3)
    bank = AdapterBank(base)
    bank.load("it", tmp_path / "native")
    torch.testing.assert_close(torch.stack(bank.logits(["it"] * 4, inputs())), expected, **CLOSE)


def test_a_pooler_that_is_there_is_left_as_it_is(base):
    model = load_model(base, classifier(2))
    assert missing_poolers(model) == ()
    torch.testing.assert_close(logits(model), logits(plain(base)))
