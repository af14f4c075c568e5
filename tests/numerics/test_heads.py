"""What heads read and learn: pools, one output a token, numbers; the same packed, loaded, served and exported."""

from __future__ import annotations

import contextlib
import json
import re
import shutil
import warnings
from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from peft import PeftModel
from safetensors.torch import load_file
from support import toy_language
from support.bases import families
from support.rows import TAGS
from support.toys import seal
from support.trials import make_spec
from torch import Tensor
from torch.nn.functional import linear
from transformers import (
    AutoModel,
    AutoModelForSequenceClassification,
    AutoModelForTokenClassification,
    AutoTokenizer,
    BertForMaskedLM,
    PreTrainedModel,
)

from loraxs_search import AdapterBank, assets, load
from loraxs_search.base_model.layers import repeated_layers
from loraxs_search.base_model.load import load_model, missing_poolers
from loraxs_search.base_model.locate import locate
from loraxs_search.base_model.reading import place_pooling, pool, pooling_of
from loraxs_search.base_model.tokenizer import load_tokenizer
from loraxs_search.engine.passes import forward
from loraxs_search.engine.pruning import LastLayerPruning
from loraxs_search.errors import UsageError
from loraxs_search.factors.store import FactorStore
from loraxs_search.methods import get_method
from loraxs_search.methods.export.folder import converted, write_plain_lora
from loraxs_search.methods.loading import compare_reference_logits, load_adapter_folder, reference_logits, tolerance
from loraxs_search.methods.loraxs import use_factor_store
from loraxs_search.packing.host import TrialHost
from loraxs_search.records.codec import Pooling
from loraxs_search.records.task import BaseModel, BaseModelRef, DataSource, Task
from loraxs_search.records.trial import TrialSpec
from loraxs_search.registry.card import model_card
from loraxs_search.search_space.load import load_space
from loraxs_search.tasks.kinds import TokenClassification, kind_of
from loraxs_search.tasks.prepared import prepare
from loraxs_search.tasks.rows import SourceLocation
from loraxs_search.trial.evaluate import score_folder, score_rows

from .conftest import CLASSIFIER, FAMILIES, WORDS, World, padded, save_adapter, save_base, tokenizer

CLOSE = {"atol": 1e-5, "rtol": 1e-5}


# ---- pools -----------------------------------------------------------------------------------------------------------
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
    spec = make_spec("1", [module.name for module in info.modules], learning_rate=1e-2)
    for task in (space.task, replace(space.task, pooling=info.pooling)):
        _, state = host.advance(spec, 2, None, task)
    confirmation = host.confirm(spec, state)
    for name, content in confirmation.files.items():
        (tmp_path / name).write_bytes(content)
    model = PeftModel.from_pretrained(plain(info.base), str(tmp_path)).eval()
    probe = confirmation.probe
    compare_reference_logits(reference_logits(model, probe.input_ids), probe, tolerance(model))
    (folder / "1_Pooling" / "config.json").write_text('{"pooling_mode_max_tokens": true}')
    other = TrialHost(space.base_model, space.task, precision="float32").info(space.task)
    assert other.pooling == "class"
    assert any("pooling by max" in warning for warning in other.data.warnings)


@torch.no_grad()
def logits(model: torch.nn.Module) -> Tensor:
    found: Tensor = model(**padded(4)).logits
    return found


def plain(base: BaseModel) -> PreTrainedModel:
    return AutoModelForSequenceClassification.from_pretrained(base.path, num_labels=2).eval()


def reading(pooling: Pooling, text: str = "text", text_pair: str | None = None) -> Task:
    about = ("sequence-classification", DataSource(), text, "label", "accuracy", "maximize", ("accuracy",))
    return Task("it", *about, labels=("no", "yes"), pooling=pooling, text_pair=text_pair)


@pytest.fixture
def base(request, tmp_path):
    save_base(tmp_path / "base", getattr(request, "param", "bert"))
    return locate(BaseModelRef(str(tmp_path / "base")))


@pytest.fixture
def make_pooled(base, make_adapter, tmp_path):
    """Make a LoRA-XS adapter whose head reads a pool."""

    def make(pooling: Pooling, name: str = "", **changes: Any) -> Path:
        given = {"rank": 2, "task": reading(pooling), **changes}
        return make_adapter(tmp_path / (name or pooling), base, **given)

    return make


def test_a_merged_model_says_that_its_pool_is_not_saved_and_adapters_of_one_model_read_one_pool(make_pooled, base):
    mean, cls = make_pooled("mean"), make_pooled("cls")
    model = PeftModel.from_pretrained(plain(base), str(mean)).eval()
    expected = logits(model)
    with pytest.raises(UsageError, match="mean and cls"):
        model.load_adapter(str(cls), "other")
    assert pooling_of(model.get_base_model()) == "mean"
    assert torch.equal(logits(model), expected)
    with pytest.warns(UserWarning, match="reads `mean` pooling, which `save_pretrained` does not save"):
        merged = model.merge_and_unload()
    torch.testing.assert_close(logits(merged), expected, **CLOSE)
    with warnings.catch_warnings(record=True) as seen:
        warnings.simplefilter("always")
        PeftModel.from_pretrained(plain(base), str(make_pooled("class"))).merge_and_unload()
    assert not any("pooling" in str(each.message) for each in seen)


def test_a_bank_reads_each_row_as_its_adapter_was_trained(make_pooled, base):
    ways: list[Pooling] = ["mean", "class", "last"]
    folders = {name: make_pooled(name, seed=seed) for seed, name in enumerate(ways)}
    bank = AdapterBank(base)
    for name, folder in folders.items():
        bank.load(name, folder)
    names = ["last", "mean", None, "class"]
    for index, (name, found) in enumerate(zip(names, bank.logits(names, padded(4)), strict=True)):
        model = plain(base) if name is None else load_adapter_folder(folders[name], base=base)
        torch.testing.assert_close(found, logits(model)[index], **CLOSE)


def encoded(folder: Path, base: BaseModel) -> Tensor:
    """Return what sentence-transformers makes of `padded` rows by the modules of a folder; their code is short."""
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
        x = pool(body(**padded(4)).last_hidden_state, padded(4)["attention_mask"], how)
        for module in modules[2:]:
            assert module["type"] == "sentence_transformers.models.Dense"
            config = json.loads((folder / module["path"] / "config.json").read_text())
            state = load_file(folder / module["path"] / "model.safetensors")
            x = linear(x, state["linear.weight"], state.get("linear.bias"))
            x = getattr(torch.nn, config["activation_function"].rpartition(".")[2])()(x)
    return x


@pytest.mark.parametrize(
    ("base", "pooling", "method"),
    [
        ("bert", "cls", "lora-xs"),
        ("bert", "last", "lora"),
        ("roberta", "mean", "lora-xs"),  # its head has two layers
        pytest.param("gpt2", "mean", "lora-xs", marks=pytest.mark.long(part="bases")),
    ],
    indirect=["base"],
)
def test_exports_of_a_pooled_adapter_are_sentence_encoders_of_its_logits(base, pooling, method, make_pooled):
    """And their page asks for all texts of a row."""
    lora = {"rank": 0, "method": "lora", **get_method("lora").fields({"rank": 2}, {})}
    for texts, asked in ({}, '"text"'), ({"text": "first", "text_pair": "second"}, '("first", "second")'):
        changes = {"task": reading(pooling, **texts), **(lora if method == "lora" else {})}
        folder = make_pooled(pooling, f"adapter-{len(texts)}", **changes)
        for form in ("merged", "lora"):
            made = converted(folder, form)
            torch.testing.assert_close(encoded(made, base), logits(load_adapter_folder(folder)), **CLOSE)
            page = (made / "README.md").read_text()
            assert "sentence_transformers.SentenceTransformer" in page
            assert f"model.encode([{asked}])" in page


@pytest.mark.parametrize("base", ["modernbert"], indirect=True)
def test_a_configuration_that_has_a_place_for_it_says_the_pool(make_pooled):
    folder = make_pooled("mean")
    merged = AutoModelForSequenceClassification.from_pretrained(converted(folder, "merged")).eval()
    torch.testing.assert_close(logits(merged), logits(load_adapter_folder(folder)), **CLOSE)
    with pytest.raises(UsageError, match="The head of ModernBertForSequenceClassification"):
        converted(folder, "lora")


def test_an_adapter_on_a_checkpoint_without_its_pooler_is_the_same_wherever_it_is_loaded(make_adapter, tmp_path, base):
    """Whatever others draw for the pooler; the base was saved with the head for masked words, as many are."""
    assert missing_poolers(load_model(base, CLASSIFIER)) == ()
    torch.manual_seed(0)
    BertForMaskedLM(FAMILIES["bert"]()).save_pretrained(tmp_path / "bare")  # type: ignore[arg-type]
    tokenizer().save_pretrained(tmp_path / "bare")
    base = BaseModel(id="poolerless", path=str(tmp_path / "bare"), weight_digest="0" * 64)
    folder = make_adapter(tmp_path / "native", base, rank=4)
    model = load_adapter_folder(folder, base=base)
    expected, drawn = logits(model), list[Tensor]()
    write_plain_lora(get_method("lora-xs").plain_lora(model), tmp_path / "lora")
    for seed, form in enumerate(("native", "native", "lora")):
        torch.manual_seed(seed)
        there = plain(base)
        drawn.append(logits(there))
        loaded = PeftModel.from_pretrained(there, str(tmp_path / form)).eval()
        torch.testing.assert_close(logits(loaded), expected, **CLOSE)
    assert not torch.allclose(drawn[0], drawn[1], atol=1e-3)
    bank = AdapterBank(base)
    bank.load("it", folder)
    torch.testing.assert_close(torch.stack(bank.logits(["it"] * 4, padded(4))), expected, **CLOSE)


# ---- one output a token ----------------------------------------------------------------------------------------------
class TaggedWorld(World):
    """A base whose trials tag words; a word's tag can be read off the word, and some rows have more than fit."""

    def __init__(self, folder: Path, family: str) -> None:
        save_base(folder / "base", family)
        self.base = locate(BaseModelRef(str(folder / "base")))
        self.rows = [[(7 * i + 11 * j) % len(WORDS) for j in range(1 + (5 * i) % 27)] for i in range(60)]
        rows = [{"tokens": [WORDS[w] for w in row], "tags": [TAGS[w % len(TAGS)] for w in row]} for row in self.rows]
        files = {}
        for split, size in {"train": 60, "validation": 21, "test": 20}.items():
            files[split] = str(folder / f"{split}.jsonl")
            Path(files[split]).write_text("\n".join(map(json.dumps, rows[:size])))
        section = TokenClassification.section(columns={"tokens": "tokens", "tags": "tags"}, labels=TAGS)
        own = {"max_length": 24, "metric": "f1", "direction": "maximize", "metrics": ("f1", "accuracy")}
        source, fields = DataSource(data_files=files), TokenClassification.fields(section)
        task = Task("names", TokenClassification.name, source, **own, **fields)
        self.data = prepare(task, load_tokenizer(self.base))
        self.load(kind_of(task).model)


@pytest.mark.parametrize("family", families(["bert", "roberta", "distilbert", "gpt2", "llama"]))
def test_loss_and_answers_are_those_of_transformers(family, tmp_path):
    """The mean over the first tokens of a batch, others are masked; a label of a word that was cut is not learnt."""
    world = TaggedWorld(tmp_path, family)
    model, data = world.model, world.data
    batch = data.collate("train", np.arange(20))
    assert batch.reads is not None
    labels = torch.full_like(batch.inputs["input_ids"], -100)
    labels[batch.reads[:, 0], batch.reads[:, 1]] = batch.targets
    expected = model(**batch.inputs, labels=labels)
    losses = data.kind.loss(forward(model, batch.inputs, batch.reads), batch)
    torch.testing.assert_close(losses.sum() / batch.counts.sum(), expected.loss)
    scores = score_rows(model, data, "train", np.arange(20))
    for row, answer in enumerate(scores.predictions):
        own = batch.reads[batch.reads[:, 0] == row, 1]
        tags = [TAGS[tag] for tag in expected.logits[row, own].argmax(-1).tolist()]
        assert answer.split() == [*tags, *["O"] * (len(world.rows[row]) - len(own))]


@pytest.mark.parametrize("family", ["bert", "llama"])
def test_an_adapter_answers_alike_wherever_it_is_asked(family, tmp_path, make_adapter):
    with use_factor_store(FactorStore(tmp_path / "factors")):
        world = TaggedWorld(tmp_path, family)
        names, kinds = tuple(world.names), {"own": {"rank": 4}, "other": {"rank": 2, "seed": 1}}
        folder, other = (
            make_adapter(tmp_path / name, world.base, task=world.data.task, **{"target_modules": names, **kind})
            for name, kind in kinds.items()
        )
        texts = [" ".join(WORDS[word] for word in row) for row in world.rows[:20]]
        answers, others = (load(str(each))(texts) for each in (folder, other))
        assert [answer.label for answer in answers] != [answer.label for answer in others]
        assert load(str(folder))(texts[3]) == answers[3:4]
        rows = [(text.split(),) for text in texts[2:4]]
        assert list(load(str(folder)).in_parts(rows, SourceLocation("rows"), 1)) == [answers[2:3], answers[3:4]]

        bank = AdapterBank.of(str(folder), str(other))
        mixed = bank.predict([str(folder), str(other)] * len(texts), [text for text in texts for _ in range(2)])
        assert (mixed[::2], mixed[1::2]) == (answers, others)

        merged = converted(folder, "merged")  # of transformers: each word by its first token, `O` beyond 24 tokens
        model, tokens = AutoModelForTokenClassification.from_pretrained(merged), AutoTokenizer.from_pretrained(merged)
        for text, answer in zip(texts, answers, strict=True):
            cut = {"truncation": True, "max_length": 24}
            asked = tokens(text.split(), is_split_into_words=True, return_tensors="pt", **cut)
            with torch.no_grad():
                tags = [model.config.id2label[i] for i in model(**asked).logits[0].argmax(-1).tolist()]
            firsts: dict[Any, str] = {}
            for word, tag in zip(asked.word_ids(), tags, strict=True):
                firsts.setdefault(word, tag)
            assert answer.label == " ".join(firsts.get(word, "O") for word in range(len(text.split())))


# ---- numbers: standardised ones are learnt, and answers are in the labels' own units ---------------------------------
STEPS = 60
SPREAD, MEAN = 50_000.0, 150_000.0
in_warm_home = pytest.mark.usefixtures("in_warm_home")


def make_task(folder: Path, spread: float = SPREAD, mean: float = MEAN) -> Task:
    """Write rows whose number follows from their words; return the task as a launch stores it."""
    rows = []
    for i in range(120):
        words = [toy_language.WORDS[(7 * i + 3 * j) % 20] for j in range(2 + i % 5)]
        rows.append({"text": " ".join(words), "price": mean + spread * ((i % 5) - 2 + ("w3" in words))})
    files = {}
    for split, own in {"train": rows[:80], "validation": rows[80:100], "test": rows[100:]}.items():
        files[split] = str(folder / f"{spread}-{mean}-{split}.jsonl")
        Path(files[split]).write_text("".join(json.dumps(row) + "\n" for row in own))
    about = ("text", "price", "mse", "minimize", ("mse", "pearson"))
    own = {"max_length": 16, "pooling": "class", "standardized": True}
    return Task("prices", "regression", DataSource(data_files=files), *about, **own)


def spec_on(host: TrialHost, **changes: Any) -> TrialSpec:
    values = {"rank": 8, "batch_size": 16, "max_steps": STEPS, "learning_rate": 1e-2, "head_learning_rate": 1e-2}
    return make_spec("3", [module.name for module in host.info().modules], **{**values, **changes})


def host_of(base: Path, task: Task, slots: int = 1) -> TrialHost:
    return TrialHost(BaseModelRef(str(base)), task, slots=slots, precision="float32", device="cpu")


@torch.no_grad()
def answers_of(model: PreTrainedModel, task: Task, base: Path, split: Any = "test") -> list[float]:
    """Return what a model says of 20 rows, each alone."""
    data = prepare(task, load_tokenizer(locate(BaseModelRef(str(base)))))
    return [float(model(**data.collate(split, [i]).inputs).logits) for i in range(20)]


@in_warm_home
def test_prices_are_learnt_as_their_standardised_values_are(tiny_base, tmp_path):
    reports = []
    for task in (make_task(tmp_path, 1.0, 3.0), make_task(tmp_path)):
        host = host_of(tiny_base, task)
        reports.append(host.advance(spec_on(host), STEPS, None)[0])
    assert reports[1].metrics["pearson"] == pytest.approx(reports[0].metrics["pearson"], abs=1e-3)
    assert reports[1].metrics["pearson"] > 0.8
    assert reports[1].metrics["mse"] == pytest.approx(reports[0].metrics["mse"] * SPREAD**2, rel=1e-2)
    assert reports[1].train_loss == pytest.approx(reports[0].train_loss, rel=1e-2)


@in_warm_home
@pytest.mark.parametrize("has_bias", [True, False])
def test_files_answer_in_the_labels_own_units_and_trials_start_from_them(tiny_base, tmp_path, *, has_bias):
    """A head with a bias, and one without; rows that a trial starts on may have another mean and spread."""
    base, task, other = tiny_base, make_task(tmp_path), make_task(tmp_path, 2 * SPREAD, 1000.0)
    if not has_bias:
        toy_language.save_base(base := tmp_path / "llama")
    host = host_of(base, task)
    spec = spec_on(host, head="full" if has_bias else "output")
    _, state = host.advance(spec, 20, None)
    answers, folder = host.answer(spec, state, range(20)), tmp_path / "adapter"
    manifest = save_adapter(folder, host, spec, state, task)
    model = load_adapter_folder(folder)  # compares the reference logits, too
    assert answers_of(model, task, base) == pytest.approx(list(answers.predictions), rel=1e-4)
    assert score_folder(folder, task).answers.predictions == pytest.approx(answers.predictions, rel=1e-4)
    assert min(answers.labels) >= MEAN - 2 * SPREAD

    start = assets.keep(get_method("lora-xs").start_asset(folder, manifest, with_head=True))
    started = replace(spec, hyperparameters=replace(spec.hyperparameters, start_from=start))
    labels = prepare(other, load_tokenizer(locate(manifest.base_model))).labels("validation")
    mse = np.square(np.array(answers_of(model, other, base, "validation")) - labels).mean()
    for slots in (1, 2):
        again = host_of(base, other, slots)
        assert again.advance(started, 0, None, other)[0].metrics["mse"] == pytest.approx(mse, rel=1e-3)
        again.close()


@in_warm_home
@pytest.mark.parametrize("spread", [1e6, 1e-6])
def test_numbers_of_any_size_are_stored_as_they_were_scored(tiny_base, tmp_path, spread):
    """In float16 the head of prices would overflow, and that of millionths would have two digits."""
    task = make_task(tmp_path, spread, 0.0)
    host = host_of(tiny_base, task)
    for number, (dtype, own) in enumerate(
        [("int8", {}), ("float16", {}), ("float16", {"method": "lora", "method_params": {"rank": 4}})]
    ):
        spec = spec_on(host, stored_dtype=dtype, **own)
        _, state = host.advance(spec, 5, None)
        answers = host.answer(spec, state, range(20)).predictions
        save_adapter(folder := tmp_path / str(number), host, spec, state, task)
        close = pytest.approx(list(answers), rel=1e-4, abs=1e-4 * spread)
        assert list(score_folder(folder, task).answers.predictions) == close


@in_warm_home
def test_each_form_on_a_bfloat16_base_answers_as_exactly_as_its_head_was_trained(tiny_base, tmp_path, monkeypatch):
    """In bfloat16 a head would answer years in steps of 8; the checkpoint's own head, of two labels, is passed over."""
    base, task = tmp_path / "base", make_task(tmp_path, 15.0, 1990.0)
    shutil.copytree(tiny_base, base)
    loaded = AutoModelForSequenceClassification.from_pretrained(tiny_base, num_labels=2, dtype=torch.bfloat16)
    loaded.save_pretrained(base)
    host = TrialHost(BaseModelRef(str(base)), task, precision="bfloat16", device="cpu")
    for own in ({}, {"method": "lora", "method_params": {"rank": 4}}):
        spec = spec_on(host, **own)
        _, state = host.advance(spec, 20, None)
        folder = tmp_path / spec.hyperparameters.method
        manifest = save_adapter(folder, host, spec, state, task)
        (folder / "README.md").write_text(model_card(manifest))
        seal(folder, manifest)
        expected = answers_of(load_adapter_folder(folder), task, base)
        for form in (folder, converted(folder, "lora"), converted(folder, "merged")):
            *_, code = re.findall(r"```python\n(.*?)```", (form / "README.md").read_text(), flags=re.S)
            monkeypatch.chdir(form)
            exec(code.replace('"base"', repr(str(base))), space := {})
            assert answers_of(space["model"], task, base) == pytest.approx(expected, abs=1.0)
