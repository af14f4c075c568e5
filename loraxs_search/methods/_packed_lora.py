"""LoRA for many trials in one pass: y_i += s B A x_i for the rows of each slot, A and B being the slot's own.

Letters: n rows of T positions each, r a slot's rank. Slots need nothing of each other, so ranks are not padded: a slot
costs what its own products cost.
"""

from __future__ import annotations

from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass
from math import prod
from typing import TYPE_CHECKING

import torch
from torch import Tensor, nn

from loraxs_search.engine.layers import LayerRows
from loraxs_search.engine.rows import RowSegment, SlotRowMap
from loraxs_search.methods._base import PackedAdapter, Sizes
from loraxs_search.methods._names import ADAPTER, ROOT
from loraxs_search.methods._plain_lora import Pair
from loraxs_search.methods._trained_lora import initial_pairs, scaling_of

if TYPE_CHECKING:
    from peft import LoraConfig


class PackedPairs(PackedAdapter):
    """A (r, in) and B (out, r) of every layer, one after the other in one float32 vector, drawn as `attach` draws them.

    Args:
        sizes: Of the adapted layers, in model order, which is the vector's.
    """

    def __init__(self, config: LoraConfig, sizes: Sizes, seed: int, device: torch.device) -> None:
        self.modules, self.scaling = tuple(sizes), scaling_of(config)
        self._shapes = {name: ((config.r, size[1]), (size[0], config.r)) for name, size in sizes.items()}
        drawn = initial_pairs(config, sizes, seed)
        self.vector = torch.cat([side.flatten() for pair in drawn.values() for side in pair]).to(device)
        self.vector.requires_grad_()

    @property
    def tensors(self) -> list[Tensor]:
        return [self.vector]

    def pairs(self, vector: Tensor) -> dict[str, Pair]:
        """View a vector like the slot's as A and B of each layer."""
        shapes = [shape for pair in self._shapes.values() for shape in pair]
        sides = [side.view(s) for side, s in zip(torch.split(vector, [prod(s) for s in shapes]), shapes, strict=True)]
        return dict(zip(self.modules, zip(sides[::2], sides[1::2], strict=True), strict=True))

    def named(self, values: Sequence[Tensor]) -> dict[str, Tensor]:
        (vector,) = values
        pairs = self.pairs(vector)
        return {name: side for module in self.modules for name, side in zip(_names(module), pairs[module], strict=True)}

    def stacked(self, named: Mapping[str, Tensor]) -> list[Tensor]:
        return [torch.cat([named[name].flatten() for module in self.modules for name in _names(module)])]


@dataclass(frozen=True)
class _SlotPair:
    """A and B of one slot on one layer, in the dtype of the base, with each worker's float32 gradients of both."""

    a: Tensor
    b: Tensor
    scaling: float
    grads: Sequence[Pair]


class TrainedPairs:
    """What the slots of a pack add to one layer; a `TrainableUpdate`.

    Args:
        pairs: By the index of the slots that adapt this layer.
    """

    def __init__(self, pairs: Mapping[int, _SlotPair]) -> None:
        self._pairs = pairs

    def adapts(self, row_map: SlotRowMap) -> bool:
        return any(segment.adapter in self._pairs for segment in row_map.segments)

    def add_(self, x: Tensor, y: Tensor, rows: LayerRows[SlotRowMap]) -> list[Tensor]:
        saved = [x]  # the gradient of A needs it
        for segment, pair in self._own(rows):
            at = rows.positions(segment.start, segment.stop)
            z = torch.mm(x[at], pair.a.T)  # (n T, r)
            y[at].addmm_(z, pair.b.T, alpha=pair.scaling)
            saved.append(z)
        return saved

    def backward_(self, dy: Tensor, dx: Tensor | None, saved: Sequence[Tensor], rows: LayerRows[SlotRowMap]) -> None:
        x, *products = saved
        for (segment, pair), z in zip(self._own(rows), products, strict=True):
            at, (grad_a, grad_b) = rows.positions(segment.start, segment.stop), pair.grads[rows.worker]
            g = torch.mm(dy[at], pair.b).mul_(pair.scaling)  # (n T, r)
            _add_product_(grad_b, dy[at].T, z.mul(pair.scaling))
            _add_product_(grad_a, g.T, x[at])
            if dx is not None:
                dx[at].addmm_(g, pair.a)

    def _own(self, rows: LayerRows[SlotRowMap]) -> Iterator[tuple[RowSegment[int], _SlotPair]]:
        for segment in rows.row_map.segments:
            if (pair := self._pairs.get(segment.adapter)) is not None:
                yield segment, pair


def _add_product_(total: Tensor, left: Tensor, right: Tensor) -> None:
    """Add left @ right to a float32 sum, in place."""
    if left.dtype == total.dtype:
        total.addmm_(left, right)
    else:
        total += torch.mm(left, right)


class PackedLora:
    """A and B of every slot in the dtype that passes compute with, and their gradients: the `SlotUpdates` of LoRA.

    Args:
        slots: None for those of other methods.
        linears: The base's linear layers, by full name.
        num_workers: Passes that may be computed at the same time.
    """

    def __init__(self, slots: Sequence[PackedPairs | None], linears: Mapping[str, nn.Module], num_workers: int) -> None:
        self._own = {index: slot for index, slot in enumerate(slots) if slot is not None}
        self.modules = [name for name in linears if any(name in slot.modules for slot in self._own.values())]
        self._dtype = linears[self.modules[0]].get_parameter("weight").dtype
        self._grads = {
            index: torch.zeros(num_workers, len(slot.vector), device=slot.vector.device)
            for index, slot in self._own.items()
        }
        # In the base's dtype; the slot's own numbers where that is float32.
        self._values = {index: slot.vector.detach().to(self._dtype) for index, slot in self._own.items()}
        self._pairs = {index: self._pairs_of(index) for index in self._own}

    @property
    def slot_bytes(self) -> int:
        """Memory of the largest slot: the gradients of each worker, and a copy in the base's dtype."""
        return max(
            self._grads[index].nbytes + (self._values[index].nbytes if self._dtype != torch.float32 else 0)
            for index in self._own
        )

    def update(self, module: str) -> TrainedPairs:
        """Return what is added to the output of one of `modules`."""
        return TrainedPairs({index: pairs[module] for index, pairs in self._pairs.items() if module in pairs})

    @torch.no_grad()
    def begin(self) -> None:
        """Read every slot's current A and B, and set gradients to zero."""
        for index, slot in self._own.items():
            self._grads[index].zero_()
            if self._dtype != torch.float32:
                self._values[index].copy_(slot.vector)

    @torch.no_grad()
    def collect(self) -> None:
        """Set the gradient of every slot, summed over the workers in their order."""
        for index, slot in self._own.items():
            first, *others = self._grads[index]
            for grad in others:
                first += grad
            slot.vector.grad = first

    def _pairs_of(self, index: int) -> dict[str, _SlotPair]:
        slot = self._own[index]
        grads = [slot.pairs(vector) for vector in self._grads[index]]
        return {
            module: _SlotPair(a, b, slot.scaling, [pairs[module] for pairs in grads])
            for module, (a, b) in slot.pairs(self._values[index]).items()
        }


class LoraBase:
    """A base on which slots of LoRA are packed; it keeps nothing from one company of trials to the next."""

    def __init__(self, linears: Mapping[str, nn.Module], num_workers: int) -> None:
        self._linears, self._num_workers = linears, num_workers

    def updates(self, adapters: Sequence[PackedAdapter | None]) -> PackedLora:
        slots: list[PackedPairs | None] = []
        for adapter in adapters:
            assert adapter is None or isinstance(adapter, PackedPairs)
            slots.append(adapter)
        return PackedLora(slots, self._linears, self._num_workers)


def _names(module: str) -> tuple[str, str]:
    return f"{ROOT}{module}.lora_A.{ADAPTER}.weight", f"{ROOT}{module}.lora_B.{ADAPTER}.weight"
