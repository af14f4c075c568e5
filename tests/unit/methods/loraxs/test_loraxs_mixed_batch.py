"""A batch of rows for different adapters gives each row what its adapter gives alone."""

from __future__ import annotations

import pytest
import torch

from loraxs_search.methods.loraxs import LoraXSConfig

NAMES = ["second", "default", "__base__", "third", "second"]


@pytest.fixture
def model(adapt, family):
    """Three adapters: two share a factor pair at different ranks, the third has another sigma and fewer modules."""
    model = adapt(family)
    targets = {"bert": ["key"], "roberta": ["key"], "gpt2": ["c_attn"], "llama": ["k_proj"]}[family]
    common = {"task_type": "SEQ_CLS", "init_std": 0.5}
    model.add_adapter("second", LoraXSConfig(r=7, scale=2.0, target_modules="all-linear", init_seed=2, **common))
    model.add_adapter("third", LoraXSConfig(r=3, sigma="sqrt", target_modules=targets, init_seed=3, **common))
    for name, parameter in model.named_parameters():
        if "modules_to_save" in name:  # heads that differ
            seed = len(name) + sum(map(ord, name))
            parameter.data = torch.randn(parameter.shape, generator=torch.Generator().manual_seed(seed))
    return model.eval()


def alone(model, inputs, logits, row, name):
    one = {key: value[row : row + 1] for key, value in inputs.items()}
    if name == "__base__":
        with model.disable_adapter():
            return logits(model, one)
    model.set_adapter(name)
    return logits(model, one)


def test_a_mixed_batch_is_its_rows_one_by_one(model, inputs, logits):
    mixed = logits(model, inputs, adapter_names=NAMES)
    for row, name in enumerate(NAMES):
        torch.testing.assert_close(mixed[row : row + 1], alone(model, inputs, logits, row, name), atol=1e-5, rtol=1e-4)
    assert (mixed[0] - mixed[4]).abs().max() > 0  # the same adapter, other inputs


def test_hooks_are_gone_after_the_call_even_a_failed_one(model, inputs, logits):
    expected = logits(model, inputs)
    logits(model, inputs, adapter_names=NAMES)
    with pytest.raises(ValueError, match="got 4 and 5 respectively"):
        logits(model, inputs, adapter_names=NAMES[:4])
    assert torch.equal(logits(model, inputs), expected)
    assert not any(m._forward_hooks or m._forward_pre_hooks for m in model.modules())


def test_disabled_adapters_stay_disabled_in_a_mixed_batch(model, inputs, logits):
    with model.disable_adapter():
        expected = logits(model, inputs)
    model.base_model.disable_adapter_layers()  # PEFT's context manager does not reach our hooks, this does
    assert torch.equal(logits(model, inputs, adapter_names=NAMES), expected)
    model.base_model.enable_adapter_layers()
    assert not torch.equal(logits(model, inputs, adapter_names=NAMES), expected)


@pytest.mark.parametrize(
    ("names", "match"),
    [(["default"] * 4, "got 4 and 5 respectively"), (["default"] * 4 + ["forth"], "forth")],
)
def test_names_must_be_known_and_as_many_as_rows(adapt, inputs, logits, names, match):
    with pytest.raises(ValueError, match=match):
        logits(adapt(), inputs, adapter_names=names)


def test_no_mixed_batch_while_merged_or_training(adapt, inputs, logits):
    model = adapt()
    model.train()
    with pytest.raises(ValueError, match="training mode"):
        logits(model, inputs, adapter_names=["default"] * 5)
    model.eval()
    model.merge_adapter()
    with pytest.raises(ValueError, match="merged"):
        logits(model, inputs, adapter_names=["default"] * 5)
