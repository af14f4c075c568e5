"""A folder is loaded only as the model its manifest describes."""

from __future__ import annotations

import dataclasses
import hashlib
import json

import pytest
import torch
from peft import get_peft_model

from loraxs_search.adapter import LoraXSConfig, check_probe, load_adapter_folder, make_probe
from loraxs_search.base_model import locate
from loraxs_search.errors import BaseModelError, FactorMismatchError, IntegrityError
from loraxs_search.records import (
    AdapterSize,
    BaseModelRef,
    DataSource,
    Hyperparameters,
    Manifest,
    Probe,
    Task,
    to_json,
)

TARGETS = ("bert.encoder.layer.0.attention.self.query", "bert.encoder.layer.1.output.dense")
TASK = Task(
    name="t",
    kind="sequence-classification",
    source=DataSource(),
    text="text",
    label="label",
    metric="accuracy",
    direction="maximize",
    metrics=("accuracy",),
    labels=("no", "yes"),
)


def save_base(model, folder):
    model.save_pretrained(str(folder))
    return locate(BaseModelRef(id=str(folder)))


def write_adapter(model, base, folder, **changes):
    """Save an adapter with a manifest as the registry writes it."""
    model.save_pretrained(str(folder))
    names = ("adapter_config.json", "adapter_model.safetensors")
    manifest = Manifest(
        task=TASK,
        base_model=BaseModelRef(id=base.id),
        base_digest=base.weight_digest,
        data_fingerprint="d",
        study="s",
        trial_id="trial-1",
        params={},
        hyperparameters=Hyperparameters(rank=4, target_modules=TARGETS, learning_rate=1e-3, head_learning_rate=1e-3),
        validation_metrics={},
        test_metrics={},
        size=AdapterSize(32, 50, 400),
        probe=make_probe(model, model.config.vocab_size),
        versions={},
        created_at="2026-01-01T00:00:00Z",
        files={name: hashlib.sha256((folder / name).read_bytes()).hexdigest() for name in names},
    )
    (folder / "manifest.json").write_text(to_json(dataclasses.replace(manifest, **changes)))


@pytest.fixture
def base(make_base, tmp_path):
    return save_base(make_base(), tmp_path / "base")


@pytest.fixture
def trained(adapt):
    return adapt(target_modules=list(TARGETS))


@pytest.fixture
def folder(trained, base, tmp_path):
    write_adapter(trained, base, tmp_path / "adapter")
    return tmp_path / "adapter"


def test_a_folder_becomes_the_trained_model(folder, trained, inputs, logits):
    model = load_adapter_folder(folder)
    assert not model.training
    torch.testing.assert_close(logits(model, inputs), logits(trained, inputs), atol=1e-6, rtol=0)


def test_a_base_at_hand_is_used(folder, base, trained, inputs, logits, tmp_path):
    (tmp_path / "base").rename(tmp_path / "moved")
    moved = dataclasses.replace(base, path=str(tmp_path / "moved"))
    loaded = load_adapter_folder(folder, base=moved)
    torch.testing.assert_close(logits(loaded, inputs), logits(trained, inputs), atol=1e-6, rtol=0)


def test_a_lower_precision_is_a_cast_of_the_same_model(folder, trained, inputs, logits, layers):
    model = load_adapter_folder(folder, dtype=torch.bfloat16)
    dtypes = {name.split(".")[2]: p.dtype for name, p in model.named_parameters() if "loraxs_R" not in name}
    assert dtypes == {"bert": torch.bfloat16, "classifier": torch.float32}
    assert all(layer.loraxs_R["default"].dtype == torch.float32 for layer in layers(model).values())
    torch.testing.assert_close(logits(model, inputs), logits(trained, inputs), atol=0.05, rtol=0)


def test_another_base_is_refused_by_its_digest(folder, make_base, tmp_path):
    other = save_base(make_base(seed=1), tmp_path / "other")
    with pytest.raises(BaseModelError, match=r"trial-1.*other holds weights") as caught:
        load_adapter_folder(folder, base=other)
    assert "trained on" in caught.value.hint


@pytest.mark.parametrize("name", ["adapter_model.safetensors", "adapter_config.json"])
def test_a_tampered_or_missing_file_is_refused(folder, name):
    content = (folder / name).read_bytes()
    (folder / name).write_bytes(content[:-1] + bytes([content[-1] ^ 1]))
    with pytest.raises(IntegrityError, match=name):
        load_adapter_folder(folder)
    (folder / name).unlink()
    with pytest.raises(IntegrityError, match="no file"):
        load_adapter_folder(folder)


@pytest.mark.parametrize("text", ["", "{}", "[1, 2"])
def test_a_folder_without_a_manifest_is_no_adapter(folder, text):
    (folder / "manifest.json").write_text(text)
    with pytest.raises(IntegrityError, match="not a manifest"):
        load_adapter_folder(folder)
    (folder / "manifest.json").unlink()
    with pytest.raises(IntegrityError, match=r"must hold manifest\.json"):
        load_adapter_folder(folder)


def test_a_wrong_basis_is_refused_by_fingerprint(trained, base, tmp_path):
    trained.peft_config["default"].basis = "bottom"
    write_adapter(trained, base, tmp_path / "adapter")
    with pytest.raises(FactorMismatchError, match="query"):
        load_adapter_folder(tmp_path / "adapter")


def test_other_logits_are_refused_by_the_probe(trained, base, tmp_path):
    probe = make_probe(trained, trained.config.vocab_size)
    trained.base_model.model.classifier.modules_to_save["default"].bias.data.add_(0.01)
    write_adapter(trained, base, tmp_path / "adapter", probe=probe)
    with pytest.raises(FactorMismatchError, match=r"within 0\.0001, but got a difference of 0\.01"):
        load_adapter_folder(tmp_path / "adapter")


def test_a_probe_sees_one_flipped_sign(adapt, layers):
    model = adapt(scale=20.0, target_modules=["1.output.dense"])
    probe = make_probe(model, 64)
    check_probe(model, probe)
    (layer,) = layers(model).values()
    _, b = layer.factor_pair("default")
    b[:, 1].neg_()
    with pytest.raises(FactorMismatchError):
        check_probe(model, probe)


def test_a_probe_is_made_by_rule_and_disturbs_nothing(adapt, family):
    model = adapt(family).train()
    probe = make_probe(model, 64)
    assert model.training
    assert (len(probe.input_ids), len(probe.input_ids[0])) == (4, 12)
    assert all(32 <= token < 64 for row in probe.input_ids for token in row)
    assert len(set(probe.input_ids)) == 4
    assert probe == make_probe(model, 64)
    assert len(probe.logits) == 4


def test_a_probe_of_another_shape_or_without_numbers_never_agrees(adapt):
    model = adapt(target_modules=["query"])
    probe = make_probe(model, 64)
    with pytest.raises(FactorMismatchError, match="shape"):
        check_probe(model, dataclasses.replace(probe, logits=tuple(row[:1] for row in probe.logits)))
    nan = Probe(probe.input_ids, ((float("nan"),) * 2,) * 4)
    with pytest.raises(FactorMismatchError, match="nan"):
        check_probe(model, nan)
    check_probe(
        model, dataclasses.replace(probe, logits=tuple(tuple(x + 0.5 for x in r) for r in probe.logits)), atol=1
    )


def test_a_decoder_without_a_padding_token_has_a_probe(make_base):
    base = make_base("gpt2")
    base.config.pad_token_id = None
    model = get_peft_model(base, LoraXSConfig(r=2, target_modules=["c_attn"], task_type="SEQ_CLS"))
    check_probe(model, make_probe(model, 64))


def test_the_manifest_survives_json(folder):
    assert json.loads((folder / "manifest.json").read_text())["trial_id"] == "trial-1"
