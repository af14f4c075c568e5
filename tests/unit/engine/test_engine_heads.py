"""A head gives each row the output of its adapter's own weights."""

from __future__ import annotations

import threading
import time

import pytest
import torch
from torch import Tensor, nn

from loraxs_search.engine.layers import AdaptedHead, HeadState
from loraxs_search.engine.rows import PassContext, RowMap, RowSegment

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
    context: PassContext[RowMap[HeadState]] = PassContext()
    head = AdaptedHead(deep(2), context, lambda segment, worker: segment.adapter)
    with context.computing(RowMap(segments)):
        return head(x)


@pytest.mark.parametrize("make", [lambda labels: nn.Linear(WIDTH, labels), deep], ids=["linear", "deep"])
@pytest.mark.parametrize("shape", [(WIDTH,), (4, WIDTH)])
def test_rows_go_through_their_own_weights(make, shape) -> None:
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


@pytest.mark.parametrize("kept", ["weight", "bias"])
@pytest.mark.parametrize("per_row", [False, True])
def test_what_is_not_given_is_the_modules_own(kept, per_row) -> None:
    module = nn.Linear(WIDTH, 2)
    own = {name: value for name, value in drawn(module, rows=3 if per_row else None).items() if name != kept}
    x = torch.randn(3, WIDTH)
    y = through([(HeadState(module, own, per_row), 3)], x)
    for i in range(3):
        row = {name: value[i] if per_row else value for name, value in own.items()}
        torch.testing.assert_close(y[i], alone(module, row, x[i]))


def test_a_head_is_float32_whatever_enters() -> None:
    module = deep(2)
    x = torch.randn(3, WIDTH).bfloat16()
    y = through([(HeadState(module, drawn(module)), 3)], x)
    assert y.dtype == torch.float32


class Patient(nn.Module):
    """Reads its weights once all threads have come to the head."""

    def __init__(self, threads: int) -> None:
        super().__init__()
        self.inner, self.arrived = nn.Linear(WIDTH, 2), threading.Barrier(threads)

    def forward(self, x: Tensor) -> Tensor:
        for _ in range(1000):  # whoever could come in now does
            time.sleep(0)
        return self.inner(x)


def test_threads_do_not_see_each_others_weights() -> None:
    """`functional_call` puts values into a module that all threads share."""
    num = 3
    module, context = Patient(num), PassContext()
    heads = [drawn(module) for _ in range(num)]

    def state(segment: RowSegment[int], worker: int) -> HeadState:
        module.arrived.wait(30)
        return HeadState(module, heads[worker])

    head, x, outputs = AdaptedHead(module, context, state), torch.randn(5, WIDTH), {}

    def compute(worker: int) -> None:
        with torch.no_grad(), context.computing(RowMap([RowSegment(0, 0, 5)]), worker):
            outputs[worker] = head(x)

    threads = [threading.Thread(target=compute, args=(worker,)) for worker in range(num)]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    for worker, own in enumerate(heads):
        torch.testing.assert_close(outputs[worker], alone(module, own, x))
