"""A weighted sum of adapters is one adapter, exactly."""

from __future__ import annotations

import dataclasses

import pytest
import torch
from peft import get_peft_model
from transformers import LlamaConfig, LlamaForCausalLM

from loraxs_search.errors import UsageError
from loraxs_search.factors.store import FactorStore, write_factors
from loraxs_search.home import factor_path
from loraxs_search.methods.loraxs import LoraXSConfig, use_factor_store
from loraxs_search.registry.factor_sets import install_factors


def unlike_adapters():
    """Three adapters without a head, of unlike rank, scale, sigma and modules."""
    sizes = {"vocab_size": 64, "hidden_size": 24, "num_hidden_layers": 2, "num_attention_heads": 2}
    torch.manual_seed(0)
    base = LlamaForCausalLM(LlamaConfig(**sizes, intermediate_size=40)).eval()
    common = {"init_std": 0.5, "task_type": "CAUSAL_LM"}
    first = LoraXSConfig(r=4, target_modules=["q_proj", "v_proj"], scale=2.0, init_seed=1, **common)
    model = get_peft_model(base, first, adapter_name="first")
    second = LoraXSConfig(r=7, target_modules=["v_proj", "down_proj"], sigma="sqrt", init_seed=2, **common)
    model.add_adapter("second", second)
    model.add_adapter("third", LoraXSConfig(r=3, target_modules="all-linear", sigma="output", init_seed=3, **common))
    return model.eval()


@pytest.fixture
def model():
    return unlike_adapters()


WEIGHTS = {"first": 0.5, "second": -2.0, "third": 1.5}


@pytest.mark.parametrize("combination_type", ["linear", "cat"])
def test_the_update_of_the_sum_is_the_sum_of_the_updates(model, layers, combination_type):
    model.add_weighted_adapter(list(WEIGHTS), list(WEIGHTS.values()), "sum", combination_type)
    for layer in layers(model).values():
        present = [name for name in WEIGHTS if name in layer.settings]
        expected = sum(WEIGHTS[name] * layer.get_delta_weight(name) for name in present)
        torch.testing.assert_close(layer.get_delta_weight("sum"), expected, atol=1e-5, rtol=1e-4)
        assert layer.settings["sum"].rank == max(layer.settings[name].rank for name in present)


def test_a_saved_sum_is_loaded(model, inputs, logits, tmp_path):
    model.add_weighted_adapter(["first", "third"], [1.0, 0.5], "sum")
    model.set_adapter("sum")
    expected = logits(model, inputs)
    model.save_pretrained(str(tmp_path), selected_adapters=["sum"])
    model.set_adapter("first")
    model.delete_adapter("sum")
    model.load_adapter(str(tmp_path / "sum"), "again")
    model.set_adapter("again")
    torch.testing.assert_close(logits(model, inputs), expected, atol=1e-6, rtol=1e-6)


def test_an_adapter_named_twice_counts_twice_and_a_known_name_is_left_alone(model, layers):
    model.add_weighted_adapter(["first", "first"], [1.0, 2.0], "sum")
    model.add_weighted_adapter(["first"], [7.0], "sum")
    for layer in layers(model).values():
        if "first" in layer.settings:
            torch.testing.assert_close(
                layer.get_delta_weight("sum"), 3 * layer.get_delta_weight("first"), atol=1e-5, rtol=1e-4
            )


@pytest.mark.parametrize(
    ("adapters", "weights", "options", "match"),
    [
        (["frist"], [1.0], {}, "first"),
        (["first", "second"], [1.0], {}, "got 1 for 2"),
        (["first"], [1.0], {"combination_type": "svd"}, "combination_type"),
        (["first", "bottom"], [1.0, 1.0], {}, "one basis"),
        (["first", "headed"], [1.0, 1.0], {}, "headed has one"),
    ],
)
def test_what_cannot_be_summed_is_refused_and_adds_nothing(model, adapters, weights, options, match):
    model.add_adapter("bottom", LoraXSConfig(r=2, target_modules=["q_proj"], basis="bottom"))
    model.add_adapter("headed", LoraXSConfig(r=2, target_modules=["q_proj"], modules_to_save=["lm_head"]))
    with pytest.raises(UsageError, match=match):
        model.add_weighted_adapter(adapters, weights, "sum", **options)
    assert "sum" not in model.peft_config


def test_a_sum_keeps_the_factors_of_the_machine_that_trained_them(layers, tmp_path):
    plain, there, here = (FactorStore(tmp_path / name) for name in ("plain", "there", "here"))
    with use_factor_store(plain):
        for layer in layers(unlike_adapters()).values():
            weight, settings = layer.get_base_layer().weight.detach(), next(iter(layer.settings.values()))
            factors = plain.get(weight, rank=settings.factor_rank)
            signs = torch.tensor([-1.0, 1.0]).repeat(factors.rank)[: factors.rank]
            flipped = dataclasses.replace(factors, left=factors.left * signs, right=factors.right * signs[:, None])
            write_factors(factor_path(plain.identify(weight, rank=settings.factor_rank)[0], there.root), flipped)
    with use_factor_store(there):
        trained = unlike_adapters()
        trained.save_pretrained(str(tmp_path / "saved"))
        trained.add_weighted_adapter(["first", "third"], [1.0, 0.5], "sum")
        expected = {name: layer.get_delta_weight("sum") for name, layer in layers(trained).items()}
    with use_factor_store(here):
        unlike_adapters()  # this machine has factors of its own
        for file in there.root.glob("*/*.safetensors"):
            install_factors(file.stem, file.read_bytes(), here.root)
        model = unlike_adapters()
        model.set_adapter("second")
        for name in ("first", "third"):
            model.delete_adapter(name)
            model.load_adapter(str(tmp_path / "saved" / name), name)
        model.add_weighted_adapter(["first", "third"], [1.0, 0.5], "sum")
        for name, layer in layers(model).items():
            torch.testing.assert_close(layer.get_delta_weight("sum"), expected[name], atol=1e-5, rtol=1e-4)
