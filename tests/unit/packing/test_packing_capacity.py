from __future__ import annotations

import logging

import pytest
import torch

from loraxs_search.packing import capacity
from loraxs_search.records.adapter import LargestTrial
from loraxs_search.records.task import LinearModule

CPU = torch.device("cpu")
MODULES = tuple(LinearModule(f"layer.{i}", 384, 1536) for i in range(10))
PER_TOKEN = 2 * 2 * 10 * (384 + 1536)  # bytes in bfloat16


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
