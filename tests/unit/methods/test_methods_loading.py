"""A folder is loaded only as the model its manifest describes."""

from __future__ import annotations

import contextlib
import dataclasses
import json
from pathlib import Path

import pytest
import torch
from peft import IA3Config, PeftModel, get_peft_model
from support.bases import BART
from support.bases import base as small_base
from support.bases import small_classifier as make_base

from loraxs_search.base_model.tokenizer import with_setup
from loraxs_search.errors import BaseModelError, IntegrityError
from loraxs_search.factors.store import FactorStore, write_factors
from loraxs_search.home import factor_path
from loraxs_search.methods.loading import (
    _cast_body,
    compare_reference_logits,
    load_adapter_folder,
    make_reference_logits,
    reference_logits,
    tolerance,
    verified_manifest,
)
from loraxs_search.methods.loraxs import LoraXSConfig, use_factor_store
from loraxs_search.methods.loraxs.model import body_fingerprint, check_body
from loraxs_search.records.adapter import ReferenceLogits
from loraxs_search.records.task import BaseModelRef
from loraxs_search.registry.factor_sets import install_factors

from .conftest import TARGETS, adapt, layers, logits, save_base, write_adapter


def check_reference_logits(model, reference):
    logits = reference_logits(model, reference.input_ids)
    compare_reference_logits(logits, reference, tolerance(model))


@pytest.fixture
def base(tmp_path):
    return save_base(make_base(), tmp_path / "base")


@pytest.fixture
def trained():
    return adapt(target_modules=list(TARGETS))


@pytest.fixture
def folder(trained, base, tmp_path):
    write_adapter(trained, base, tmp_path / "adapter")
    return tmp_path / "adapter"


def test_a_folder_becomes_the_trained_model(folder, base, trained, inputs, tmp_path):
    model = load_adapter_folder(folder)
    assert not model.training
    torch.testing.assert_close(logits(model, inputs), logits(trained, inputs), atol=1e-6, rtol=0)
    assert (model.config.id2label, model.config.label2id) == ({0: "no", 1: "yes"}, {"no": 0, "yes": 1})
    (tmp_path / "base").rename(tmp_path / "moved")
    moved = dataclasses.replace(base, path=str(tmp_path / "moved"))
    loaded = load_adapter_folder(folder, base=moved)
    torch.testing.assert_close(logits(loaded, inputs), logits(trained, inputs), atol=1e-6, rtol=0)


def test_a_lower_precision_is_a_cast_of_the_same_model(folder, trained, inputs):
    model = load_adapter_folder(folder, dtype=torch.bfloat16)
    dtypes = {name.split(".")[2]: p.dtype for name, p in model.named_parameters() if "loraxs_R" not in name}
    assert dtypes == {"bert": torch.bfloat16, "classifier": torch.float32}
    assert all(layer.loraxs_R["default"].dtype == torch.float32 for layer in layers(model).values())
    torch.testing.assert_close(logits(model, inputs), logits(trained, inputs), atol=0.05, rtol=0)


def test_an_adapter_of_a_bfloat16_base_is_loaded_where_a_cpu_computes_it_in_float32(tmp_path, inputs, monkeypatch):
    base = save_base(make_base().bfloat16(), tmp_path / "base")
    trained = get_peft_model(make_base().bfloat16(), LoraXSConfig(r=4, target_modules=list(TARGETS), init_std=0.1))
    write_adapter(trained.eval(), base, folder := tmp_path / "adapter")
    monkeypatch.setattr("loraxs_search.base_model.load._has_bfloat16", lambda _: False)
    weight = "base_model.model.bert.embeddings.word_embeddings.weight"
    for dtype, held in ((None, torch.float32), ("checkpoint", torch.bfloat16)):
        model = load_adapter_folder(folder, dtype=dtype)
        assert torch.equal(model.get_parameter(weight), trained.get_parameter(weight).to(held))
        torch.testing.assert_close(logits(model, inputs).float(), logits(trained, inputs).float(), atol=0.05, rtol=0)


def test_in_a_lower_precision_an_adapters_own_numbers_are_not_rounded():
    """IA3's lie near one, where bfloat16 has steps of 0.008."""
    model = get_peft_model(make_base(), IA3Config(target_modules=["query"], feedforward_modules=[]))
    own = {name: p.data.fill_(1.002) for name, p in model.named_parameters() if "ia3_l" in name}
    _cast_body(model.get_base_model(), torch.bfloat16)
    after = dict(model.named_parameters())
    assert own and all(torch.equal(after[name], torch.full_like(value, 1.002)) for name, value in own.items())
    assert after["base_model.model.bert.embeddings.word_embeddings.weight"].dtype == torch.bfloat16


def test_another_base_is_refused_and_both_revisions_are_named(trained, base, tmp_path):
    write_adapter(trained, base, tmp_path / "adapter", base_model=BaseModelRef(base.id, revision="aaa111"))
    newer = dataclasses.replace(save_base(make_base(seed=1), tmp_path / "newer"), revision="bbb222")
    with pytest.raises(BaseModelError, match=r"trial-1.*aaa111.*bbb222") as caught:
        load_adapter_folder(tmp_path / "adapter", base=newer)
    assert "trained on" in caught.value.hint


def test_a_folder_with_a_changed_or_missing_file_or_without_a_manifest_is_refused(folder):
    name = "adapter_model.safetensors"
    content = (folder / name).read_bytes()
    (folder / name).write_bytes(content[:-1] + bytes([content[-1] ^ 1]))
    with pytest.raises(IntegrityError, match=name):
        load_adapter_folder(folder)
    (folder / name).unlink()
    with pytest.raises(IntegrityError, match="no file"):
        load_adapter_folder(folder)
    for text in ("{}", "[1, 2"):
        (folder / "manifest.json").write_text(text)
        with pytest.raises(IntegrityError, match=r"not an adapter manifest|`format`"):
            load_adapter_folder(folder)
    (folder / "manifest.json").unlink()
    with pytest.raises(IntegrityError, match=r"manifest\.json is missing"):
        load_adapter_folder(folder)


def test_other_logits_are_refused_by_the_probe(trained, base, tmp_path):
    probe = make_reference_logits(trained, trained.config.vocab_size)
    trained.base_model.model.classifier.modules_to_save["default"].bias.data.add_(0.01)
    write_adapter(trained, base, tmp_path / "adapter", probe=probe)
    with pytest.raises(BaseModelError, match=r"0\.0001, .*0\.01"):
        load_adapter_folder(tmp_path / "adapter")


def test_a_probe_sees_one_flipped_sign():
    model = adapt(scale=20.0, target_modules=["1.output.dense"])
    probe = make_reference_logits(model, 64)
    check_reference_logits(model, probe)
    (layer,) = layers(model).values()
    _, b = layer.factor_pair("default")
    b[:, 1].neg_()
    with pytest.raises(BaseModelError):
        check_reference_logits(model, probe)


def test_a_probe_is_made_by_rule_disturbs_nothing_and_differs_from_others():
    model = adapt(target_modules=["query"]).train()
    probe = make_reference_logits(model, 64)
    assert model.training
    assert (len({*probe.input_ids}), len(probe.input_ids[0])) == (4, 12)
    assert all(32 <= token < 64 for row in probe.input_ids for token in row)
    assert probe == make_reference_logits(model, 64)
    for other, match in ((tuple(row[:1] for row in probe.logits), "shape"), (((float("nan"),) * 2,) * 4, "nan")):
        with pytest.raises(BaseModelError, match=match):
            check_reference_logits(model, dataclasses.replace(probe, logits=other))
    probe = make_reference_logits(model.bfloat16(), 64)  # half precision rounds more
    for moved, refusal in ((0.05, contextlib.nullcontext()), (0.5, pytest.raises(BaseModelError))):
        with refusal:
            logits = tuple(tuple(x + moved for x in row) for row in probe.logits)
            check_reference_logits(model, dataclasses.replace(probe, logits=logits))


def change_config(base, **changes):
    path = Path(base.path) / "config.json"
    path.write_text(json.dumps(json.loads(path.read_text()) | changes))


def test_another_configuration_on_the_same_weights_is_refused(trained, tmp_path):
    base, folder = save_base(make_base().bfloat16(), tmp_path / "base"), tmp_path / "adapter"
    write_adapter(trained, base, folder, setup=with_setup(base).setup)
    change_config(base, hidden_dropout_prob=0.5, id2label={"0": "x", "1": "y"})  # neither changes an answer
    verified_manifest(folder)
    change_config(base, layer_norm_eps=1e-3)
    with pytest.raises(BaseModelError, match=r"layer_norm_eps` 0\.001, not 1e-12") as refused:
        load_adapter_folder(folder)
    assert refused.value.hint
    older = json.loads((folder / "manifest.json").read_text())
    del older["setup"]
    (folder / "manifest.json").write_text(json.dumps(older))
    verified_manifest(folder)


def test_a_decoder_without_a_padding_token_and_a_base_whose_head_reads_the_end_token_have_a_probe():
    unpadded = make_base("gpt2")
    unpadded.config.pad_token_id = None
    for base, layer, vocabulary in ((unpadded, "c_attn", 64), (small_base(BART), "fc1", 4)):
        model = get_peft_model(base, LoraXSConfig(r=2, target_modules=[layer], task_type="SEQ_CLS"))
        probe = make_reference_logits(model, vocabulary)
        check_reference_logits(model, probe)
    # Half of the last one's four tokens are the end.
    assert all([token == BART.eos_token_id for token in row] == [False] * 11 + [True] for row in probe.input_ids)


def test_large_logits_may_differ_by_what_rounding_makes_of_them_and_few_are_kept_of_each_tokens():
    """Those of SmolLM2 in float32 are 1.7e-4 off in float64, and 29 at most."""
    for value, taken, refused in ((28.6, 3e-4, 0.01), (0.5, 5e-5, 3e-4)):
        reference = ReferenceLogits(((1, 2),), ((value, -0.3),))
        compare_reference_logits(torch.tensor([[value + taken, -0.3 - taken]]), reference)
        with pytest.raises(BaseModelError, match="a difference of"):
            compare_reference_logits(torch.tensor([[value, -0.3 - refused]]), reference)
    tokens = torch.cat([torch.ones(1, 1, 100), torch.zeros(1, 1, 100)], 1)  # (rows, T, vocabulary)
    compare_reference_logits(tokens, ReferenceLogits(((1, 2),), ((0.0,) * 64,)))


# ---- factors of another machine --------------------------------------------------------------------------------------
@pytest.fixture
def trained_elsewhere(base, tmp_path, inputs):
    """Train where the same subspaces have another basis, as for nearly equal singular values.

    Return the adapter's folder, factor files, and the logits that it gave there.
    """
    plain, there = FactorStore(tmp_path / "plain"), FactorStore(tmp_path / "there")
    turn = torch.linalg.qr(torch.randn(24, 24, generator=torch.Generator().manual_seed(1))).Q
    for name in TARGETS:
        weight = make_base().get_submodule(name).weight.detach()
        own = plain.get(weight, rank=24)
        left, right = (own.left @ turn).contiguous(), (turn.T @ own.right).contiguous()
        key, _ = plain.identify(weight, rank=24)
        write_factors(factor_path(key, there.root), dataclasses.replace(own, left=left, right=right))
    with use_factor_store(there):
        model = adapt(target_modules=list(TARGETS))
        write_adapter(model, base, tmp_path / "from there")
        return tmp_path / "from there", there.root, logits(model, inputs)


def test_factors_of_another_machine_are_refused_until_they_are_here_and_share_a_model(
    trained_elsewhere, folder, trained, inputs, tmp_path
):
    elsewhere, there, expected = trained_elsewhere
    with use_factor_store(FactorStore(tmp_path / "here")) as here:
        with pytest.raises(BaseModelError, match="query") as caught:
            load_adapter_folder(elsewhere)
        assert "loraxs-search pull" in caught.value.hint
        model = load_adapter_folder(folder)  # computes this machine's own first
        for file in there.glob("*/*.safetensors"):
            install_factors(file.stem, file.read_bytes(), here.root)
        torch.testing.assert_close(logits(load_adapter_folder(elsewhere), inputs), expected, atol=1e-6, rtol=0)
        model.load_adapter(str(elsewhere), "elsewhere")
        torch.testing.assert_close(logits(model, inputs), logits(trained, inputs), atol=1e-6, rtol=0)
        model.set_adapter("elsewhere")
        torch.testing.assert_close(logits(model, inputs), expected, atol=1e-6, rtol=0)


def test_factors_that_are_not_the_weights_are_refused_and_named(trained_elsewhere, folder, trained, inputs, tmp_path):
    elsewhere, there, _ = trained_elsewhere
    with use_factor_store(FactorStore(tmp_path / "here")) as here:
        load_adapter_folder(folder)
        for file in there.glob("*/*.safetensors"):
            install_factors(file.stem, file.read_bytes(), here.root, unchecked=True)
        with pytest.raises(IntegrityError, match="must be of its weight") as caught:
            load_adapter_folder(elsewhere)
        assert "tell whoever keeps the registry" in caught.value.hint
        found = logits(load_adapter_folder(folder), inputs)  # what was trained here keeps its meaning
        torch.testing.assert_close(found, logits(trained, inputs), atol=1e-6, rtol=0)


# ---- verification ----------------------------------------------------------------------------------------------------
CHANGED = {
    "bert": ["embeddings.word_embeddings.weight", "encoder.layer.1.output.LayerNorm.weight"],
    "roberta": ["encoder.layer.0.intermediate.dense.bias", "encoder.layer.1.attention.self.key.weight"],
    "gpt2": ["wpe.weight", "h.1.mlp.c_fc.bias"],
    "llama": ["embed_tokens.weight", "layers.1.mlp.up_proj.weight"],
}
TARGET = {"bert": "query", "roberta": "query", "gpt2": "c_attn", "llama": "q_proj"}


@pytest.fixture
def saved(family, tmp_path):
    model = adapt(family, target_modules=[TARGET[family]])
    model.active_peft_config.body_fingerprint = list(body_fingerprint(make_base(family)))
    model.save_pretrained(str(tmp_path))
    return str(tmp_path)


def test_the_same_base_is_taken_whatever_its_head_and_another_is_refused_and_left_as_it_was(saved, family):
    base = make_base(family)
    for name, parameter in base.named_parameters():
        if not name.startswith(base.base_model_prefix):
            parameter.data.zero_()
    PeftModel.from_pretrained(base, saved)
    for changed in CHANGED[family]:
        base = make_base(family)
        base.base_model.get_parameter(changed).data.flatten()[::7] += 0.01
        with pytest.raises(BaseModelError, match="fingerprint"):
            PeftModel.from_pretrained(base, saved)
        assert not any(layer.settings for layer in layers(base).values())
    # Adapters that are there already do not count.
    model = get_peft_model(make_base(family), LoraXSConfig(r=2, target_modules="all-linear", task_type="SEQ_CLS"))
    model.load_adapter(saved, "second")
    assert any("second" in layer.settings for layer in layers(model).values())
    assert model.peft_config["second"].body_fingerprint == list(body_fingerprint(make_base(family)))


def test_precision_counts_as_little_as_its_rounding(saved, family):
    base = make_base(family)
    for parameter in base.parameters():  # as a checkpoint in bfloat16 holds them
        parameter.data = parameter.data.bfloat16().float()
    assert body_fingerprint(base.bfloat16()) == body_fingerprint(base.float())
    assert body_fingerprint(make_base(family).bfloat16()) == pytest.approx(body_fingerprint(make_base(family)))
    expected = LoraXSConfig.from_pretrained(saved).body_fingerprint
    check_body(expected, make_base(family).half())
    with pytest.raises(BaseModelError, match="body must have"):
        check_body(expected, make_base(family, seed=1).half())


def test_every_column_of_a_large_weight_is_read_and_an_empty_one_is_no_trouble():
    model = torch.nn.Module()
    model.large = torch.nn.Parameter(torch.ones(4096, 64))
    model.none = torch.nn.Parameter(torch.empty(0))
    before = body_fingerprint(model)
    for column in range(64):
        model.large.data[:, column] = 2.0
        assert body_fingerprint(model) != before, column
        model.large.data[:, column] = 1.0
    assert body_fingerprint(model) == before
