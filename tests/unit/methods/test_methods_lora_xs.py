"""What LoRA-XS means to a search, before any weight is loaded."""

from __future__ import annotations

import dataclasses
import subprocess
import sys

import pytest
import safetensors.torch
import torch

from loraxs_search.errors import UsageError
from loraxs_search.methods import get_method
from loraxs_search.methods.lora_xs import LoraXS
from loraxs_search.methods.loraxs import LoraXSConfig, module_settings
from loraxs_search.methods.names import file_bytes
from loraxs_search.records.base import LinearModule
from loraxs_search.records.trial import Hyperparameters

HYPER = Hyperparameters(rank=4, target_modules=("q",), learning_rate=1e-3, head_learning_rate=1e-3)


def test_factors_are_stored_at_a_bucket_that_all_trials_of_a_space_share():
    for largest, stored in ((1, 64), (64, 64), (65, 128), (300, 512)):
        factor_rank = LoraXS().fields({}, {"rank": (1, largest)})["factor_rank"]
        assert factor_rank == stored
        for config in (LoraXSConfig(r=1, factor_rank=factor_rank), LoraXSConfig(r=largest)):
            assert module_settings(config, "q", 1536, 4096).factor_key.rank == stored
            if largest < 384:
                assert module_settings(config, "q", 1536, 384).factor_key.rank == min(stored, 384)


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
