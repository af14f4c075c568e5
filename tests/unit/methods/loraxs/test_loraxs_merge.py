"""Merging is the same model in another form, and unmerging brings the base back exactly."""

from __future__ import annotations

import copy

import pytest
import torch
from peft import get_peft_model

from loraxs_search.methods.loraxs import LoraXSConfig


def weights(model):
    return {name: p.detach().clone() for name, p in model.named_parameters() if name.endswith("base_layer.weight")}


@pytest.mark.parametrize("dtype", [torch.bfloat16, torch.float16])
def test_merging_in_low_precision_rounds_once(make_base, layers, dtype):
    config = LoraXSConfig(r=4, target_modules=["query"], init_std=0.5, init_seed=1)
    model = get_peft_model(make_base().to(dtype), config)
    model.add_adapter("second", LoraXSConfig(r=6, target_modules=["query"], init_std=0.5, init_seed=2))
    layer = next(iter(layers(model).values()))
    base = layer.weight.detach().clone()
    exact = base.float() + layer.get_delta_weight("default") + layer.get_delta_weight("second")
    layer.merge(adapter_names=["default"])
    with pytest.warns(UserWarning, match="additionally merging"):
        layer.merge(adapter_names=["second"])
    assert torch.equal(layer.weight, exact.to(dtype))
    layer.unmerge()
    assert torch.equal(layer.weight, base)
    assert layer.weight.dtype == dtype


def test_merging_twice_changes_nothing(adapt, layers):
    model = adapt(target_modules=["query"])
    layer = next(iter(layers(model).values()))
    layer.merge()
    merged = layer.weight.clone()
    with pytest.warns(UserWarning, match="already merged"):
        layer.merge()
    assert torch.equal(layer.weight, merged)
    layer.unmerge()
    with pytest.warns(UserWarning, match="Already unmerged"):
        layer.unmerge()


def test_a_merge_that_would_not_be_finite_is_refused_and_undone(adapt, layers):
    model = adapt(target_modules=["query"])
    layer = next(iter(layers(model).values()))
    layer.loraxs_R["default"].data[0, 0] = torch.nan
    before = layer.weight.clone()
    with pytest.raises(ValueError, match=r"NaNs detected in the merged weights\. The adapter default seems"):
        layer.merge(safe_merge=True)
    assert torch.equal(layer.weight, before)
    assert not layer.merged


def test_merge_and_unload_leaves_a_plain_model(adapt, make_base, family, inputs, logits):
    model = adapt(family)
    expected = logits(model, inputs)
    plain = model.merge_and_unload(safe_merge=True)
    assert type(plain) is type(make_base(family))
    assert {type(m) for m in plain.modules()} == {type(m) for m in make_base(family).modules()}
    torch.testing.assert_close(logits(plain, inputs), expected, atol=1e-5, rtol=1e-4)
    assert plain.state_dict().keys() == make_base(family).state_dict().keys()


def test_a_base_can_carry_one_adapter_after_another(adapt, inputs, logits):
    model = adapt()
    expected = logits(model, inputs)
    config = copy.deepcopy(model.peft_config["default"])
    again = get_peft_model(model.unload(), config).eval()
    assert torch.equal(logits(again, inputs), expected)


def test_a_copied_model_is_independent(adapt, inputs, logits, layers):
    model = adapt()
    expected = logits(model, inputs)
    twin = copy.deepcopy(model)
    for layer in layers(twin).values():
        layer.loraxs_R["default"].data.zero_()
    assert torch.equal(logits(model, inputs), expected)
    assert not torch.equal(logits(twin, inputs), expected)
