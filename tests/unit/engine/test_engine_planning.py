"""Plans: every row in one pass, few shapes, and the same worker for the same pass each time."""

from __future__ import annotations

import threading
from collections import Counter
from collections.abc import Sequence

import numpy as np
import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st
from peft import LoraConfig, get_peft_model
from torch import nn
from transformers import BertConfig, BertForSequenceClassification

from loraxs_search.engine.passes import AdaptedBase
from loraxs_search.engine.planning import Demand, Pass, PassExecutor, Share, plan_passes, workers_for
from loraxs_search.engine.requests import Engine
from loraxs_search.errors import UsageError
from loraxs_search.tasks.encoded import TrainingBatches

LENGTHS = st.lists(st.integers(0, 90), min_size=1, max_size=40)


@st.composite
def demands(draw: st.DrawFn) -> list[Demand]:
    count = draw(st.integers(0, 9))
    return [Demand(str(trial), np.array(draw(LENGTHS), dtype=np.int32)) for trial in range(count)]


def padding(demands: Sequence[Demand], passes: Sequence[Pass]) -> float:
    """Return padded tokens over real ones."""
    return sum(shared.num_tokens for shared in passes) / sum(int(demand.lengths.sum()) for demand in demands)


@given(demands(), st.integers(90, 700))
def test_a_plan_is_a_partition_within_budget(wanted: list[Demand], max_tokens: int) -> None:
    passes = plan_passes(wanted, max_tokens)
    by_trial = {demand.name: demand for demand in wanted}
    served: Counter[tuple[object, int]] = Counter()
    for shared in passes:
        assert shared.num_tokens == shared.num_rows * shared.width <= max_tokens
        assert len({share.name for share in shared.shares}) == len(shared.shares)
        for share in shared.shares:
            assert len(share.positions)
            assert by_trial[share.name].lengths[share.positions].max() <= shared.width
            served.update((share.name, int(position)) for position in share.positions)
    assert served == Counter((d.name, position) for d in wanted for position in range(len(d.lengths)))


@given(demands())
def test_a_plan_follows_from_its_arguments_alone(wanted: list[Demand]) -> None:
    first, second = (plan_passes(wanted, 200) for _ in range(2))
    assert [(p.width, [(s.name, s.positions.tolist()) for s in p.shares]) for p in first] == [
        (p.width, [(s.name, s.positions.tolist()) for s in p.shares]) for p in second
    ]


@given(demands())
def test_trials_come_in_the_order_of_their_demands_in_every_pass(wanted: list[Demand]) -> None:
    order = {demand.name: i for i, demand in enumerate(wanted)}
    for shared in plan_passes(wanted, 300):
        places = [order[share.name] for share in shared.shares]
        assert places == sorted(places)
        assert all(np.all(np.diff(share.positions) > 0) for share in shared.shares)


@pytest.mark.parametrize("num_trials", [4, 8, 16, 32])
@pytest.mark.parametrize("mean", [24, 90])
def test_little_is_padded_for_the_batches_that_trials_draw(num_trials: int, mean: int) -> None:
    """Lengths as in movie reviews (5 to 64, mean 27) and as in long reviews, batches of 16 as trials draw them."""
    random = np.random.default_rng(0)
    lengths = np.clip(random.gamma(4.0, mean / 4.0, size=6000).astype(np.int32) + 3, 5, 64 if mean == 24 else 512)
    ratios = []
    for step in range(12):
        rows = [TrainingBatches(lengths, 16, seed).at(step) for seed in range(num_trials)]
        wanted = [Demand(i, lengths[batch]) for i, batch in enumerate(rows)]
        ratios.append(padding(wanted, plan_passes(wanted, 3072)))
    assert np.mean(ratios) < 1.05
    alone = [d.lengths.max() * len(d.lengths) for d in wanted]
    assert padding(wanted, plan_passes(wanted, 3072)) < sum(alone) / sum(int(d.lengths.sum()) for d in wanted) + 0.05


@pytest.mark.parametrize(("positions", "longest"), [(300, 297), (513, 513), (1000, 993)])
def test_no_row_is_padded_beyond_the_positions_of_a_base(positions: int, longest: int) -> None:
    wanted = [Demand("1", np.array([longest, longest - 1, 20]))]
    assert max(shared.width for shared in plan_passes(wanted, 4096)) > positions
    assert max(shared.width for shared in plan_passes(wanted, 4096, max_width=positions)) in range(
        longest, positions + 1
    )


@pytest.mark.parametrize("wrapped", [False, True])
def test_an_engine_pads_no_row_beyond_the_positions_of_its_base(wrapped: bool) -> None:
    shape = {
        "hidden_size": 8,
        "num_hidden_layers": 1,
        "num_attention_heads": 2,
        "intermediate_size": 8,
        "vocab_size": 9,
    }
    model: nn.Module = BertForSequenceClassification(BertConfig(**shape, max_position_embeddings=300))
    if wrapped:
        model = get_peft_model(model, LoraConfig(target_modules=["query"]))
    (shared,) = Engine(AdaptedBase(model)).plan([Demand("1", np.array([297]))])
    assert 297 <= shared.width <= 300


def test_rows_of_several_trials_share_a_pass() -> None:
    wanted = [Demand(trial, np.full(4, 10)) for trial in "abcd"]
    (only,) = plan_passes(wanted, 1000)
    assert [share.name for share in only.shares] == list("abcd")
    assert padding(wanted, [only]) == 1.0


def test_shapes_of_passes_are_few_so_that_kernels_are_made_once() -> None:
    random = np.random.default_rng(1)
    shapes = set()
    for _ in range(200):
        wanted = [Demand(i, random.integers(5, 65, size=16)) for i in range(8)]
        shapes |= {(shared.num_rows, shared.width) for shared in plan_passes(wanted, 3072)}
    assert all(rows & (rows - 1) == 0 for rows, _ in shapes)
    assert all(width <= 32 or width % 2 == 0 for _, width in shapes)


def test_a_row_longer_than_the_budget_says_what_to_change() -> None:
    with pytest.raises(UsageError, match=r"max_tokens=64 for a row of 65 tokens, asked by 7") as fault:
        plan_passes([Demand("7", np.array([3, 65]))], 64)
    assert "`max_length`" in str(fault.value.hint)


def test_nothing_to_do_is_no_pass() -> None:
    assert plan_passes([], 100) == []


def a_pass(width: int) -> Pass:
    return Pass(width, (Share("trial", np.arange(1)),))


PASSES = [a_pass(width) for width in (9, 1, 5, 5, 3)]


@pytest.mark.parametrize("count", [1, 2, 8])
def test_results_come_in_the_order_of_the_passes(count: int) -> None:
    assert PassExecutor(count).run(PASSES, lambda worker, shared: shared.width) == [9, 1, 5, 5, 3]


def test_a_pass_goes_to_the_worker_with_least_to_do_whatever_the_timing() -> None:
    executor = PassExecutor(2)
    assert [executor.run(PASSES, lambda worker, shared: worker) for _ in range(3)] == [[0, 1, 1, 1, 0]] * 3


def test_a_worker_is_one_thread_with_its_own_number_of_threads() -> None:
    before = torch.get_num_threads()
    executor = PassExecutor(2, threads=1)
    names = executor.run(PASSES, lambda worker, shared: (threading.current_thread().name, torch.get_num_threads()))
    assert {threads for _, threads in names} == {1}
    assert torch.get_num_threads() == before


def test_a_fault_is_raised_once_all_workers_are_done() -> None:
    finished = threading.Event()

    def compute(worker: int, shared: Pass) -> None:
        if worker == 0:
            raise ZeroDivisionError
        if shared is PASSES[-2]:
            finished.set()

    with pytest.raises(ZeroDivisionError):
        PassExecutor(2).run(PASSES, compute)
    assert finished.is_set()


def test_an_accelerator_has_one_worker() -> None:
    assert workers_for(torch.device("cuda")) == (1, 1)
    count, threads = workers_for(torch.device("cpu"))
    assert 1 <= count * threads <= torch.get_num_threads()
