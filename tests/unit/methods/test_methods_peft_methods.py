"""Methods: plain LoRA is PEFT's own; LoRA-XS' params and sizes; and every config of PEFT's as a method."""

from __future__ import annotations

import dataclasses
from typing import Any

import pytest
import torch
from peft import LoraConfig, PeftModel, get_peft_model
from support.bases import BERT
from support.bases import base as small_base
from support.bases import small_classifier as make_base
from torch import nn

from loraxs_search.errors import UsageError
from loraxs_search.methods import get_method
from loraxs_search.methods._base import HeadPlan, PlainLora
from loraxs_search.methods.export.folder import write_plain_lora
from loraxs_search.methods.lora_xs import LoraXS
from loraxs_search.methods.loraxs import LoraXSConfig, ModuleSettings
from loraxs_search.methods.peft_methods import _peft_types
from loraxs_search.records.task import LinearModule
from loraxs_search.records.trial import Hyperparameters, PeftSettings

from .conftest import TARGETS, logits

HEAD = HeadPlan(trained=("classifier",), task_type="SEQ_CLS")
HYPER = Hyperparameters(rank=4, target_modules=("q",), learning_rate=1e-3, head_learning_rate=1e-3)
MODULES = (LinearModule("wide", 24, 8), LinearModule("square", 24, 24))


def attached(base, **params) -> PeftModel:
    method = get_method("lora")
    fields = method.fields({"rank": 4, **params}, {})
    hyper = Hyperparameters(TARGETS, 1e-3, 1e-3, **fields, seed=5, method="lora")
    return method.attach(base, hyper, HEAD, None).eval()


def pairs(model: nn.Module) -> dict[str, torch.Tensor]:
    return {name: p.detach().clone() for name, p in model.named_parameters() if ".lora_" in name}


@pytest.mark.parametrize(("params", "own"), [({}, {}), ({"scale": 0.5}, {"lora_alpha": 2})])
def test_it_begins_with_the_numbers_of_stock_peft_in_float32_whatever_the_base_is_in(inputs, params, own):
    model, other = attached(make_base(), **params), make_base()
    torch.manual_seed(5)
    config = {"r": 4, "lora_alpha": 4, "target_modules": list(TARGETS), "task_type": "SEQ_CLS", **own}
    stock = get_peft_model(other, LoraConfig(**config)).eval()
    mine, theirs = pairs(model), pairs(stock)
    assert mine.keys() == theirs.keys() and all(torch.equal(mine[name], value) for name, value in theirs.items())
    assert torch.equal(logits(model, inputs), logits(stock, inputs))
    halved = pairs(attached(make_base().bfloat16(), **params))
    assert all(torch.equal(halved[name], value) for name, value in mine.items())


def test_its_files_are_the_same_bytes_each_time():
    method = get_method("lora")
    first, second = (method.files(attached(make_base()), ()) for _ in range(2))
    assert first == second
    assert b'"bert.encoder.layer.0.attention.self.query",\n' in first["adapter_config.json"]


@pytest.mark.parametrize("name", ["lora", "lora-xs"])
def test_rank_is_held_against_the_smaller_side(name):
    method = get_method(name)
    method.check(method.with_defaults({"rank": 8}), MODULES)
    with pytest.raises(UsageError, match=r"1\.\.8, .*rank=9 for wide"):
        method.check(method.with_defaults({"rank": 9}), MODULES)


def test_an_update_of_several_ranks_is_no_file_of_plain_lora(tmp_path):
    pairs = {f"layer.{rank}": (torch.ones(rank, 4), torch.ones(4, rank)) for rank in (2, 3)}
    with pytest.raises(UsageError, match="one rank in all layers, but got 2, 3"):
        write_plain_lora(PlainLora(pairs, {}), tmp_path)
    assert not list(tmp_path.iterdir())


# ---- lora xs ---------------------------------------------------------------------------------------------------------
def test_factors_are_stored_at_a_bucket_that_all_trials_of_a_space_share():
    for largest, stored in ((1, 64), (64, 64), (65, 128), (300, 512)):
        factor_rank = LoraXS().fields({}, {"rank": (1, largest)})["factor_rank"]
        assert factor_rank == stored
        for config in (LoraXSConfig(r=1, factor_rank=factor_rank), LoraXSConfig(r=largest)):
            assert ModuleSettings.of(config, "q", 1536, 4096).factor_key.rank == stored
            if largest < 384:
                assert ModuleSettings.of(config, "q", 1536, 384).factor_key.rank == min(stored, 384)


def test_a_trial_with_factors_of_its_own_takes_room_for_them():
    needed = {
        basis: LoraXS().slot_bytes(LoraXS().with_defaults({"rank": 4, "basis": basis}), MODULES, 2)
        for basis in ("top", "gaussian")
    }
    assert needed["gaussian"] - needed["top"] == 4 * 4 * (24 + 8 + 24 + 24)
    assert LoraXS().factor_sets({"rank": (4,), "basis": ("gaussian",)}) == ()


def test_no_trial_starts_from_an_adapter_whose_factors_were_drawn():
    start = dataclasses.replace(HYPER, basis="gaussian")
    with pytest.raises(UsageError) as refused:
        LoraXS().check_start(start, LoraXS().params(start), (LinearModule("q", 8, 8),))
    assert refused.value.hint == "name an adapter of another basis"


# ---- configs of PEFT -------------------------------------------------------------------------------------------------
NEEDED: dict[str, dict[str, Any]] = {  # by types whose defaults do not fit layers of 32 x 32
    "C3A": {"block_size": 16},
    "FOURIERFT": {"n_frequency": 50},
    "IA3": {"feedforward_modules": []},
    "MISS": {"r": 4},
    "PSOFT": {"r": 4},
    "ROAD": {"group_size": 8},
    "SHIRA": {"r": 4},
    "VBLORA": {"vector_length": 8, "num_vectors": 16},
    "WAVEFT": {"n_frequency": 50},
}


def hyper(base: nn.Module, peft_type: str, **fixed: Any) -> Hyperparameters:
    names = tuple(name for name, it in base.named_modules() if isinstance(it, nn.Linear) and ".1." in name)
    return Hyperparameters(names, 1e-3, 1e-3, seed=3, method="mine", peft=PeftSettings(peft_type, fixed, {}))


@pytest.mark.parametrize(
    ("peft_type", "fixed"),
    [("LORA", {"init_lora_weights": "pissa"}), ("LORA", {"bias": "all"}), ("LORA", {"init_lora_weights": "typo"})],
)
def test_what_would_change_the_shared_base_is_refused(peft_type, fixed):
    base = small_base(BERT, noise=0.05).requires_grad_(False)
    before = {name: value.clone() for name, value in base.state_dict().items()}
    own = hyper(base, peft_type, **fixed)
    with pytest.raises(UsageError):
        get_method("mine", own.peft).attach(base, own, HeadPlan(("classifier",)), None)
    after = base.state_dict()
    assert after.keys() == before.keys() and all(torch.equal(after[name], value) for name, value in before.items())
    assert not any(parameter.requires_grad for parameter in base.parameters())


@pytest.mark.long(part="software")
@pytest.mark.filterwarnings("ignore")
@pytest.mark.parametrize("peft_type", _peft_types())
def test_every_type_is_counted_trained_stored_and_loaded(peft_type, tmp_path):
    base = small_base(BERT, noise=0.05).requires_grad_(False)
    own = hyper(base, peft_type, **NEEDED.get(peft_type, {}))
    method, ids = get_method("mine", own.peft), torch.arange(4, 25).reshape(3, 7)
    model = method.attach(base, own, HeadPlan(("classifier",)), None).eval()
    layers = {name: base.get_submodule(name) for name in own.target_modules}
    modules = [LinearModule(name, layer.in_features, layer.out_features) for name, layer in layers.items()]
    assert method.size({}, modules, {}, {}).r_parameters == method.measure(model).r_parameters
    trained = {name: value for name, value in model.named_parameters() if value.requires_grad}
    optimizer, reached = torch.optim.AdamW(trained.values(), lr=0.02), set[str]()
    for _ in range(4):
        optimizer.zero_grad()
        model(input_ids=ids).logits.square().sum().backward()
        optimizer.step()
        reached |= {name for name, value in trained.items() if value.grad is not None and value.grad.any()}
    assert reached == trained.keys()
    with torch.no_grad():
        expected = model(input_ids=ids).logits
    files = method.files(model, ())
    assert method.measure(model).stored_bytes == len(files["adapter_model.safetensors"])
    for name, content in files.items():
        (tmp_path / name).write_bytes(content)
    loaded = method.load(small_base(BERT, noise=0.05), tmp_path, "cpu").eval()
    with torch.no_grad():
        torch.testing.assert_close(loaded(input_ids=ids).logits, expected, rtol=1e-5, atol=1e-6)
