"""What is trained, in which precision, from which factors.

A batch of rows for different adapters gives each row what its adapter gives alone.
"""

from __future__ import annotations

import copy

import pytest
import torch
from peft import get_peft_model
from torch import nn
from transformers.pytorch_utils import Conv1D

from loraxs_search.errors import BaseModelError, FactorMismatchError, RankError, TargetModulesError, UsageError
from loraxs_search.factors.compute import compute_factors
from loraxs_search.factors.store import FactorStore
from loraxs_search.methods.loraxs import LoraXSConfig, current_factor_store, use_factor_store


def adapter_keys(model):
    return [name for name, parameter in model.named_parameters() if parameter.requires_grad]


def test_rank_and_scale_patterns(adapt, layers):
    model = adapt(rank_pattern={"query": 2, "0.output.dense": 5}, scale=0.5, scale_pattern={"value": 3.0})
    settings = {
        name.removeprefix("base_model.model."): layer.settings["default"] for name, layer in layers(model).items()
    }
    assert settings["bert.encoder.layer.1.attention.self.query"].rank == 2
    assert settings["bert.encoder.layer.0.output.dense"].rank == 5
    assert settings["bert.encoder.layer.1.output.dense"].rank == 4
    assert settings["bert.encoder.layer.0.attention.self.value"].scale == 3.0
    assert settings["bert.encoder.layer.0.attention.self.key"].scale == 0.5


def test_layers_and_exclusions_choose_modules(adapt, layers):
    one = adapt(target_modules=["query", "value"], layers_to_transform=[1], layers_pattern="layer")
    assert [name.split(".")[-4] for name in layers(one)] == ["1", "1"]
    rest = adapt(target_modules=["query", "value"], exclude_modules=["value"])
    assert {name.split(".")[-1] for name in layers(rest)} == {"query"}


def test_a_rank_above_a_module_names_the_module(make_base):
    with pytest.raises(RankError, match=r"1\.\.24.*r=25 for bert\.encoder\.layer\.0\.attention\.self\.query"):
        get_peft_model(make_base(), LoraXSConfig(r=25, target_modules=["query"]))


@pytest.mark.parametrize("target", ["LayerNorm", "word_embeddings"])
def test_what_is_no_linear_layer_is_refused(make_base, target):
    with pytest.raises(TargetModulesError, match="linear layers"):
        get_peft_model(make_base(), LoraXSConfig(r=2, target_modules=[target]))


def test_the_projection_inside_multihead_attention_is_refused():
    # Its forward is never called: torch reads the weight directly, and an adapter there would do nothing.
    with pytest.raises(TargetModulesError, match=r"MultiheadAttention"):
        get_peft_model(nn.Sequential(nn.MultiheadAttention(8, 2)), LoraXSConfig(r=2, target_modules=["out_proj"]))


def test_initial_r_depends_on_seed_and_module_alone(adapt, layers):
    first = {name: layer.loraxs_R["default"].clone() for name, layer in layers(adapt()).items()}
    torch.rand(100)
    fewer = layers(adapt(target_modules=["query"]))
    assert len(fewer) == 2
    for name, layer in fewer.items():
        assert torch.equal(layer.loraxs_R["default"], first[name])
    assert len({r.sum().item() for r in first.values()}) == len(first)
    other = next(iter(layers(adapt(init_seed=8)).values())).loraxs_R["default"]
    assert not torch.equal(other, next(iter(first.values())))


def test_initial_r_is_small_by_default(make_base, layers):
    model = get_peft_model(make_base(), LoraXSConfig(r=24, target_modules=["query"]))
    r = torch.cat([layer.loraxs_R["default"].flatten() for layer in layers(model).values()])
    assert r.std().item() == pytest.approx(1e-5, rel=0.1)


def test_adapters_share_factor_pairs_by_what_they_are(adapt, layers):
    model = adapt(target_modules=["query"], r=4)
    model.add_adapter("wide", LoraXSConfig(r=9, target_modules=["query"], task_type="SEQ_CLS"))
    layer = next(iter(layers(model).values()))
    assert len(layer.loraxs_factors) == 2
    narrow, wide = layer.factor_pair("default")[0], layer.factor_pair("wide")[0]
    assert narrow.data_ptr() == wide.data_ptr()
    model.add_adapter("other", LoraXSConfig(r=4, sigma="none", target_modules=["query"], task_type="SEQ_CLS"))
    assert len(layer.loraxs_factors) == 4
    model.delete_adapter("other")
    assert len(layer.loraxs_factors) == 2


def test_the_used_driver_is_recorded(adapt):
    assert adapt(factor_driver="auto").peft_config["default"].factor_driver == "exact"
    assert adapt(factor_driver="randomized").peft_config["default"].factor_driver == "randomized"


def test_factor_rank_decides_what_is_stored(make_base, layers):
    with use_factor_store(FactorStore()) as store:
        assert current_factor_store() is store
    model = get_peft_model(make_base(), LoraXSConfig(r=4, factor_rank=12, target_modules=["query", "output.dense"]))
    assert {layer.settings["default"].factor_rank for layer in layers(model).values()} == {12}
    model = get_peft_model(make_base(), LoraXSConfig(r=4, factor_rank=64, target_modules=["query"]))
    assert {layer.settings["default"].factor_rank for layer in layers(model).values()} == {24}


@pytest.mark.parametrize("dtype", [torch.bfloat16, torch.float16])
def test_a_low_precision_base_keeps_r_in_float32(make_base, layers, inputs, dtype):
    config = LoraXSConfig(r=4, target_modules="all-linear", init_std=0.5, exclude_modules=["classifier"])
    model = get_peft_model(make_base().to(dtype), config)
    for layer in layers(model).values():
        assert layer.loraxs_R["default"].dtype == torch.float32
        assert {t.dtype for t in layer.loraxs_factors._buffers.values()} == {dtype}
    output = model(**inputs).logits
    assert output.dtype == dtype
    output.float().sum().backward()
    assert all(layer.loraxs_R["default"].grad.dtype == torch.float32 for layer in layers(model).values())


def test_casting_the_model_leaves_r_alone(adapt, layers):
    model = adapt(target_modules=["query"])
    layer = next(iter(layers(model).values()))
    before = layer.loraxs_R["default"].detach().clone()
    model.to(torch.bfloat16)
    assert layer.weight.dtype == torch.bfloat16
    assert torch.equal(layer.loraxs_R["default"], before)
    assert layer.loraxs_R["default"].dtype == torch.float32


def test_the_input_is_not_kept_for_backward(adapt, inputs, layers):
    model = adapt(target_modules=["intermediate.dense"])
    kept: list[tuple[int, ...]] = []
    with torch.autograd.graph.saved_tensors_hooks(lambda t: kept.append(tuple(t.shape)) or t, lambda t: t):
        layer = next(iter(layers(model).values()))
        layer(torch.randn(3, 7, 24, requires_grad=True))
    assert (21, 24) not in kept
    assert (3, 7, 24) not in kept
    assert kept  # R's own input, (3, 7, 4), is needed


@pytest.mark.filterwarnings("ignore:`gradient_checkpointing_enable` is deprecated")
def test_gradient_checkpointing_gives_the_same_gradients(adapt, inputs, layers):
    grads = []
    for checkpointing in (False, True):
        model = adapt("llama")
        if checkpointing:
            model.get_base_model().gradient_checkpointing_enable({"use_reentrant": False})
            model.train()
        model(**inputs).logits.sum().backward()
        grads.append([layer.loraxs_R["default"].grad for layer in layers(model).values()])
    for plain, checkpointed in zip(*grads, strict=True):
        torch.testing.assert_close(plain, checkpointed)


def test_layers_that_share_a_weight_share_a_file(tmp_path):
    model = nn.Sequential(nn.Linear(8, 8, bias=False), nn.ReLU(), nn.Linear(8, 8, bias=False))
    model[2].weight = model[0].weight
    with use_factor_store(FactorStore(tmp_path)):
        get_peft_model(model, LoraXSConfig(r=2, target_modules=["0", "2"]))
    assert len(list(tmp_path.rglob("*.safetensors"))) == 1


def test_conv1d_factors_are_those_of_the_transposed_weight(adapt, layers):
    layer = next(layer for layer in layers(adapt("gpt2")).values() if isinstance(layer.get_base_layer(), Conv1D))
    a, b = compute_factors(layer.weight.T, rank=4).ab(4)
    torch.testing.assert_close(layer.factor_pair("default"), (a, b))
    assert a.shape[1] == layer.in_features == layer.weight.shape[0]


class InOut(nn.Module):
    in_features, out_features = 6, 5

    def __init__(self):
        super().__init__()
        self.weight = nn.Parameter(torch.randn(6, 5))

    def forward(self, x):
        return x @ self.weight


@pytest.mark.filterwarnings("ignore:Unsupported layer type")
def test_a_custom_layer_may_store_its_weight_transposed(layers):
    config = LoraXSConfig(r=3, target_modules=["0"], init_std=0.5, fan_in_fan_out=True)
    model = get_peft_model(nn.Sequential(InOut()), config)
    (layer,) = layers(model).values()
    a, b = compute_factors(layer.weight.T, rank=5).ab(3)
    x = torch.randn(4, 6)
    expected = x @ (layer.weight + (b @ layer.loraxs_R["default"] @ a).T)
    torch.testing.assert_close(model(x), expected, atol=1e-5, rtol=1e-5)
    layer.merge()
    torch.testing.assert_close(model(x), expected, atol=1e-5, rtol=1e-5)


class Int8Backend:
    """A stand-in for a quantisation library: int8 weights with one step."""

    backend_name, layer_type, supports_merge = "int8", "linear", True

    def get_base_weight(self, layer):
        return layer.weight.float() * layer.step

    def set_base_weight(self, peft_layer, weight):
        layer = peft_layer.get_base_layer()
        layer.weight.data = (weight / layer.step).round().to(torch.int8)

    def maybe_clone_base_result(self, y):
        return y


class Int8Linear(nn.Module):
    in_features, out_features = 12, 10

    def __init__(self, readable=True):
        super().__init__()
        self.weight = nn.Parameter(torch.randint(-99, 99, (10, 12), dtype=torch.int8), requires_grad=False)
        self.step, self.readable = 0.01, readable

    def forward(self, x):
        return x @ (self.weight.float() * self.step).T


@pytest.fixture
def int8(monkeypatch):
    def resolve(layer, **_):
        return Int8Backend() if isinstance(layer, Int8Linear) else None

    monkeypatch.setattr("loraxs_search.methods.loraxs.model.resolve_quantization_backend", resolve)


@pytest.mark.filterwarnings("ignore:Unsupported layer type")
def test_a_quantised_base_is_decomposed_dequantised(int8, layers):
    base = nn.Sequential(Int8Linear())
    model = get_peft_model(base, LoraXSConfig(r=3, target_modules=["0"], init_std=0.05))
    (layer,) = layers(model).values()
    a, b = compute_factors(layer.get_base_weight(), rank=10).ab(3)
    torch.testing.assert_close(layer.factor_pair("default"), (a, b))
    x = torch.randn(4, 12)
    expected = x @ (layer.get_base_weight() + b @ layer.loraxs_R["default"] @ a).T
    torch.testing.assert_close(model(x), expected, atol=1e-5, rtol=1e-5)
    plain = layer.weight.clone()
    layer.merge()
    assert not torch.equal(layer.weight, plain)
    torch.testing.assert_close(model(x), expected, atol=0.1, rtol=0)
    layer.unmerge()
    assert (layer.weight - plain).abs().max() <= 1  # a quantisation step of rounding


@pytest.mark.filterwarnings("ignore:Unsupported layer type")
def test_a_base_that_cannot_be_dequantised_is_refused(int8, monkeypatch):
    def unreadable(self, layer):
        raise TypeError("no kernel")

    monkeypatch.setattr(Int8Backend, "get_base_weight", unreadable)
    with pytest.raises(BaseModelError, match="int8"):
        get_peft_model(nn.Sequential(Int8Linear()), LoraXSConfig(r=3, target_modules=["0"]))


def test_a_config_made_for_another_base_is_refused(make_base, adapt):
    config = copy.deepcopy(adapt(target_modules=["query"]).peft_config["default"])
    with pytest.raises(FactorMismatchError, match=r"bert\.encoder\.layer\.0\.attention\.self\.query"):
        get_peft_model(make_base(seed=1), config)
    config.factor_fingerprints.clear()
    get_peft_model(make_base(seed=1), config)


def test_a_merged_weight_is_never_decomposed(adapt):
    model = adapt(target_modules=["query"])
    model.merge_adapter()
    with pytest.raises(UsageError, match="merged"):
        model.add_adapter("late", LoraXSConfig(r=2, sigma="sqrt", target_modules=["query"], task_type="SEQ_CLS"))


def test_an_adapter_that_one_module_refuses_is_added_to_none(adapt, make_base, inputs, logits, layers):
    model = adapt()
    expected = logits(model, inputs)
    too_wide = {"r": 2, "rank_pattern": {"1.output.dense": 25}, "target_modules": "all-linear", "task_type": "SEQ_CLS"}
    with pytest.raises(RankError):
        model.add_adapter("late", LoraXSConfig(**too_wide))
    assert all(set(layer.settings) == set(layer.loraxs_R) == {"default"} for layer in layers(model).values())
    assert torch.equal(logits(model, inputs), expected)
    model.add_adapter("late", LoraXSConfig(**{**too_wide, "rank_pattern": {}}))
    base = make_base()
    with pytest.raises(RankError):
        get_peft_model(base, LoraXSConfig(**too_wide))
    assert torch.equal(logits(base, inputs), logits(make_base(), inputs))


def test_a_base_on_the_meta_device_gets_its_factors_at_first_use(make_base, inputs, logits, layers):
    config = LoraXSConfig(r=2, target_modules="all-linear", init_std=0.5, init_seed=3)
    expected = get_peft_model(make_base(), copy.deepcopy(config)).eval()
    real = make_base()
    with torch.device("meta"):
        base = type(real)(real.config)
    model = get_peft_model(base, config).eval()
    assert not config.factor_fingerprints
    for name, module in real.named_modules():
        for key, tensor in [*module.named_parameters(recurse=False), *module.named_buffers(recurse=False)]:
            wrapped = model.get_base_model().get_submodule(name)
            owner = wrapped.base_layer if hasattr(wrapped, "base_layer") else wrapped
            if isinstance(tensor, nn.Parameter):
                setattr(owner, key, tensor)
            else:
                owner._buffers[key] = tensor
    assert torch.equal(logits(model, inputs), logits(expected, inputs))
    assert config.factor_fingerprints == expected.peft_config["default"].factor_fingerprints


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
