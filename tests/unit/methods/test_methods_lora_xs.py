"""What LoRA-XS means to a search, before any weight is loaded."""

from __future__ import annotations

import dataclasses
import subprocess
import sys

import pytest
import safetensors.torch
import torch

from loraxs_search.errors import UsageError
from loraxs_search.factors.compute import default_factor_rank
from loraxs_search.methods import get_method
from loraxs_search.methods.lora_xs import LoraXS
from loraxs_search.methods.loraxs import LoraXSLinear
from loraxs_search.methods.names import file_bytes
from loraxs_search.records.base import LinearModule
from loraxs_search.records.trial import Hyperparameters

HYPER = Hyperparameters(rank=4, target_modules=("q",), learning_rate=1e-3, head_learning_rate=1e-3)


@pytest.mark.parametrize("rank", [1, 2, 63, 64, 65, 128, 129, 300])
def test_the_factor_rank_is_the_factor_rooms_own_bucket(rank):
    own = LoraXS().fields({}, {"rank": (1, rank)})["factor_rank"]
    assert own == default_factor_rank(rank, 4096, 4096)
    assert min(own, 384) == default_factor_rank(rank, 1536, 384)


def test_bytes_are_those_of_the_file_that_peft_would_write():
    shapes = {"a.b.loraxs_R": (3, 3), "z": (5,), "a.a.loraxs_R": (3, 3), "classifier.weight": (2, 7)}
    for root in ("base_model.model.", ""):
        named = {f"{root}{name}": torch.zeros(shape) for name, shape in shapes.items()}
        assert file_bytes(shapes, root=root) == len(safetensors.torch.save(named, {"format": "pt"}))


def test_its_params_come_back_out_of_a_record_with_the_records_defaults():
    method = get_method("lora-xs")
    params = {"rank": 8, "basis": "bottom"}
    record = dataclasses.replace(HYPER, **method.fields(params, {"rank": (4, 100), "basis": ("bottom",)}))
    assert method.params(record) == method.with_defaults(params)
    assert (record.factor_rank, record.method_params) == (128, {})


def test_the_tuner_calls_r_what_stored_adapters_do():
    assert LoraXSLinear.adapter_layer_names == ("loraxs_R",)


def test_a_parameter_that_is_zero_is_not_left_out():
    assert get_method("lora-xs").with_defaults({"rank": 4, "init_std": 0.0})["init_std"] == 0.0


def test_a_method_is_known_without_torch():
    code = "import sys, loraxs_search.methods as m; m.get_method('lora-xs'); print('torch' in sys.modules)"
    assert subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=True).stdout == "False\n"


def test_a_trial_with_factors_of_its_own_takes_room_for_them():
    modules = (LinearModule("wide", 24, 8), LinearModule("square", 24, 24))
    needed = {
        basis: LoraXS().slot_bytes(LoraXS().with_defaults({"rank": 4, "basis": basis}), modules, 2)
        for basis in ("top", "gaussian")
    }
    assert needed["gaussian"] - needed["top"] == 4 * 4 * (24 + 8 + 24 + 24)
    assert LoraXS().factor_sets({"rank": (4,), "basis": ("gaussian",)}) == ()


def test_no_trial_starts_from_an_adapter_whose_factors_were_drawn():
    start = dataclasses.replace(HYPER, basis="gaussian")
    with pytest.raises(UsageError) as refused:
        LoraXS().check_start(start, LoraXS().params(start), (LinearModule("q", 8, 8),))
    assert refused.value.hint == "name an adapter of another basis"
