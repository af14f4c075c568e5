"""The heads of a pack's slots, each with a gradient for every worker."""

from __future__ import annotations

import functools
from collections.abc import Callable, Mapping, Sequence

import torch
from torch import Tensor, nn

from loraxs_search.multiplexed import HeadState, RowSegment
from loraxs_search.packing.slot import Slot


class PackedHeads:
    """Gives rows their slot's head, through leaves on the same memory whose gradients are a worker's own."""

    def __init__(self, slots: Sequence[Slot], num_workers: int) -> None:
        self._slots = slots
        self._leaves = [[_leaves(slot.head) for slot in slots] for _ in range(num_workers)]

    def state(self, name: str, module: nn.Module) -> Callable[[RowSegment[int], int], HeadState]:
        """Return the function that gives `AdaptedHead`, in place of a module of this name, the head of some rows."""
        states = [
            [
                HeadState(module, _within(f"{name}.", {**leaves, **slot.fixed_head}))
                for leaves, slot in zip(worker, self._slots, strict=True)
            ]
            for worker in self._leaves
        ]
        return lambda segment, worker: states[worker][segment.adapter]

    def begin(self) -> None:
        """Clear the gradients."""
        for leaf in (leaf for worker in self._leaves for leaves in worker for leaf in leaves.values()):
            leaf.grad = None

    @torch.no_grad()
    def collect(self) -> None:
        """Set the gradient of every slot's head, summed over the workers in their order; None where no row had it."""
        for i, slot in enumerate(self._slots):
            for name, parameter in slot.head.items():
                grads = [grad for worker in self._leaves if (grad := worker[i][name].grad) is not None]
                parameter.grad = functools.reduce(torch.add, grads) if grads else None


def _leaves(tensors: Mapping[str, Tensor]) -> dict[str, Tensor]:
    return {name: value.detach().requires_grad_() for name, value in tensors.items()}


def _within(prefix: str, tensors: Mapping[str, Tensor]) -> dict[str, Tensor]:
    return {name.removeprefix(prefix): value for name, value in tensors.items() if name.startswith(prefix)}
