"""An adapter's life in PEFT: add, activate, disable, save, load, delete."""

from __future__ import annotations

import json

import pytest
import torch
from peft import PeftModel, get_peft_model
from peft.utils import get_peft_model_state_dict
from safetensors.torch import load_file, save_file

from loraxs_search.errors import FactorMismatchError, UsageError
from loraxs_search.methods.loraxs import LoraXSConfig


def second(**config) -> LoraXSConfig:
    config = {"r": 6, "target_modules": "all-linear", "task_type": "SEQ_CLS", "init_std": 0.5, "init_seed": 9, **config}
    return LoraXSConfig(**config)


def test_disabled_adapters_leave_the_base_bit_for_bit(adapt, make_base, family, inputs, logits):
    model, expected = adapt(family), logits(make_base(family), inputs)
    assert not torch.equal(logits(model, inputs), expected)
    with model.disable_adapter():
        assert torch.equal(logits(model, inputs), expected)
    model.merge_adapter()
    with model.disable_adapter():
        assert torch.equal(logits(model, inputs), expected)


def test_adapters_are_switched_and_deleted(adapt, inputs, logits, layers):
    model = adapt()
    first = logits(model, inputs)
    model.add_adapter("second", second())
    assert torch.equal(logits(model, inputs), first)
    model.set_adapter("second")
    other = logits(model, inputs)
    assert (other - first).abs().max() > 1e-3
    trained = {name.split(".")[-1] for name, p in model.named_parameters() if "loraxs_R" in name and p.requires_grad}
    assert trained == {"second"}
    with pytest.warns(UserWarning, match="second was active which is now deleted"):
        model.delete_adapter("second")
    assert torch.equal(logits(model, inputs), first)
    assert all(set(layer.settings) == {"default"} == set(layer.loraxs_R) for layer in layers(model).values())


@pytest.mark.parametrize(("name", "low_cpu_mem_usage"), [("default", False), ("mine", True)])
def test_saved_is_loaded(adapt, make_base, family, inputs, logits, tmp_path, name, low_cpu_mem_usage):
    model = adapt(family)
    expected = logits(model, inputs)
    model.save_pretrained(str(tmp_path))
    loaded = PeftModel.from_pretrained(
        make_base(family), str(tmp_path), adapter_name=name, low_cpu_mem_usage=low_cpu_mem_usage
    )
    assert torch.equal(logits(loaded, inputs), expected)
    assert not any(parameter.is_meta or parameter.requires_grad for parameter in loaded.parameters())
    assert not loaded.training


@pytest.mark.parametrize("low_cpu_mem_usage", [False, True])
def test_a_second_adapter_is_loaded_beside_the_first(adapt, inputs, logits, tmp_path, low_cpu_mem_usage):
    model = adapt()
    expected = logits(model, inputs)
    model.save_pretrained(str(tmp_path))
    other = adapt(init_seed=11)
    before = logits(other, inputs)
    other.load_adapter(str(tmp_path), "guest", low_cpu_mem_usage=low_cpu_mem_usage)
    assert torch.equal(logits(other, inputs), before)
    other.set_adapter("guest")
    assert torch.equal(logits(other, inputs), expected)


def test_the_file_holds_r_and_the_head_and_nothing_else(adapt, family, layers, tmp_path):
    model = adapt(family)
    model.save_pretrained(str(tmp_path))
    stored = load_file(tmp_path / "adapter_model.safetensors")
    r = {key: value for key, value in stored.items() if key.endswith(".loraxs_R")}
    head = stored.keys() - r.keys()
    assert len(r) == len(layers(model))
    assert sum(value.numel() for value in r.values()) == 16 * len(r)
    assert all(value.dtype == torch.float32 for value in r.values())
    wanted = {"bert": 2, "roberta": 4, "gpt2": 1, "llama": 1}[family]
    assert len(head) == wanted
    assert all(key.startswith(("base_model.model.classifier.", "base_model.model.score.")) for key in head)


def test_a_trainable_adapter_can_be_taken_up_again(adapt, make_base, inputs, tmp_path, layers):
    adapt().save_pretrained(str(tmp_path))
    model = PeftModel.from_pretrained(make_base(), str(tmp_path), is_trainable=True)
    model(**inputs).logits.sum().backward()
    assert all(layer.loraxs_R["default"].grad is not None for layer in layers(model).values())


@pytest.mark.parametrize("change", [{"basis": "bottom"}, {"sigma": "sqrt"}, {"sigma": "none"}, {"basis": "middle"}])
def test_an_adapter_in_another_basis_is_refused(adapt, make_base, tmp_path, change):
    adapt(target_modules=["query"]).save_pretrained(str(tmp_path))
    file = tmp_path / "adapter_config.json"
    file.write_text(json.dumps({**json.loads(file.read_text()), **change}))
    with pytest.raises(FactorMismatchError, match="query"):
        PeftModel.from_pretrained(make_base(), str(tmp_path))


def test_the_last_projection_alone_can_be_the_head(make_base, adapt, inputs, logits, tmp_path):
    model = adapt("roberta", task_type=None, modules_to_save=["classifier.out_proj"])
    expected = logits(model, inputs)
    model.save_pretrained(str(tmp_path))
    head = [k for k in load_file(tmp_path / "adapter_model.safetensors") if not k.endswith("loraxs_R")]
    assert sorted(head) == [f"base_model.model.classifier.out_proj.{p}" for p in ("bias", "weight")]
    assert torch.equal(logits(PeftModel.from_pretrained(make_base("roberta"), str(tmp_path)), inputs), expected)


def test_a_bfloat16_file_is_loaded_into_float32(adapt, make_base, tmp_path, layers):
    adapt(target_modules=["query"]).save_pretrained(str(tmp_path))
    file = tmp_path / "adapter_model.safetensors"
    save_file({key: value.bfloat16() for key, value in load_file(file).items()}, file)
    for low_cpu_mem_usage in (False, True):
        options = {"low_cpu_mem_usage": low_cpu_mem_usage, "autocast_adapter_dtype": False}
        model = PeftModel.from_pretrained(make_base(), str(tmp_path), **options)
        assert all(layer.loraxs_R["default"].dtype == torch.float32 for layer in layers(model).values())


@pytest.mark.parametrize("order", [("full", "output"), ("output", "full")])
def test_adapters_that_train_other_layers_of_a_head_are_not_put_on_one_model(
    order, adapt, make_base, inputs, logits, tmp_path
):
    heads = {
        "full": {"modules_to_save": ["classifier"]},
        "output": {"modules_to_save": ["classifier.out_proj"], "pass_through": ["classifier.dense"]},
    }
    for name, head in heads.items():
        adapt("roberta", target_modules=["query"], task_type=None, **head).save_pretrained(str(tmp_path / name))
    model = PeftModel.from_pretrained(make_base("roberta"), str(tmp_path / order[0])).eval()
    before = logits(model, inputs)
    with pytest.raises(UsageError) as refused:
        model.load_adapter(str(tmp_path / order[1]), "second")
    assert refused.value.hint
    assert torch.equal(logits(model, inputs), before)


def test_an_adapter_does_not_change_the_head_of_one_without(adapt, inputs, logits):
    model = adapt("roberta", target_modules=["query"], modules_to_save=None, task_type=None)
    before = logits(model, inputs)
    config = LoraXSConfig(r=2, target_modules=["query"], pass_through=["classifier.dense"])
    with pytest.raises(UsageError):
        model.add_adapter("second", config)
    assert torch.equal(logits(model, inputs), before)


def test_a_stored_head_keeps_its_precision_on_a_bfloat16_base(make_base, family, inputs, logits, tmp_path):
    config = LoraXSConfig(r=4, target_modules="all-linear", task_type="SEQ_CLS", init_seed=7)
    model = get_peft_model(make_base(family).bfloat16(), config)
    for name, parameter in model.named_parameters():
        if ".modules_to_save." in name:
            parameter.data = torch.randn(parameter.shape)
    model.save_pretrained(str(tmp_path))
    loaded = PeftModel.from_pretrained(make_base(family).bfloat16(), str(tmp_path)).eval()
    state = get_peft_model_state_dict(loaded)
    stored = load_file(tmp_path / "adapter_model.safetensors")
    assert state.keys() == stored.keys()
    assert all(torch.equal(state[name], value) for name, value in stored.items())
    assert logits(loaded, inputs).dtype == torch.float32
