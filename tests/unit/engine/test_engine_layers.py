"""Layers and heads that give each row its own adapter compute what each adapter alone computes."""

from __future__ import annotations

import itertools
import threading
import time
from collections.abc import Sequence
from concurrent.futures import ThreadPoolExecutor

import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st
from torch import Tensor, nn
from transformers.pytorch_utils import Conv1D

from loraxs_search.engine.layers import AdaptedHead, AdaptedLinear, HeadState, PassContext, RowMap, RowSegment
from loraxs_search.methods.loraxs import packed
from loraxs_search.methods.loraxs.packed import _FactorPair, _TrainedCores

CPU = torch.device("cpu")
IN, OUT, RANK, SLOTS, WORKERS = 5, 3, 2, 4, 2


class Cores(_TrainedCores):
    """What LoRA-XS adds, in float64: y_i += B C_k A x_i for the rows of slot k; A and B are frozen, C trained."""

    def __init__(self, seed: int, slots: Sequence[int]) -> None:
        draw = torch.Generator().manual_seed(seed)
        a, b_t, cores = (
            torch.randn(*shape, generator=draw, dtype=torch.float64)
            for shape in ((RANK, IN), (RANK, OUT), (SLOTS, RANK, RANK))
        )
        self.grads, self.pair = torch.zeros(WORKERS, SLOTS, RANK, RANK, dtype=torch.float64), _FactorPair(a, b_t)
        self.labels = tuple(0 if slot in slots else None for slot in range(SLOTS))
        super().__init__(cores, self.grads, [self.pair], self.labels)

    def row(self, x: Tensor, slot: int, cores: Tensor) -> Tensor:
        return x @ self.pair.a.T @ cores[slot].T @ self.pair.b_t if self.labels[slot] == 0 else torch.zeros(())


def a_layer(kind: str) -> nn.Module:
    layer = nn.Linear(IN, OUT) if kind == "linear" else Conv1D(OUT, IN)
    return layer.double().requires_grad_(False)


def row_map(slots: Sequence[int], worker: int = 0) -> RowMap:
    return RowMap([RowSegment(slot, row, row + 1) for row, slot in enumerate(slots)], CPU, worker)


@given(
    st.lists(st.tuples(st.integers(0, 5), st.integers(1, 4)), min_size=1, max_size=12),
    st.lists(st.none() | st.integers(0, 2), min_size=6, max_size=6),
)
def test_runs_are_a_partition_of_the_adapted_rows(slots_and_sizes, labels):
    edges = [0, *itertools.accumulate(size for _, size in slots_and_sizes)]
    rows = RowMap([RowSegment(slot, edges[i], edges[i + 1]) for i, (slot, _) in enumerate(slots_and_sizes)], CPU)
    slot_of_row = [slot for slot, size in slots_and_sizes for _ in range(size)]
    assert rows.num_rows == len(slot_of_row)
    found = [(run.start, run.stop, run.label, run.slots.tolist()) for run in rows.runs(tuple(labels))]
    covered = {row: (slot, label) for start, _, label, slots in found for row, slot in enumerate(slots, start)}
    assert covered == {r: (s, labels[s]) for r, s in enumerate(slot_of_row) if labels[s] is not None}
    assert sum(stop - start for start, stop, _, _ in found) == len(covered)  # no row twice
    assert all(
        a[1] <= b[0] and (a[1] < b[0] or a[2] != b[2]) for a, b in itertools.pairwise(found)
    )  # as long as they can be


slots_of_rows = st.lists(st.integers(0, SLOTS - 1), min_size=1, max_size=6)
slots_of_update = st.lists(st.integers(0, SLOTS - 1), max_size=SLOTS)


@pytest.mark.parametrize("kind", ["linear", "conv1d"])
@given(slots_of_rows, slots_of_update, slots_of_update, st.sampled_from([(), (1,), (3,), (2, 2)]), st.booleans())
def test_rows_and_gradients_are_those_of_each_row_alone(kind, slots, first, second, positions, many):
    """The sum of two updates, by slots of their own, at any number of positions; in two passes of two workers.

    Few rows are computed by every core at once, many slot by slot; a slot that has diverged harms no other.
    """
    base, context = a_layer(kind), PassContext()
    updates = [Cores(1, first), Cores(2, second)]
    for update in updates:
        update.cores[list({*range(SLOTS)} - {*slots})] = torch.nan
    layer = AdaptedLinear(base, context, updates)
    cores = [update.cores.clone().requires_grad_() for update in updates]
    with pytest.MonkeyPatch.context() as patch:
        if many:
            patch.setattr(packed, "_MOST_BY_EVERY_CORE", 0)
        for worker in range(WORKERS):
            x = torch.randn(len(slots), *positions, IN, dtype=torch.float64, requires_grad=True)
            x_alone = x.detach().clone().requires_grad_()
            with context.computing(row_map(slots, worker)):
                y = layer(x)
            rows = zip(x_alone, slots, strict=True)
            expected = torch.stack(
                [
                    base(row) + sum(u.row(row, slot, own) for u, own in zip(updates, cores, strict=True))
                    for row, slot in rows
                ]
            )
            torch.testing.assert_close(y, expected)
            with torch.inference_mode(), context.computing(row_map(slots, worker)):
                torch.testing.assert_close(layer(x.detach()), y.detach())
            weights = torch.randn_like(expected)
            (y * weights).sum().backward()
            (expected * weights).sum().backward()
            torch.testing.assert_close(x.grad, x_alone.grad)
        for update, own in zip(updates, cores, strict=True):
            expected = torch.zeros_like(own) if own.grad is None else own.grad
            torch.testing.assert_close(update.grads.sum(0), expected)


def test_a_graph_is_built_where_an_update_is_trained_and_nowhere_else_and_without_x():
    """Only what an update asks for is kept for backward: here `RANK` numbers a position."""
    context, update, kept = PassContext(), Cores(1, [0]), []
    layer = AdaptedLinear(a_layer("linear"), context, [update])
    assert layer.weight is layer.base_layer.weight
    assert set(dict(layer.named_parameters())) == {"base_layer.weight", "base_layer.bias"}
    x = torch.randn(2, 7, IN, dtype=torch.float64)
    with context.computing(row_map([0, 1])):
        layer(x).sum().backward()  # nothing that enters needs a gradient
    assert update.grads[0, 0].all() and not update.grads[0, 1:].any()
    with context.computing(row_map([1, 2])):
        assert not layer(x).requires_grad
    with (
        torch.autograd.graph.saved_tensors_hooks(lambda t: kept.append(t.shape) or t, lambda t: t),
        context.computing(row_map([0, 0])),
    ):
        layer(x.requires_grad_())
    assert [shape.numel() for shape in kept] == [14 * RANK]


WIDTH = 6


def deep(num_labels: int) -> nn.Module:
    return nn.Sequential(nn.Linear(WIDTH, WIDTH), nn.Tanh(), nn.Linear(WIDTH, num_labels))


def drawn(module: nn.Module, rows: int | None = None) -> dict[str, Tensor]:
    """Other values for all parameters, with `rows` first if given."""
    first = () if rows is None else (rows,)
    return {name: torch.randn(*first, *value.shape) for name, value in module.named_parameters()}


def alone(module: nn.Module, parameters: dict[str, Tensor], x: Tensor) -> Tensor:
    with torch.no_grad():
        return torch.func.functional_call(module, parameters, (x,))


def through(states: list[tuple[HeadState, int]], x: Tensor) -> Tensor:
    """Send rows through a head; states come with their number of rows."""
    segments, start = [], 0
    for state, rows in states:
        segments.append(RowSegment(state, start, start + rows))
        start += rows
    context: PassContext = PassContext()
    head = AdaptedHead(deep(2), context, lambda segment, worker: segment.adapter)
    with context.computing(RowMap(segments, CPU)):
        return head(x)


@pytest.mark.parametrize(
    ("make", "shape"),
    [
        (lambda labels: nn.Linear(WIDTH, labels), (WIDTH,)),
        (lambda labels: nn.Linear(WIDTH, labels), (4, WIDTH)),
        (deep, (4, WIDTH)),
    ],
    ids=["linear", "positions", "deep"],
)
def test_rows_go_through_their_own_weights(make, shape):
    """Shared by a segment's rows, each row's own, and the module's as they are; widths differ."""
    two, five, plain = make(2), make(5), make(3)
    shared, each = drawn(two), drawn(five, rows=3)
    x = torch.randn(7, *shape)
    y = through([(HeadState(two, shared), 2), (HeadState(five, each, per_row=True), 3), (HeadState(plain, {}), 2)], x)
    assert y.shape == (7, *shape[:-1], 5)
    torch.testing.assert_close(y[:2, ..., :2], alone(two, shared, x[:2]))
    for i in range(3):
        own = {name: value[i] for name, value in each.items()}
        torch.testing.assert_close(y[2 + i], alone(five, own, x[2 + i]))
    torch.testing.assert_close(y[5:, ..., :3], alone(plain, {}, x[5:]))
    assert not y[:2, ..., 2:].any()
    assert not y[5:, ..., 3:].any()


def test_what_is_not_given_is_the_modules_own_and_a_head_is_float32():
    module, x = nn.Linear(WIDTH, 2), torch.randn(3, WIDTH)
    for kept, per_row in itertools.product(("weight", "bias"), (False, True)):
        own = {name: value for name, value in drawn(module, rows=3 if per_row else None).items() if name != kept}
        y = through([(HeadState(module, own, per_row), 3)], x)
        for i in range(3):
            row = {name: value[i] if per_row else value for name, value in own.items()}
            torch.testing.assert_close(y[i], alone(module, row, x[i]))
    assert through([(HeadState(deep(2), drawn(deep(2))), 3)], x.bfloat16()).dtype == torch.float32


class Patient(nn.Linear):
    """Lets whoever could come in meanwhile do so."""

    def forward(self, x: Tensor) -> Tensor:
        for _ in range(1000):
            time.sleep(0)
        return super().forward(x)


def test_threads_do_not_see_each_others_weights_and_nothing_stays_of_a_pass_that_fails():
    """`functional_call` puts values into a module that all threads share."""
    num = 3
    module, context, arrived = Patient(WIDTH, 2), PassContext(), threading.Barrier(num)
    heads = [drawn(module) for _ in range(num)]

    def state(segment: RowSegment, worker: int) -> HeadState:
        arrived.wait(30)
        return HeadState(module, heads[worker])

    head, x = AdaptedHead(module, context, state), torch.randn(5, WIDTH)

    def compute(worker: int) -> Tensor:
        with torch.no_grad(), context.computing(RowMap([RowSegment(0, 0, 5)], CPU, worker)):
            return head(x)

    with ThreadPoolExecutor(num) as pool:
        outputs = list(pool.map(compute, range(num)))  # all of them: until then the module is not ours alone
    for output, own in zip(outputs, heads, strict=True):
        torch.testing.assert_close(output, alone(module, own, x))
    with pytest.raises(ZeroDivisionError), context.computing(row_map([0])):
        raise ZeroDivisionError
    assert context.row_map is None
