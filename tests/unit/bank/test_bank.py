"""Adapters come, go and are refused; batches of many threads are undisturbed by it."""

from __future__ import annotations

import dataclasses
import hashlib
import json
import shutil
import threading
from pathlib import Path
from random import Random

import numpy as np
import pandas as pd
import pytest
import torch
from safetensors.torch import load_file, save_file
from support.studies import study
from support.toy_language import choosing, save_base, writing
from support.toys import seal
from transformers import GenerationConfig, PreTrainedTokenizerFast

import loraxs_search
from loraxs_search import AdapterBank
from loraxs_search.base_model.load import load_model
from loraxs_search.base_model.locate import locate
from loraxs_search.errors import BaseModelError, IntegrityError, RegistryError, StudyError, TaskDataError, UsageError
from loraxs_search.factors.store import FactorStore, write_factors
from loraxs_search.home import factor_path
from loraxs_search.manifest import Manifest, verify
from loraxs_search.methods import get_method
from loraxs_search.methods.loading import load_adapter_folder
from loraxs_search.methods.loraxs import LoraXSConfig, use_factor_store
from loraxs_search.methods.loraxs.model import body_fingerprint
from loraxs_search.methods.stored import expanded
from loraxs_search.predictor import Predictor
from loraxs_search.records.codec import from_json
from loraxs_search.records.search import OperatingPoint
from loraxs_search.records.task import BaseModelRef, DataSource, Task, TaskModel
from loraxs_search.registry.factor_sets import install_factors
from loraxs_search.tasks.kinds import TaskKind, classifier

TARGETS = tuple(f"bert.encoder.layer.{i}.attention.self.{part}" for i in (0, 1) for part in ("query", "value"))
R_BYTES, HEAD_BYTES = 4 * 4 * 4 * len(TARGETS), 4 * (2 * 32 + 2)
LANGUAGE_MODEL = TaskModel("AutoModelForCausalLM")


@pytest.fixture(scope="module", autouse=True)
def _factor_store(tmp_path_factory):
    with use_factor_store(FactorStore(tmp_path_factory.mktemp("factors"))):
        yield


@pytest.fixture(scope="module")
def base(tiny_base):
    with pytest.MonkeyPatch.context() as patch:
        patch.setenv("LORAXS_HOME", str(tiny_base.parent / "base-home"))
        return locate(BaseModelRef(str(tiny_base)))


@pytest.fixture(scope="module")
def folders(base, make_adapter, tmp_path_factory):
    """Three adapters of one shape and one of another."""
    kinds = {
        "a": {"rank": 4},
        "b": {"rank": 4, "scale": 2.0},
        "c": {"rank": 4, "sigma": "none"},
        "d": {"rank": 2, "num_labels": 3},
    }
    folder = tmp_path_factory.mktemp("adapters")
    made = {
        name: make_adapter(folder / name, base, seed=seed, target_modules=TARGETS, **kind)
        for seed, (name, kind) in enumerate(kinds.items())
    }
    seal(made["d"], dataclasses.replace(verify(made["d"]), operating_points=(OperatingPoint(0.9, 0.0, 100),)))
    return made


@pytest.fixture(scope="module")
def inputs():
    ids = torch.randint(1000, 20000, (6, 7), generator=torch.Generator().manual_seed(2))
    return {"input_ids": ids, "attention_mask": torch.ones_like(ids)}


@pytest.fixture
def bank(base, folders):
    bank = AdapterBank(base)
    for name, folder in folders.items():
        bank.load(name, folder)
    return bank


def close(actual: list[torch.Tensor], expected: list[torch.Tensor]) -> bool:
    return all(torch.allclose(a, b, atol=1e-5) for a, b in zip(actual, expected, strict=True))


# ---- what is there ---------------------------------------------------------------------------------------------------
def test_a_name_is_loaded_anew_and_bytes_are_those_of_r_and_head(base, folders, inputs):
    bank = AdapterBank(base)
    bank.load("a", folders["a"])
    assert bank.num_bytes == R_BYTES + HEAD_BYTES
    bank.load("b", folders["b"])
    expected = bank.logits(["b"] * 6, inputs)
    assert not close(bank.logits(["a"] * 6, inputs), expected)
    bank.load("a", folders["b"])
    assert close(bank.logits(["a"] * 6, inputs), expected)
    assert (len(bank), "a" in bank, bank.num_bytes) == (2, True, 2 * (R_BYTES + HEAD_BYTES))


def test_a_bank_of_folders_finds_its_base(base, folders, in_warm_home, inputs):
    bank = AdapterBank.of(str(folders["a"]), str(folders["d"]), max_bytes=1 << 20)
    assert bank.base.weight_digest == base.weight_digest
    assert [len(row) for row in bank.logits([str(folders["a"]), str(folders["d"])] * 3, inputs)] == [2, 3] * 3
    with pytest.raises(UsageError, match="one adapter at least"):
        AdapterBank.of()


# ---- texts -----------------------------------------------------------------------------------------------------------
def test_texts_of_several_tasks_are_one_batch(bank, folders, base):
    texts = ["a moving, funny film", "two hours of my life that I will never get back", "so so", "no"]
    names = ["d", "a", "b", "d"]
    found = bank.predict(names, texts)
    for name, text, prediction in zip(names, texts, found, strict=True):
        (expected,) = loraxs_search.predict(str(folders[name]), [text])
        assert (prediction.text, prediction.label) == (text, expected.label)
        assert prediction.score == pytest.approx(expected.score, abs=1e-5)
        assert prediction.sure_at == expected.sure_at == ({0.9: True} if name == "d" else None)


def test_levels_and_several_labels_are_answered_as_predict_does(base, make_adapter, tmp_path):
    bank, texts = AdapterBank(base), ["a moving, funny film", "two hours of my life", "so so"]
    for kind, metric, labels in (("ordinal", "mae", ("1", "2", "5")), ("multi-label", "micro_f1", ("a", "b", "c"))):
        task = Task(kind, kind, DataSource(), "text", "label", metric, "maximize", (metric,), labels=labels)
        bank.load(kind, make_adapter(tmp_path / kind, base, task=task, rank=4, target_modules=TARGETS))
    found = bank.predict(["ordinal", "multi-label"] * 3, [text for text in texts for _ in range(2)])
    for kind, own in (("ordinal", found[::2]), ("multi-label", found[1::2])):
        for answer, expected in zip(own, loraxs_search.predict(str(tmp_path / kind), texts), strict=True):
            assert (answer.label, answer.text) == (expected.label, expected.text)
            assert answer.probabilities == pytest.approx(expected.probabilities, abs=1e-5)
            assert (answer.score, answer.expected) == pytest.approx((expected.score, expected.expected), abs=1e-5)


def test_names_beside_a_table_are_taken_in_its_order(bank, inputs):
    table = pd.DataFrame({"model": [*"abbdba"], "text": [*"uvwxyz"]})[::-1]  # labelled 5 to 0
    names = table["model"].tolist()
    assert bank.predict(table["model"], table) == bank.predict(names, table)
    assert close(bank.logits(table["model"], inputs), bank.logits(names, inputs))


def test_an_adapter_that_is_replaced_while_texts_are_tokenised_answers_as_a_whole(bank, folders, monkeypatch):
    """Task and numbers are of one moment: labels of the one with scores of the other would be nobody's answer."""
    texts = ["a moving, funny film", "so so"]
    expected = bank.predict(["a", "b"], texts)

    encode = TaskKind.encode_questions

    def replacing(*args):
        bank.load("a", folders["d"])
        return encode(*args)

    monkeypatch.setattr(TaskKind, "encode_questions", replacing)
    found = bank.predict(["a", "b"], texts)
    assert [prediction.label for prediction in found] == [prediction.label for prediction in expected]
    assert [prediction.score for prediction in found] == pytest.approx([p.score for p in expected], abs=1e-5)


def test_texts_that_are_cut_are_warned_of_once(bank, caplog):
    bank.predict(["a", "d", "a"], ["word " * 200, "so so", "word " * 300])
    assert caplog.messages == ["2 of 3 rows are longer than max_length=128: their ends are lost"]
    caplog.clear()
    bank.predict(["a", "d"], ["so so", "no"])
    assert caplog.messages == []


def test_tasks_that_differ_in_length_cut_texts_as_each_alone(
    base, folders, make_adapter, tmp_path, monkeypatch, caplog
):
    """A tokenizer keeps the length of its last call: a thread that asks in between would change another's."""
    about = ("sequence-classification", DataSource(), "x", "y", "accuracy", "maximize", ("accuracy",))
    task = Task("t", *about, labels=("n", "y"), max_length=16)
    bank, text = AdapterBank(base), "a film " * 100
    bank.load("long", folders["a"])
    bank.load("short", make_adapter(tmp_path / "short", base, task=task, rank=2, target_modules=TARGETS))
    bank.predict("long", [text])
    expected, set_up = caplog.messages, PreTrainedTokenizerFast.set_truncation_and_padding
    caplog.clear()
    others = []

    def ask_in_between(self, *args, **kwargs):
        set_up(self, *args, **kwargs)
        if not others:
            others.append(threading.Thread(target=bank.predict, args=("short", ["no"])))
            others[0].start()
            others[0].join(0.5)

    monkeypatch.setattr(PreTrainedTokenizerFast, "set_truncation_and_padding", ask_in_between)
    bank.predict("long", [text])
    others[0].join()
    assert caplog.messages == expected == ["1 of 1 rows are longer than max_length=128: their ends are lost"]


def test_an_adapter_that_a_study_has_kept_is_loaded_by_its_trial(base, folders, inputs, bank):
    shutil.copytree(folders["a"], study("found").adapters_path / "00003")
    mine = AdapterBank(base)
    mine.load("x", "found/00003")
    assert close(mine.logits(["x"] * 6, inputs), bank.logits(["a"] * 6, inputs))
    assert AdapterBank.of("found/00003").names == ["found/00003"]
    with pytest.raises(StudyError, match="00004") as refused:
        mine.load("x", "found/00004")
    assert "loraxs-search status found" in refused.value.hint


# ---- what is refused -------------------------------------------------------------------------------------------------
def changed(folder: Path, to: Path, *, config: dict | None = None, tensors=None, manifest: dict | None = None) -> Path:
    """Copy an adapter folder with changes that its manifest vouches for; those of tensors have PEFT's names."""
    shutil.copytree(folder, to)
    if config:
        path = to / "adapter_config.json"
        path.write_text(json.dumps(json.loads(path.read_text()) | config))
    if tensors:
        modules = json.loads((to / "manifest.json").read_text())["hyperparameters"]["target_modules"]
        own = expanded(load_file(to / "adapter_model.safetensors"), modules)
        save_file({name: value.clone() for name, value in tensors(own).items()}, to / "adapter_model.safetensors")
    path = to / "manifest.json"
    content = json.loads(path.read_text()) | (manifest or {})
    if "files" not in (manifest or {}):
        content["files"] = {name: hashlib.sha256((to / name).read_bytes()).hexdigest() for name in content["files"]}
    path.write_text(json.dumps(content))
    return to


def renamed(old: str, new: str):
    return lambda tensors: {key.replace(old, new): value for key, value in tensors.items()}


def without(part: str):
    return lambda tensors: {key: value for key, value in tensors.items() if part not in key}


REFUSED = {
    "another base": ({"manifest": {"base_digest": "f" * 64}}, BaseModelError, "weights ffff"),
    "a changed file": ({"manifest": {"files": {"adapter_model.safetensors": "0" * 64}}}, IntegrityError, "sha256"),
    "no word of a file": ({"manifest": {"files": {}}}, IntegrityError, "must vouch for adapter_config"),
    "another basis": ({"config": {"basis": "bottom"}}, BaseModelError, "fingerprints must agree"),
    "another scale": ({"config": {"scale": 3.0}}, BaseModelError, "probe must agree"),
    "another rank": ({"config": {"r": 3, "factor_fingerprints": {}}}, IntegrityError, r"of shape \(3, 3\)"),
    "another module": ({"tensors": renamed("query", "quarry")}, UsageError, "query"),
    "a missing module": ({"tensors": without("layer.1")}, IntegrityError, "layer.1.attention.self.query is missing"),
    "another parameter": ({"tensors": renamed("classifier", "pooler")}, IntegrityError, "of the head only"),
    "a layer passed": ({"config": {"pass_through": ["bert.encoder.layer.0.output.dense"]}}, IntegrityError, "layer.0"),
    "another root": ({"tensors": renamed("base_model.model.", "")}, IntegrityError, "must be named base_model"),
}


def test_what_does_not_fit_is_refused_and_changes_nothing(bank, folders, inputs, tmp_path):
    before = bank.logits(["a"] * 6, inputs)
    for what, (changes, error, match) in REFUSED.items():
        with pytest.raises(error, match=match):
            bank.load("a", changed(folders["a"], tmp_path / what, **changes))
    assert close(bank.logits(["a"] * 6, inputs), before)
    assert bank.names == ["b", "c", "d", "a"]


def test_an_adapter_in_memory_is_checked_as_files_are_and_is_what_its_folder_is(bank, folders, inputs):
    config = LoraXSConfig.from_pretrained(str(folders["a"]))
    task = from_json(Manifest, (folders["a"] / "manifest.json").read_bytes()).task
    tensors = load_file(folders["a"] / "adapter_model.safetensors")
    with pytest.raises(BaseModelError, match="fingerprints must agree"):
        bank.add("x", dataclasses.replace(config, basis="middle"), task, tensors)
    with pytest.raises(UsageError) as refused:
        bank.add("x", dataclasses.replace(config, basis="gaussian", init_seed=1), task, tensors)
    assert "load_adapter" in refused.value.hint
    body = body_fingerprint(load_model(bank.base, classifier(2)))
    with pytest.raises(BaseModelError, match="fingerprint"):
        bank.add("x", dataclasses.replace(config, body_fingerprint=[body[0] + 0.01, *body[1:]]), task, tensors)
    assert len(bank) == 4
    bank.add("x", dataclasses.replace(config, body_fingerprint=list(body)), task, tensors)
    assert len(bank) == 5
    assert close(bank.logits(["x"] * 6, inputs), bank.logits(["a"] * 6, inputs))


def test_names_without_rows_or_that_are_not_there_are_refused(bank, folders, inputs, store_uri):
    assert bank.predict([], []) == bank.predict("a", []) == loraxs_search.load(folders["a"])([]) == []
    with pytest.raises(UsageError, match="None is none of 4") as bare:
        bank.predict(["a", None], ["one", "two"])
    assert "logits" in str(bare.value.hint)
    with pytest.raises(TaskDataError, match=r"task-2 .*\('one', 'two'\)"):
        bank.predict(["a"], [("one", "two")])
    with pytest.raises(UsageError, match="got 1 for 2"):
        bank.predict(["a"], ["one", "two"])
    for names, match in (([], "at least one row"), (["a"] * 5, "got 5 names"), (["a"] * 5 + ["aa"], "'aa' is none of")):
        with pytest.raises(UsageError, match=match):
            bank.logits(names, inputs if names else {})
    with pytest.raises(UsageError, match="'e' is none of 4"):
        bank.evict("e")
    with pytest.raises(UsageError, match="nan is none of 4"):
        bank.predict([float("nan")], ["one"])
    with pytest.raises(RegistryError):
        bank.load("no-such-task")


# ---- what is evicted -------------------------------------------------------------------------------------------------
def test_a_bank_is_a_dictionary_that_forgets_the_least_recently_used(base, folders):
    """It has space for three small adapters, or for a large and a small one."""
    made = {name: from_json(Manifest, (folders[name] / "manifest.json").read_bytes()).task for name in "ad"}
    files = {name: load_file(folders[name] / "adapter_model.safetensors") for name in "ad"}
    configs = {name: LoraXSConfig.from_pretrained(str(folders[name])) for name in "ad"}
    sizes = {name: sum(value.nbytes for value in files[name].values()) for name in "ad"}
    limit = sizes["a"] + sizes["d"] + 4
    bank, expected, random = AdapterBank(base, max_bytes=limit), dict[str, int](), Random(0)
    for _ in range(300):
        step, name = random.choice(["add", "evict", "use"]), random.choice("uvwxyz")
        if step == "add":
            own = random.choice("ad")
            expected.pop(name, None)
            while sum(expected.values()) + sizes[own] > limit:
                expected.pop(next(iter(expected)))
            expected[name] = sizes[own]
            bank.add(name, configs[own], made[own], files[own])
        elif name not in expected:
            with pytest.raises(UsageError, match="is none of"):
                bank.evict(name) if step == "evict" else bank.take([name])
        elif step == "evict":
            bank.evict(name)
            expected.pop(name)
        else:
            assert bank.take([name])[name].vector.nbytes == expected[name]
            expected[name] = expected.pop(name)
        assert bank.names == list(expected)
        assert bank.num_bytes == sum(expected.values())
    small = AdapterBank(base, max_bytes=100)
    with pytest.raises(UsageError, match="must hold an adapter"):
        small.load("a", folders["a"])


def test_adapters_of_other_methods_are_refused_with_the_way_to_serve_them(bank, base, make_adapter, tmp_path):
    before = bank.names
    for method, own, remedy in [
        ("lora", {"rank": 4}, "pull --format lora"),
        ("head-only", {}, "loraxs_search.load_adapter"),
    ]:
        fields = get_method(method).fields(own, {})
        folder = make_adapter(tmp_path / method, base, target_modules=TARGETS, method=method, **fields)
        with pytest.raises(UsageError, match=f"must be of method lora-xs, but mine is of method {method}") as refusal:
            bank.load("mine", folder)
        assert remedy in str(refusal.value.hint)
    assert bank.names == before


def test_adapters_of_two_machines_share_a_bank(base, make_adapter, tmp_path, inputs):
    """The other one found the same subspaces with other signs."""
    plain, there = FactorStore(tmp_path / "plain"), FactorStore(tmp_path / "there")
    model, signs = load_model(base, classifier(2)), torch.tensor([-1.0, 1.0]).repeat(16)
    for name in TARGETS:
        weight = model.get_submodule(name).weight.detach()
        own = plain.get(weight, rank=32)
        flipped = dataclasses.replace(own, left=own.left * signs, right=own.right * signs[:, None])
        write_factors(factor_path(plain.identify(weight, rank=32)[0], there.root), flipped)
    settings = {"rank": 4, "target_modules": TARGETS}
    with use_factor_store(there):
        elsewhere = make_adapter(tmp_path / "elsewhere", base, **settings)
        expected = load_adapter_folder(elsewhere)(**inputs).logits.detach()
    with use_factor_store(FactorStore(tmp_path / "here")) as here:
        own = make_adapter(tmp_path / "own", base, seed=1, **settings)
        bank = AdapterBank(base)
        bank.load("own", own)
        with pytest.raises(BaseModelError):
            bank.load("elsewhere", elsewhere)
        for file in there.root.glob("*/*.safetensors"):
            install_factors(file.stem, file.read_bytes(), here.root)
        bank.load("elsewhere", elsewhere)
        found = bank.logits(["own", "elsewhere"] * 3, inputs)
        assert close(found[1::2], list(expected[1::2]))
        assert close(found[::2], list(load_adapter_folder(own)(**inputs).logits[::2]))


# ---- adapters that write and choose ----------------------------------------------------------------------------------
TASKS = {
    "one": writing(prompt="say {words}"),
    "two": writing(prompt="{first} say {second}"),
    "listed": choosing(options="choices"),
    "four": choosing(options=["{a}", "{b}", "{c}", "{d}"]),
}


@pytest.fixture(scope="module")
def writers(make_adapter, tmp_path_factory):
    """A bank of adapters of a toy language."""
    folder = tmp_path_factory.mktemp("writing")
    with pytest.MonkeyPatch.context() as patch:
        patch.setenv("LORAXS_HOME", str(folder / "home"))
        base = save_base(folder / "base")
        bank = AdapterBank(base, task_model=LANGUAGE_MODEL)
        for name, task in TASKS.items():
            bank.load(name, make_adapter(folder / name, base, task=task, seed=3, rank=4))
        yield bank


ROWS = [
    ("one", "", "must be given text to read, but row 1 of the request has none", "leave out"),
    ("one", float("nan"), "must be given one text per row, but the request has nan", "as a str in Python"),
    ("two", "w1", "must be given two texts per row, but got 'w1'", "a row is first then second"),
    ("listed", ("w1", "w2"), "the options of a row must be two or more", "correct or remove"),
    ("listed", ("w1", "w2 | " + "w3 " * 40), "must fit `max_length` with a token of its prompt", "raise"),
    ("four", ("w1", "w2", "w3"), "5 texts per row, but got ('w1', 'w2', 'w3')", "words then a then b"),
]


def test_a_row_that_does_not_fit_its_task_is_named(writers):
    for name, row, message, hint in ROWS:
        with pytest.raises(TaskDataError) as error:
            writers.predict(name, [row])
        assert message in str(error.value)
        assert hint in str(error.value.hint)
    for row in ((" ", ""), ("w1", None), ("w1", "w2 | " + "w3 " * 40)):  # counted over several tasks
        with pytest.raises(TaskDataError, match=r"\brow 3\b"):
            writers.predict(["one", "listed", "listed"], ["w1", ("w1", "w2 | w3"), row])


def test_a_base_that_ends_answers_elsewhere_is_refused(make_adapter, tmp_path):
    base = save_base(tmp_path / "base")
    old = make_adapter(tmp_path / "old", base, task=TASKS["one"], rank=4)
    new = make_adapter(tmp_path / "new", base, task=TASKS["one"], rank=4)
    written = json.loads((new / "manifest.json").read_text()) | {"ends": ["[END]"]}
    (new / "manifest.json").write_text(json.dumps(written))
    Predictor(new).load()
    AdapterBank(base, task_model=LANGUAGE_MODEL).load("new", new)
    GenerationConfig(eos_token_id=[2, 3]).save_pretrained(base.path)
    Predictor(old).load()  # of a version that stored no ends
    bank = AdapterBank(base, task_model=LANGUAGE_MODEL)
    bank.load("old", old)
    for load in (Predictor(new).load, lambda: bank.load("new", new), lambda: load_adapter_folder(new)):
        with pytest.raises(BaseModelError) as error:
            load()
        assert "revision" in str(error.value.hint)
    assert bank.names == ["old"]


def test_values_are_read_as_in_training(writers):
    for number, text in ((3, "3"), (2.0, "2"), (np.float64(2.5), "2.5"), (True, "true")):
        assert [one.label for one in writers.predict("one", [number])] == [writers.predict("one", [text])[0].label]
    assert writers.predict("two", [("w1", 4)])[0].label == writers.predict("two", [("w1", "4")])[0].label
    assert (
        writers.predict("listed", [(3, ["w2", "w3"])])[0].label
        == writers.predict("listed", [("3", "w2 | w3")])[0].label
    )


def test_each_row_of_a_table_has_the_columns_of_its_task(writers):
    table = pd.DataFrame(
        {
            "first": ["w4", None, None],
            "choices": [None, ["w2", "w3"], None],
            "second": ["w5", None, None],
            "words": [None, "w1", "w6"],
        }
    )
    rows = [("w4", "w5"), ("w1", ["w2", "w3"]), "w6"]
    assert writers.predict(["two", "listed", "one"], table) == writers.predict(["two", "listed", "one"], rows)
    with pytest.raises(UsageError, match="must have the column a, which the task reads"):
        writers.predict("four", table)
    with pytest.raises(UsageError, match="got 1 for 3"):
        writers.predict(["one"], table)


def test_rows_without_a_mask_are_whole(writers):
    ids = torch.tensor([[3, 4, 5], [6, 7, 8]])
    masked = writers.logits(["one", None], {"input_ids": ids, "attention_mask": torch.ones_like(ids)})
    for found, expected in zip(writers.logits(["one", None], {"input_ids": ids}), masked, strict=True):
        torch.testing.assert_close(found, expected)
