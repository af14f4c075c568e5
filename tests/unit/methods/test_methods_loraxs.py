"""LoRA-XS in PEFT: its config; an adapter made, refused, switched, saved, loaded, merged, deleted; and packed.

What packed adapters compute is in `unit/engine/test_engine_layers.py`.
"""

from __future__ import annotations

import copy
import dataclasses
import importlib
import json
import pickle

import pytest
import torch
from peft import PeftConfig, PeftModel, get_peft_config, get_peft_model
from peft.mapping import PEFT_TYPE_TO_PREFIX_MAPPING, PEFT_TYPE_TO_TUNER_MAPPING
from peft.utils import PeftType, get_peft_model_state_dict
from safetensors.torch import load_file, save_file
from support.bases import small_classifier as make_base
from torch import nn
from transformers.pytorch_utils import Conv1D

import loraxs_search.methods.loraxs
from loraxs_search.errors import BaseModelError, UsageError
from loraxs_search.factors.compute import FactorKey
from loraxs_search.factors.store import FactorStore
from loraxs_search.methods.loraxs import LoraXSConfig, LoraXSModel
from loraxs_search.methods.loraxs.config import LORAXS
from loraxs_search.methods.loraxs.packed import FactorPairs

from .conftest import adapt, layers, logits


# ---- its config ------------------------------------------------------------------------------------------------------
def test_all_faults_come_in_one_error():
    wrong = {"r": 2.5, "sigma": "inptu", "basis": "best", "factor_driver": "gpu", "pooling": "auto", "init_std": -1}
    with pytest.raises(UsageError) as caught:
        LoraXSConfig(**wrong, scale=float("nan"), target_modules="all-linear", layers_to_transform=[0])
    for name in (*wrong, "scale", "layers_to_transform"):
        assert f"`{name}`" in caught.value.message
    for wrong, match in (({"factor_rank": 8, "r": 16}, "8 < 16"), ({"basis": "gaussian"}, "`init_seed`")):
        with pytest.raises(UsageError, match=match):
            LoraXSConfig(**wrong)


def test_a_saved_config_is_the_same_config(tmp_path):
    config = LoraXSConfig(
        r=8,
        scale=0.5,
        sigma="sqrt",
        basis="middle",
        target_modules=["value", "query"],
        modules_to_save=["classifier", "score", "classifier"],
        factor_fingerprints={"a.query": [0.1, -2.5]},
    )
    config.save_pretrained(str(tmp_path))
    written = json.loads((tmp_path / "adapter_config.json").read_text())
    assert written["peft_type"] == "LORAXS"
    assert written["target_modules"] == ["query", "value"]
    assert written["modules_to_save"] == ["classifier", "score"]
    loaded = PeftConfig.from_pretrained(str(tmp_path))
    assert isinstance(loaded, LoraXSConfig)
    assert loaded.to_dict() == config.to_dict()


def test_the_member_behaves_as_any_other_and_registering_twice_is_harmless():
    assert PeftType("LORAXS") is PeftType["LORAXS"] is PeftType.LORAXS is LORAXS
    assert list(PeftType).count(LORAXS) == 1
    assert LORAXS == LORAXS.name == LORAXS.value == "LORAXS"
    assert pickle.loads(pickle.dumps(LORAXS)) is copy.deepcopy(LORAXS) is LORAXS
    assert len({*PeftType}) == len(PeftType)
    importlib.reload(loraxs_search.methods.loraxs)
    assert PEFT_TYPE_TO_TUNER_MAPPING[LORAXS] is LoraXSModel
    assert PEFT_TYPE_TO_PREFIX_MAPPING[LORAXS] == "loraxs_"
    assert isinstance(get_peft_config({"peft_type": "LORAXS", "r": 3}), LoraXSConfig)


# ---- made ------------------------------------------------------------------------------------------------------------
def test_initial_r_depends_on_seed_and_module_alone_and_is_small_by_default():
    first = {name: layer.loraxs_R["default"].clone() for name, layer in layers(adapt()).items()}
    torch.rand(100)
    fewer = layers(adapt(target_modules=["query"]))
    assert len(fewer) == 2
    for name, layer in fewer.items():
        assert torch.equal(layer.loraxs_R["default"], first[name])
    assert len({r.sum().item() for r in first.values()}) == len(first)
    other = next(iter(layers(adapt(init_seed=8)).values())).loraxs_R["default"]
    assert not torch.equal(other, next(iter(first.values())))
    model = get_peft_model(make_base(), LoraXSConfig(r=24, target_modules=["query"]))
    r = torch.cat([layer.loraxs_R["default"].flatten() for layer in layers(model).values()])
    assert r.std().item() == pytest.approx(1e-5, rel=0.1)


def test_adapters_share_factor_pairs_by_what_they_are():
    model = adapt(target_modules=["query"], r=4)
    model.add_adapter("wide", LoraXSConfig(r=9, target_modules=["query"], task_type="SEQ_CLS"))
    layer = next(iter(layers(model).values()))
    assert len(layer.loraxs_factors) == 2
    narrow, wide = layer.factor_pair("default")[0], layer.factor_pair("wide")[0]
    assert (len(narrow), len(wide)) == (4, 9) and narrow.data_ptr() == wide.data_ptr()
    model.add_adapter("other", LoraXSConfig(r=4, sigma="none", target_modules=["query"], task_type="SEQ_CLS"))
    assert len(layer.loraxs_factors) == 4
    model.delete_adapter("other")
    assert len(layer.loraxs_factors) == 2


def test_factors_of_basis_gaussian_are_drawn_from_seed_and_module_whatever_the_weight():
    """Of variance 1 / fan-in; an adapter of another seed is refused."""
    config, drawn = adapt(basis="gaussian", init_seed=5).peft_config["default"], {}
    for base, seed in ((0, 5), (1, 5), (0, 6)):
        model = get_peft_model(
            make_base(seed=base), dataclasses.replace(config, init_seed=seed, factor_fingerprints={})
        )
        drawn[base, seed] = [layer.factor_pair("default") for layer in layers(model).values()]
    for (a, b), (same_a, same_b), (other, _) in zip(drawn[0, 5], drawn[1, 5], drawn[0, 6], strict=True):
        assert torch.equal(a, same_a) and torch.equal(b, same_b)
        assert not torch.isclose(a, other).any()
    for side in zip(*drawn[0, 5], strict=True):
        numbers = torch.cat([each.flatten() * each.shape[1] ** 0.5 for each in side])
        assert abs(float(numbers.mean())) < 0.05 and abs(float(numbers.std()) - 1) < 0.05
    with pytest.raises(BaseModelError):
        get_peft_model(make_base(), dataclasses.replace(config, init_seed=6))


def test_what_is_stored_of_factors_follows_the_config_and_is_recorded_in_it():
    assert adapt(factor_driver="auto").peft_config["default"].factor_driver == "exact"
    assert adapt(factor_driver="randomized").peft_config["default"].factor_driver == "randomized"
    for asked, stored in ((12, 12), (64, 24), (None, 24)):
        own = layers(adapt(factor_rank=asked, target_modules=["query"])).values()
        assert {layer.settings["default"].factor_key.rank for layer in own} == {stored}


def test_r_stays_float32_whatever_the_base_is_cast_to(inputs):
    config = LoraXSConfig(r=4, target_modules="all-linear", init_std=0.5, exclude_modules=["classifier"])
    model = get_peft_model(make_base().bfloat16(), config)
    for layer in layers(model).values():
        assert layer.loraxs_R["default"].dtype == torch.float32
        assert {t.dtype for t in layer.loraxs_factors._buffers.values()} == {torch.bfloat16}
    output = model(**inputs).logits
    assert output.dtype == torch.bfloat16
    output.float().sum().backward()
    assert all(layer.loraxs_R["default"].grad.dtype == torch.float32 for layer in layers(model).values())
    cast = adapt(target_modules=["query"])
    layer = next(iter(layers(cast).values()))
    before = layer.loraxs_R["default"].detach().clone()
    cast.to(torch.bfloat16)
    assert layer.weight.dtype == torch.bfloat16
    assert layer.loraxs_R["default"].dtype == torch.float32 and torch.equal(layer.loraxs_R["default"], before)


def test_the_input_is_not_kept_for_backward():
    model = adapt(target_modules=["intermediate.dense"])
    kept: list[tuple[int, ...]] = []
    with torch.autograd.graph.saved_tensors_hooks(lambda t: kept.append(tuple(t.shape)) or t, lambda t: t):
        next(iter(layers(model).values()))(torch.randn(3, 7, 24, requires_grad=True))
    assert kept and not {(21, 24), (3, 7, 24)} & {*kept}  # R's own input, (3, 7, 4), is needed


# ---- refused ---------------------------------------------------------------------------------------------------------
def test_only_linear_layers_that_are_called_are_adapted():
    for target in ("LayerNorm", "word_embeddings"):
        with pytest.raises(UsageError):
            get_peft_model(make_base(), LoraXSConfig(r=2, target_modules=[target]))
    # Its forward is never called: torch reads the weight directly, and an adapter there would do nothing.
    with pytest.raises(UsageError):
        get_peft_model(nn.Sequential(nn.MultiheadAttention(8, 2)), LoraXSConfig(r=2, target_modules=["out_proj"]))


def test_a_config_made_for_another_base_is_refused():
    config = copy.deepcopy(adapt(target_modules=["query"]).peft_config["default"])
    with pytest.raises(BaseModelError, match=r"bert\.encoder\.layer\.0\.attention\.self\.query"):
        get_peft_model(make_base(seed=1), config)
    config.factor_fingerprints.clear()
    get_peft_model(make_base(seed=1), config)


def test_a_merged_weight_is_never_decomposed():
    model = adapt(target_modules=["query"])
    model.merge_adapter()
    with pytest.raises(UsageError):
        model.add_adapter("late", LoraXSConfig(r=2, sigma="sqrt", target_modules=["query"], task_type="SEQ_CLS"))


def test_an_adapter_that_one_module_refuses_is_added_to_none(inputs):
    model = adapt()
    expected = logits(model, inputs)
    config = LoraXSConfig(r=2, target_modules="all-linear", task_type="SEQ_CLS")
    config.factor_fingerprints["bert.encoder.layer.1.output.dense"] = [0.0] * 6
    with pytest.raises(BaseModelError):
        model.add_adapter("late", config)
    assert all(set(layer.settings) == set(layer.loraxs_R) == {"default"} for layer in layers(model).values())
    assert torch.equal(logits(model, inputs), expected)
    base = make_base()
    with pytest.raises(UsageError, match=r"1\.\.24.*r=25 for bert\.encoder\.layer\.0\.attention\.self\.query"):
        get_peft_model(base, LoraXSConfig(r=25, target_modules="all-linear", task_type="SEQ_CLS"))
    assert torch.equal(logits(base, inputs), logits(make_base(), inputs))


def test_rows_of_several_adapters_are_refused(inputs):
    with pytest.raises(UsageError) as refused:
        logits(adapt(), inputs, adapter_names=["default"] * 5)
    assert "AdapterBank" in refused.value.hint


@pytest.mark.parametrize("order", [("full", "output"), ("output", "full")])
def test_adapters_that_train_other_layers_of_a_head_are_not_put_on_one_model(order, inputs, tmp_path):
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


def test_an_adapter_does_not_change_the_head_of_one_without(inputs):
    model = adapt("roberta", target_modules=["query"], modules_to_save=None, task_type=None)
    before = logits(model, inputs)
    with pytest.raises(UsageError):
        model.add_adapter("second", LoraXSConfig(r=2, target_modules=["query"], pass_through=["classifier.dense"]))
    assert torch.equal(logits(model, inputs), before)


# ---- switched, saved, loaded -----------------------------------------------------------------------------------------
def test_disabled_adapters_leave_the_base_bit_for_bit(family, inputs):
    model, expected = adapt(family), logits(make_base(family), inputs)
    assert not torch.equal(logits(model, inputs), expected)
    with model.disable_adapter():
        assert torch.equal(logits(model, inputs), expected)
    model.merge_adapter()
    with model.disable_adapter():
        assert torch.equal(logits(model, inputs), expected)


def test_adapters_are_switched_and_deleted(inputs):
    model = adapt()
    first = logits(model, inputs)
    common = {"target_modules": "all-linear", "task_type": "SEQ_CLS", "init_std": 0.5}
    model.add_adapter("second", LoraXSConfig(r=6, init_seed=9, **common))
    assert torch.equal(logits(model, inputs), first)
    model.set_adapter("second")
    assert (logits(model, inputs) - first).abs().max() > 1e-3
    trained = {name.split(".")[-1] for name, p in model.named_parameters() if "loraxs_R" in name and p.requires_grad}
    assert trained == {"second"}
    with pytest.warns(UserWarning, match="second was active which is now deleted"):
        model.delete_adapter("second")
    assert torch.equal(logits(model, inputs), first)
    assert all(set(layer.settings) == {"default"} == set(layer.loraxs_R) for layer in layers(model).values())


@pytest.mark.parametrize("low_cpu_mem_usage", [False, True])
def test_saved_is_loaded_alone_or_beside_another_and_into_float32(family, inputs, tmp_path, low_cpu_mem_usage):
    model, options = adapt(family), {"low_cpu_mem_usage": low_cpu_mem_usage}
    expected = logits(model, inputs)
    model.save_pretrained(str(tmp_path))
    loaded = PeftModel.from_pretrained(make_base(family), str(tmp_path), adapter_name="mine", **options)
    assert torch.equal(logits(loaded, inputs), expected)
    assert not any(parameter.is_meta or parameter.requires_grad for parameter in loaded.parameters())
    other = adapt(family, init_seed=11)
    before = logits(other, inputs)
    other.load_adapter(str(tmp_path), "guest", **options)
    assert torch.equal(logits(other, inputs), before)
    other.set_adapter("guest")
    assert torch.equal(logits(other, inputs), expected)
    file = tmp_path / "adapter_model.safetensors"
    save_file({key: value.bfloat16() for key, value in load_file(file).items()}, file)
    rounded = PeftModel.from_pretrained(make_base(family), str(tmp_path), autocast_adapter_dtype=False, **options)
    assert all(layer.loraxs_R["default"].dtype == torch.float32 for layer in layers(rounded).values())


def test_a_stored_head_keeps_its_precision_on_a_bfloat16_base(family, inputs, tmp_path):
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


# ---- merged ----------------------------------------------------------------------------------------------------------
def test_merging_in_low_precision_rounds_once_and_twice_changes_nothing():
    config = LoraXSConfig(r=4, target_modules=["query"], init_std=0.5, init_seed=1)
    model = get_peft_model(make_base().bfloat16(), config)
    model.add_adapter("second", LoraXSConfig(r=6, target_modules=["query"], init_std=0.5, init_seed=2))
    layer = next(iter(layers(model).values()))
    base = layer.weight.detach().clone()
    exact = base.float() + layer.get_delta_weight("default") + layer.get_delta_weight("second")
    layer.merge(adapter_names=["default"])
    with pytest.warns(UserWarning, match="already merged"):
        layer.merge(adapter_names=["default"])
    with pytest.warns(UserWarning, match="additionally merging"):
        layer.merge(adapter_names=["second"])
    assert torch.equal(layer.weight, exact.bfloat16())
    layer.unmerge()
    with pytest.warns(UserWarning, match="Already unmerged"):
        layer.unmerge()
    assert torch.equal(layer.weight, base)
    assert layer.weight.dtype == torch.bfloat16


def test_a_merge_that_would_not_be_finite_is_refused_and_undone():
    layer = next(iter(layers(adapt(target_modules=["query"])).values()))
    layer.loraxs_R["default"].data[0, 0] = torch.nan
    before = layer.weight.clone()
    with pytest.raises(ValueError, match=r"NaNs detected in the merged weights\. The adapter default seems"):
        layer.merge(safe_merge=True)
    assert torch.equal(layer.weight, before)
    assert not layer.merged


# ---- packed ----------------------------------------------------------------------------------------------------------
IN, OUT = 8, 6
TOP = FactorKey("top", 4, "exact")


@pytest.fixture
def linears():
    layers = {"first": nn.Linear(IN, OUT), "second": Conv1D(OUT, IN)}
    return {name: layer.requires_grad_(False) for name, layer in layers.items()}


@pytest.fixture
def pairs(linears, tmp_path):
    store = FactorStore(tmp_path / "factors")
    return FactorPairs(linears, lambda: store)


def test_a_pair_is_made_once_forgotten_with_its_rank_and_zero_beyond_its_factors(linears, pairs):
    pair = pairs.pair("second", TOP, 2)
    assert pairs.pair("second", TOP, 2) is pair
    assert (pair.a.shape, pair.b_t.shape) == ((2, IN), (2, OUT))
    assert pair.a.is_contiguous() and pair.b_t.is_contiguous()
    pairs.keep(3, [])
    assert pairs.pair("second", TOP, 2) is not pair
    wide, whole = pairs.pair("first", TOP, 6), pairs.factors("first", TOP)
    assert whole.rank == 4
    torch.testing.assert_close(wide.a[:4], whole.ab(4, "none")[0])
    assert not wide.a[4:].any() and not wide.b_t[4:].any()


def test_a_pair_has_the_bases_dtype_and_a_variant_its_own_factors(linears, pairs):
    linears["first"].bfloat16()
    assert pairs.pair("first", TOP, 2).a.dtype == torch.bfloat16
    other = TOP._replace(variant="elsewhere")
    pairs.add_variant("first", other, pairs.factors("second", TOP))
    assert torch.equal(pairs.pair("first", other, 2).a, pairs.pair("second", TOP, 2).a.bfloat16())


def test_pairs_that_were_drawn_for_adapters_which_left_are_forgotten(linears, pairs):
    own = [FactorKey("gaussian", 2, "exact", str(seed)) for seed in range(2)]
    first = pairs.pair("first", own[0], 2)
    assert not torch.equal(first.a, pairs.pair("first", own[1], 2).a)
    assert pairs.pair("first", own[0], 2) is first
    pairs.keep(2, [own[0]])
    top = pairs.pair("first", TOP, 2)
    pairs.keep(2, [own[1]])
    again = pairs.pair("first", own[0], 2)
    assert again is not first and torch.equal(again.a, first.a)
    assert pairs.pair("first", TOP, 2) is top, "every trial of the base may use these"
