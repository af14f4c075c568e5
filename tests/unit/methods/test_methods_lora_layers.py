"""What slots of LoRA add to a layer, and its gradients, against autograd."""

from __future__ import annotations

from typing import Any

import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from torch import nn

from loraxs_search.engine.layers import RowMap, RowSegment
from loraxs_search.methods import get_method
from loraxs_search.methods._base import PackedAdapter
from loraxs_search.records.trial import Hyperparameters

CPU = torch.device("cpu")
SIZES = {"q": (5, 8), "v": (8, 5)}  # (out, in)
NUM_WORKERS = 2


def adapter(rank: int, seed: int, modules: tuple[str, ...] = ("q", "v"), **own) -> PackedAdapter:
    method = get_method("lora")
    hyper = Hyperparameters(modules, 1e-3, 1e-3, seed=seed, method="lora", **method.fields({"rank": rank, **own}, {}))
    made = method.packed_adapter(hyper, {name: linears()[name] for name in modules}, None, CPU)
    with torch.no_grad():  # B starts at zero
        made.vector.copy_(torch.randn(made.vector.shape, generator=torch.Generator().manual_seed(seed)))
    return made


def linears(dtype: torch.dtype = torch.float32) -> dict[str, nn.Module]:
    return {name: nn.Linear(size[1], size[0], dtype=dtype).requires_grad_(False) for name, size in SIZES.items()}


def pack(slots: list[Any], dtype: torch.dtype = torch.float32) -> Any:
    return get_method("lora").packed_updates(linears(dtype), None, NUM_WORKERS)(slots)


def segments(lengths: list[tuple[int, int]]) -> list[RowSegment]:
    """Lay rows of slots side by side: (slot, rows) of each."""
    made, start = [], 0
    for slot, count in lengths:
        made.append(RowSegment(slot, start, start + count))
        start += count
    return made


@settings(max_examples=40, deadline=None)
@given(
    ranks=st.lists(st.integers(1, 4), min_size=1, max_size=3),
    passes=st.lists(st.lists(st.integers(1, 3), min_size=4, max_size=4), min_size=1, max_size=3),
    positions=st.integers(1, 3),
    rslora=st.booleans(),
    needs_dx=st.booleans(),
)
def test_updates_and_gradients_are_those_of_autograd(ranks, passes, positions, rslora, needs_dx):
    slots = [adapter(r, seed, ("q",) if seed == 1 else ("q", "v"), rslora=rslora) for seed, r in enumerate(ranks)]
    packed = pack([*slots, None])  # the last slot is of another method
    copies = [slot.vector.detach().clone().requires_grad_() for slot in slots]
    packed.begin()
    draw = torch.Generator().manual_seed(7)
    for number, counts in enumerate(passes):
        rows = segments([(slot, count) for slot, count in zip([*range(len(slots)), len(slots)], counts, strict=False)])
        row_map = RowMap(rows, CPU, number % NUM_WORKERS)
        for module in packed.modules:
            update = packed.update(module)
            x = torch.randn(rows[-1].stop * positions, SIZES[module][1], generator=draw).requires_grad_()
            dy = torch.randn(len(x), SIZES[module][0], generator=draw)
            y, dx = torch.zeros_like(dy), torch.zeros_like(x) if needs_dx else None
            with torch.no_grad():
                update.backward_(dy, dx, update.add_(x, y, row_map), row_map)
            expected = torch.zeros_like(dy)
            for slot, copy, own in zip(slots, copies, rows, strict=False):
                if module in slot.modules:
                    a, b = slot.pairs(copy)[module]
                    at = row_map.positions(x, own.start, own.stop)
                    expected[at] = slot.scaling * x[at] @ a.T @ b.T
            torch.testing.assert_close(y, expected.detach())
            if expected.requires_grad:
                expected.backward(dy)
            if dx is not None and x.grad is not None:
                torch.testing.assert_close(dx, x.grad)
    packed.collect()
    for slot, copy in zip(slots, copies, strict=True):
        torch.testing.assert_close(slot.vector.grad, copy.grad, rtol=1e-4, atol=1e-5)


def test_gradients_begin_anew_and_are_summed_in_float32_on_a_rounded_base():
    slot = adapter(2, 3)
    packed = pack([slot], torch.bfloat16)
    rows, update = RowMap(segments([(0, 2)]), CPU, 1), packed.update("q")
    x, dy = torch.ones(6, 8, dtype=torch.bfloat16), torch.ones(6, 5, dtype=torch.bfloat16)
    for _ in range(2):
        packed.begin()
        update.backward_(dy, None, update.add_(x, torch.zeros_like(dy), rows), rows)
        assert not packed._grads[0][0].any(), "another worker's, which may be computing now"
        packed.collect()
    a, b = slot.pairs(slot.vector.detach())["q"]
    grad_a, grad_b = slot.pairs(slot.vector.grad)["q"]
    assert grad_a.dtype == torch.float32
    torch.testing.assert_close(grad_a, 6 * b.sum(0)[:, None].expand(2, 8), rtol=0.02, atol=0.05)
    torch.testing.assert_close(grad_b, 6 * a.sum(1).expand(5, 2), rtol=0.02, atol=0.05)
