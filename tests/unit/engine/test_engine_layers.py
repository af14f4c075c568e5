"""A layer that serves many adapters computes what each row's adapter computes alone, and its gradients."""

from __future__ import annotations

from collections.abc import Sequence

import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st
from torch import Tensor, nn
from transformers.pytorch_utils import Conv1D

from loraxs_search.engine.layers import AdaptedLinear, LayerRows, TrainedLinear
from loraxs_search.engine.rows import PassContext, RowSegment, SlotRowMap

CPU = torch.device("cpu")
IN, OUT, SLOTS, WORKERS = 5, 3, 4, 2


class Gain:
    """The simplest update there is: y_i += g_k (x_i V) for the rows of slot k; V is frozen, g trained."""

    def __init__(self, seed: int, slots: Sequence[int]) -> None:
        draw = torch.Generator().manual_seed(seed)
        self.v = torch.randn(IN, OUT, generator=draw, dtype=torch.float64)
        self.g = torch.randn(SLOTS, generator=draw, dtype=torch.float64)
        self.grads = torch.zeros(WORKERS, SLOTS, dtype=torch.float64)
        self.labels = tuple(0 if slot in slots else None for slot in range(SLOTS))

    def adapts(self, row_map: SlotRowMap) -> bool:
        return bool(row_map.runs(self.labels))

    def add_(self, x: Tensor, y: Tensor, rows: LayerRows[SlotRowMap]) -> list[Tensor]:
        saved = []
        for run in rows.row_map.runs(self.labels):
            at = rows.positions(run.start, run.stop)
            z = x[at] @ self.v
            y[at] += self._gains(run.slots, rows) * z
            saved.append(z)
        return saved

    def backward_(self, dy: Tensor, dx: Tensor | None, saved: Sequence[Tensor], rows: LayerRows[SlotRowMap]) -> None:
        for run, z in zip(rows.row_map.runs(self.labels), saved, strict=True):
            at = rows.positions(run.start, run.stop)
            slots = run.slots.repeat_interleave(rows.num_positions)
            self.grads[rows.worker].index_add_(0, slots, (dy[at] * z).sum(-1))
            if dx is not None:
                dx[at] += self._gains(run.slots, rows) * dy[at] @ self.v.T

    def row(self, x: Tensor, slot: int, g: Tensor) -> Tensor:
        return g[slot] * (x @ self.v) if self.labels[slot] == 0 else torch.zeros(())

    def _gains(self, slots: Tensor, rows: LayerRows[SlotRowMap]) -> Tensor:
        return self.g[slots].repeat_interleave(rows.num_positions)[:, None]


def a_layer(kind: str) -> nn.Module:
    layer = nn.Linear(IN, OUT) if kind == "linear" else Conv1D(OUT, IN)
    return layer.double().requires_grad_(False)


def row_map(slots: Sequence[int]) -> SlotRowMap:
    return SlotRowMap([RowSegment(slot, row, row + 1) for row, slot in enumerate(slots)], CPU)


slots_of_rows = st.lists(st.integers(0, SLOTS - 1), min_size=1, max_size=6)
slots_of_update = st.lists(st.integers(0, SLOTS - 1), max_size=SLOTS)


@pytest.mark.parametrize("kind", ["linear", "conv1d"])
@given(slots_of_rows, slots_of_update, slots_of_update, st.sampled_from([(), (1,), (3,), (2, 2)]))
def test_rows_and_gradients_are_those_of_each_row_alone(kind, slots, first, second, positions) -> None:
    """The sum of two updates, by slots of their own, at any number of positions; in two passes of two workers."""
    base, context = a_layer(kind), PassContext()
    updates = [Gain(1, first), Gain(2, second)]
    layer = TrainedLinear(base, context, updates)
    gains = [update.g.clone().requires_grad_() for update in updates]
    for worker in range(WORKERS):
        x = torch.randn(len(slots), *positions, IN, dtype=torch.float64, requires_grad=True)
        x_alone = x.detach().clone().requires_grad_()
        with context.computing(row_map(slots), worker):
            y = layer(x)
        rows = zip(x_alone, slots, strict=True)
        expected = torch.stack(
            [base(row) + sum(u.row(row, slot, g) for u, g in zip(updates, gains, strict=True)) for row, slot in rows]
        )
        torch.testing.assert_close(y, expected)
        weights = torch.randn_like(expected)
        (y * weights).sum().backward()
        (expected * weights).sum().backward()
        torch.testing.assert_close(x.grad, x_alone.grad)
    for update, gain in zip(updates, gains, strict=True):
        torch.testing.assert_close(update.grads.sum(0), torch.zeros(SLOTS).double() if gain.grad is None else gain.grad)


@given(slots_of_rows, slots_of_update)
def test_without_gradients_both_layers_compute_the_same(slots, adapted) -> None:
    base, context, update = a_layer("linear"), PassContext(), Gain(1, adapted)
    x = torch.randn(len(slots), 2, IN, dtype=torch.float64)
    with torch.inference_mode(), context.computing(row_map(slots)):
        y = AdaptedLinear(base, context, [update])(x)
        assert torch.equal(y, TrainedLinear(base, context, [update])(x))
        expected = [base(row) + update.row(row, slot, update.g) for row, slot in zip(x, slots, strict=True)]
    torch.testing.assert_close(y, torch.stack(expected))


def test_an_update_is_trained_where_nothing_that_enters_needs_a_gradient() -> None:
    context, update = PassContext(), Gain(1, [0])
    layer = TrainedLinear(a_layer("linear"), context, [update])
    with context.computing(row_map([0, 1])):
        layer(torch.randn(2, IN, dtype=torch.float64)).sum().backward()
    assert update.grads[0].count_nonzero() == 1


def test_rows_that_nothing_adapts_build_no_graph() -> None:
    context = PassContext()
    layer = TrainedLinear(a_layer("linear"), context, [Gain(1, [0])])
    with context.computing(row_map([1, 2])):
        assert not layer(torch.randn(2, IN, dtype=torch.float64)).requires_grad


def test_x_is_not_kept_for_backward() -> None:
    """Only what an update asks for is: here two numbers a position."""
    context, kept = PassContext(), []
    layer = TrainedLinear(a_layer("linear"), context, [Gain(1, [0])])
    x = torch.randn(2, 7, IN, dtype=torch.float64, requires_grad=True)
    with (
        torch.autograd.graph.saved_tensors_hooks(lambda t: kept.append(t.shape) or t, lambda t: t),
        context.computing(row_map([0, 0])),
    ):
        layer(x)
    assert kept == [(14, OUT)]


def test_the_base_keeps_its_parameters_and_no_other() -> None:
    base = a_layer("linear")
    layer = TrainedLinear(base, PassContext(), [Gain(1, [0])])
    assert layer.weight is base.weight
    assert dict(layer.named_parameters()) == {"base_layer.weight": base.weight, "base_layer.bias": base.bias}
