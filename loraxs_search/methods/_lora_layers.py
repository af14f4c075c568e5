"""PEFT's LoRA layers as trials use them, unpacked and many in one pass: y_i += s B A x_i for the rows of each slot.

How A and B start, and the whole as plain LoRA.

Letters: n rows of T positions each, r a slot's rank. Slots need nothing of each other, so ranks are not padded: a slot
costs what its own products cost.
"""

from __future__ import annotations

import copy
import math
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass
from math import prod
from typing import cast

import torch
from peft import LoraConfig, PeftModel
from peft.tuners.lora import Linear
from torch import Tensor, nn

from loraxs_search.base_model.layers import matrix
from loraxs_search.engine.layers import LayerRows, RowSegment, SlotRowMap
from loraxs_search.methods._base import PackedAdapter, Sizes
from loraxs_search.methods._plain_lora import Pair, tuner_layers
from loraxs_search.methods.names import ADAPTER, ROOT


def _initial_pairs(config: LoraConfig, sizes: Sizes, seed: int) -> dict[str, Pair]:
    """Draw the A (r, in) and B (out, r) that layers start with, float32 on the CPU, one layer after the other.

    They are what PEFT draws with torch's generator at `seed` for a float32 base that has just these layers adapted.
    """
    with torch.random.fork_rng(devices=[]):
        torch.default_generator.manual_seed(seed)
        return {name: _pair(_layer(_empty(*size), config)) for name, size in sizes.items()}


@torch.no_grad()
def draw_pairs(model: PeftModel, seed: int) -> None:
    """Start A and B of a model's layers in float32: PEFT draws them in the dtype of the base."""
    layers = lora_layers(model)
    sizes = {name: (matrix(base).shape[0], matrix(base).shape[1]) for name, base in _bases(layers).items()}
    for name, pair in _initial_pairs(_config(model), sizes, seed).items():
        for own, drawn in zip(_pair(layers[name]), pair, strict=True):
            own.copy_(drawn)


def lora_layers(model: PeftModel) -> dict[str, Linear]:
    """Return the layers with a LoRA adapter, by full name in the base, in model order."""
    return dict(tuner_layers(model, Linear))


def scaled_pairs(model: PeftModel) -> dict[str, Pair]:
    """Return A, and B times LoRA's scaling, of each layer by full name."""
    return {name: _scaled_pair(layer) for name, layer in lora_layers(model).items()}


# ---- inside ----------------------------------------------------------------------------------------------------------
def _config(model: PeftModel) -> LoraConfig:
    config = model.peft_config[ADAPTER]
    assert isinstance(config, LoraConfig)
    return config


def _layer(base: nn.Module, config: LoraConfig) -> Linear:
    """Put LoRA on one layer that keeps its weight as (out, in), as PEFT does on a model."""
    own = copy.copy(config)
    own.fan_in_fan_out = False
    return Linear(base, ADAPTER, own, r=own.r, lora_alpha=own.lora_alpha)


def _empty(out_features: int, in_features: int) -> nn.Linear:
    """Return a float32 layer without values, for which nothing is drawn."""
    return nn.Linear(in_features, out_features, bias=False, device="meta").to_empty(device="cpu")


def _bases(layers: Mapping[str, Linear]) -> dict[str, nn.Module]:
    return {name: layer.get_base_layer() for name, layer in layers.items()}


def _pair(layer: Linear) -> Pair:
    a, b = (side.get_submodule(ADAPTER).get_parameter("weight") for side in (layer.lora_A, layer.lora_B))
    return a.detach(), b.detach()


def _scaled_pair(layer: Linear) -> Pair:
    a, b = _pair(layer)
    return a, layer.scaling[ADAPTER] * b


class PackedPairs(PackedAdapter):
    """A (r, in) and B (out, r) of every layer, one after the other in one float32 vector, drawn as `attach` draws them.

    Args:
        sizes: Of the adapted layers, in model order, which is the vector's.
    """

    def __init__(self, config: LoraConfig, sizes: Sizes, seed: int, device: torch.device) -> None:
        self.modules = tuple(sizes)
        self.scaling = float(config.lora_alpha / (math.sqrt(config.r) if config.use_rslora else config.r))  # as PEFT's
        self._shapes = {name: ((config.r, size[1]), (size[0], config.r)) for name, size in sizes.items()}
        drawn = _initial_pairs(config, sizes, seed)
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


class _TrainedPairs:
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


class _PackedLayer:
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

    def update(self, module: str) -> _TrainedPairs:
        """Return what is added to the output of one of `modules`."""
        return _TrainedPairs({index: pairs[module] for index, pairs in self._pairs.items() if module in pairs})

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

    def updates(self, adapters: Sequence[PackedAdapter | None]) -> _PackedLayer:
        slots = cast("Sequence[PackedPairs | None]", adapters)  # of one method
        return _PackedLayer(slots, self._linears, self._num_workers)


def _names(module: str) -> tuple[str, str]:
    return f"{ROOT}{module}.lora_A.{ADAPTER}.weight", f"{ROOT}{module}.lora_B.{ADAPTER}.weight"
