"""What memory holds: tokens of a pass, slots of a pack, and the base itself."""

from __future__ import annotations

import json
import logging
import re
from pathlib import Path

import pytest
import torch
from safetensors.torch import load_file, save_file
from support.bases import SMOLLM, save_language_model

from loraxs_search.base_model.load import load_model
from loraxs_search.base_model.locate import locate
from loraxs_search.errors import BaseModelError
from loraxs_search.packing import capacity
from loraxs_search.records.adapter import LargestTrial
from loraxs_search.records.task import BaseModel, BaseModelRef, LinearModule, TaskModel

CPU = torch.device("cpu")
GIB = 2**30
MODULES = tuple(LinearModule(f"layer.{i}", 384, 1536) for i in range(10))
PER_TOKEN = 2 * 2 * 10 * (384 + 1536)  # bytes in bfloat16


@pytest.fixture
def free(monkeypatch):
    """Sets how much memory is free."""
    return lambda num_bytes: monkeypatch.setattr(capacity, "free_bytes", lambda device: num_bytes)


def rank(value: int, method: str = "lora-xs") -> LargestTrial:
    return LargestTrial(16, ((method, {"rank": value}),))


def fitting(wanted: int, largest: LargestTrial, head_parameters: int = 0) -> int:
    return capacity.fitting_slots(wanted, MODULES, largest, head_parameters, 2, CPU)


def test_the_budget_is_what_half_of_the_free_memory_holds_within_bounds(free):
    free(2 * 1000 * PER_TOKEN)
    assert capacity.token_budget(MODULES, torch.bfloat16, CPU) == 1000
    assert capacity.token_budget(MODULES, torch.float32, CPU) == 500
    free(10**15)
    assert capacity.token_budget(MODULES, torch.bfloat16, CPU) == 3072
    assert capacity.token_budget(MODULES, torch.bfloat16, torch.device("cuda")) == 65536
    free(0)
    assert capacity.token_budget(MODULES, torch.bfloat16, CPU) == 256


@pytest.mark.parametrize(
    ("max_tokens", "batch_tokens", "slots"),
    [
        (3072, 16 * 27.0, 8),  # the quickstart's
        (1000, 400.0, 5),
        (1000, 1e6, 1),
        (1000, 0.0, 64),
    ],
)
def test_a_cpus_trials_fill_every_worker_once(max_tokens, batch_tokens, slots):
    assert capacity.full_slots(CPU, max_tokens, 2, batch_tokens, lambda _: pytest.fail("a CPU is not timed")) == slots


@pytest.mark.parametrize(
    ("seconds", "full"),
    [
        (lambda tokens: 1.0 + tokens / 4096, 32768),  # a fixed cost of a second: twice 32,768 tokens gain 5 %
        (lambda tokens: tokens / 1000, 256),  # full from the start
        (lambda tokens: 1.0, 65536),  # never full
        (lambda tokens: 1.0 if tokens <= 4096 else float("inf"), 4096),  # memory holds no more
    ],
)
def test_an_accelerator_is_full_where_twice_the_tokens_gain_less_than_a_tenth(seconds, full):
    assert capacity.full_slots(torch.device("cuda"), 65536, 16, full, seconds) == 16


def test_slots_beyond_memory_become_fewer_with_a_warning(free, caplog):
    each = 4 * 6 * 64 * (384 + 1536) * len(MODULES)  # LoRA's A and B
    free(10 * each)
    with caplog.at_level(logging.WARNING):
        assert fitting(64, rank(64, "lora")) == 5
    assert "pack_size is 64, but memory holds the state of 5 trials only" in caplog.text
    caplog.clear()
    assert fitting(4, rank(64, "lora")) == 4
    assert not caplog.text
    free(0)
    assert fitting(4, rank(64, "lora")) == 1


def test_a_slot_is_as_large_as_its_largest_adapter_and_its_head(free):
    free(2 * 1000 * 2**20)
    assert fitting(10**6, rank(16), 770) > 1000, "a slot takes less than a megabyte"
    both = LargestTrial(16, (*rank(256).adapters, *rank(4, "lora").adapters))
    assert fitting(10**6, both) == fitting(10**6, rank(256)) < fitting(10**6, rank(4, "lora"))
    head = 1_051_650  # RoBERTa-large's: parameters, gradient and two moments, a gradient for each worker
    free(2 * 10 * 4 * 6 * head)
    assert fitting(10**6, LargestTrial(16), head) == 10


def test_this_machine_has_free_memory():
    assert 2**20 < capacity.free_bytes(CPU) < 2**50


FAST_BFLOAT16 = "loraxs_search.base_model.load._has_bfloat16"


# ---- the base --------------------------------------------------------------------------------------------------------
def base_in(folder: Path, dtype: torch.dtype, *, declared: bool = True) -> BaseModel:
    """Save a small decoder in a precision, which its configuration declares or not."""
    save_language_model(folder, SMOLLM)
    file = folder / "model.safetensors"
    save_file({name: value.to(dtype) for name, value in load_file(file).items()}, file, {"format": "pt"})
    config = json.loads((folder / "config.json").read_text())
    config["dtype"] = str(dtype).removeprefix("torch.") if declared else None
    (folder / "config.json").write_text(json.dumps(config))
    return locate(BaseModelRef(id=str(folder)))


@pytest.mark.parametrize(
    ("own", "dtype", "declared", "is_fast", "held"),
    [
        (torch.float32, torch.bfloat16, False, True, torch.float32),
        (torch.bfloat16, torch.bfloat16, False, True, torch.bfloat16),
        (torch.bfloat16, torch.float32, True, False, torch.float32),  # once
        (torch.float16, torch.bfloat16, True, True, torch.float32),
    ],
)
def test_what_is_counted_is_what_the_loaded_models_take(
    tmp_path, free, own, dtype, declared, is_fast, held, monkeypatch
):
    monkeypatch.setattr(FAST_BFLOAT16, lambda _: is_fast)
    base = base_in(tmp_path / "m", own, declared=declared)
    kind = TaskModel("AutoModelForCausalLM")
    models = [load_model(base, kind), *([load_model(base, kind, dtype=dtype)] if dtype != held else [])]
    assert models[0].dtype == held
    taken = sum(p.nbytes for model in models for p in model.parameters())
    free(taken)
    capacity.check_fits(base, dtype, CPU)
    free(taken - 1)
    with pytest.raises(BaseModelError):
        capacity.check_fits(base, dtype, CPU)


def huge(folder: Path, own: str) -> BaseModel:
    """Make a base of a billion numbers, of which only the header is written."""
    header = json.dumps({"x": {"dtype": own, "shape": [2**15, 2**15], "data_offsets": [0, 1]}}).encode()
    (folder / "model.safetensors").write_bytes(len(header).to_bytes(8, "little") + header)
    (folder / "config.json").write_text("{}")
    return BaseModel(id="org/huge", path=str(folder), weight_digest="0" * 64)


@pytest.mark.parametrize(
    ("free_gib", "own", "dtype", "message", "hint"),
    [  # two copies; a copy in bfloat16 helps; nothing here helps
        (5, "BF16", torch.float32, r"6\.00 GiB as bfloat16 .*float32, and 5\.00 GiB of cpu", "set .* bfloat16, which"),
        (3, "F16", torch.bfloat16, r"6\.00 GiB as float32 and", "use a copy of the base that is saved as bfloat16"),
        (1, "BF16", torch.bfloat16, r"2\.00 GiB, .*1\.00 GiB", "use a device with more memory, or a smaller base$"),
    ],
)
def test_a_base_that_does_not_fit_says_what_it_takes_and_what_would(
    tmp_path, free, free_gib, own, dtype, message, hint, monkeypatch
):
    monkeypatch.setattr(FAST_BFLOAT16, lambda _: True)
    free(free_gib * GIB)
    with pytest.raises(BaseModelError, match=message) as caught:
        capacity.check_fits(huge(tmp_path, own), dtype, CPU)
    assert re.match(hint, str(caught.value.hint))


def test_pickled_weights_count_as_long_as_they_are(tmp_path, free):
    (tmp_path / "pytorch_model.bin").write_bytes(bytes(100))
    (tmp_path / "config.json").write_text("{}")
    base = BaseModel(id="org/old", path=str(tmp_path), weight_digest="0" * 64)
    free(100)
    capacity.check_fits(base, torch.bfloat16, CPU)
    free(99)
    with pytest.raises(BaseModelError, match="org/old"):
        capacity.check_fits(base, torch.bfloat16, CPU)
