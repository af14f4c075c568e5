"""Plans: every row in one pass, few shapes, and the same worker for the same pass each time."""

from __future__ import annotations

import threading
from collections import Counter
from typing import Any

import numpy as np
import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st
from peft import LoraConfig, get_peft_model
from torch import nn
from transformers import BertConfig, BertForSequenceClassification

from loraxs_search.engine.layers import AdaptedBase
from loraxs_search.engine.passes import Engine, PassExecutor, workers_for

WANTED = st.lists(st.lists(st.integers(0, 90), min_size=1, max_size=40), min_size=1, max_size=9).map(
    lambda rows: {str(trial): np.array(own, dtype=np.int32) for trial, own in enumerate(rows)}
)


@given(WANTED, st.integers(90, 700))
def test_a_plan_is_a_partition_within_budget(wanted, max_tokens):
    passes, order = PassExecutor(2).plan(wanted, max_tokens), list(wanted)
    served: Counter[tuple[str, int]] = Counter()
    for shared in passes:
        assert shared.num_tokens <= max_tokens
        places = [order.index(share.name) for share in shared.shares]
        assert places == sorted(set(places))
        for share in shared.shares:
            assert len(share.positions) and np.all(np.diff(share.positions) > 0)
            assert wanted[share.name][share.positions].max() <= shared.width
            served.update((share.name, int(position)) for position in share.positions)
    assert served == Counter((name, position) for name, own in wanted.items() for position in range(len(own)))


def test_no_row_is_padded_beyond_the_positions_of_a_base():
    for positions, longest in [(300, 297), (513, 513), (1000, 993)]:
        wanted = {"1": np.array([longest, longest - 1, 20])}
        assert max(shared.width for shared in PassExecutor(1).plan(wanted, 4096)) > positions
        assert max(shared.width for shared in PassExecutor(1).plan(wanted, 4096, positions)) in range(
            longest, positions + 1
        )
    sizes = {"hidden_size": 8, "num_hidden_layers": 1, "num_attention_heads": 2, "intermediate_size": 8}
    model: nn.Module = BertForSequenceClassification(BertConfig(**sizes, vocab_size=9, max_position_embeddings=300))
    for own in (model, get_peft_model(model, LoraConfig(target_modules=["query"]))):
        (shared,) = Engine(AdaptedBase(own)).plan({"1": np.array([297])})
        assert 297 <= shared.width <= 300


def test_shapes_of_passes_are_few_so_that_kernels_are_made_once():
    random = np.random.default_rng(1)
    shapes = set()
    for _ in range(200):
        wanted = {str(i): random.integers(5, 65, size=16) for i in range(8)}
        shapes |= {(shared.num_tokens // shared.width, shared.width) for shared in PassExecutor(1).plan(wanted, 3072)}
    assert all(rows & (rows - 1) == 0 for rows, _ in shapes)
    assert all(width <= 32 or width % 2 == 0 for _, width in shapes)


PASSES = [PassExecutor(1).plan({"trial": np.array([width])}, 9)[0] for width in (9, 1, 5, 5, 3)]


def test_passes_go_to_workers_by_their_size_whatever_the_timing():
    for count in (1, 2, 8):
        assert PassExecutor(count).run(PASSES, lambda worker, shared: shared.width) == [9, 1, 5, 5, 3]
    executor, before = PassExecutor(2, threads=1), torch.get_num_threads()
    assert [executor.run(PASSES, lambda worker, shared: worker) for _ in range(3)] == [[0, 1, 1, 1, 0]] * 3
    assert set(executor.run(PASSES, lambda worker, shared: torch.get_num_threads())) == {1}
    assert torch.get_num_threads() == before


def test_a_fault_is_raised_once_all_workers_are_done():
    finished = threading.Event()

    def compute(worker: int, shared: Any) -> None:
        if worker == 0:
            raise ZeroDivisionError
        if shared is PASSES[-2]:
            finished.set()

    with pytest.raises(ZeroDivisionError):
        PassExecutor(2).run(PASSES, compute)
    assert finished.is_set()


def test_an_accelerator_has_one_worker():
    assert workers_for(torch.device("cuda")) == (1, 1)
    count, threads = workers_for(torch.device("cpu"))
    assert 1 <= count * threads <= torch.get_num_threads()
