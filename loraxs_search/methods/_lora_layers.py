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
from typing import TYPE_CHECKING, cast

import torch
from peft import LoraConfig, PeftModel
from peft.tuners.lora import Linear
from peft.tuners.tuners_utils import BaseTunerLayer
from peft.utils import get_peft_model_state_dict
from torch import Tensor, nn
from transformers import PreTrainedModel

from loraxs_search.base_model.layers import matrix
from loraxs_search.base_model.reading import pooling_of
from loraxs_search.engine.layers import LayerRows, RowSegment, SlotRowMap
from loraxs_search.methods._base import PackedAdapter, PlainLora, Sizes
from loraxs_search.methods.names import ADAPTER, ROOT

if TYPE_CHECKING:
    from loraxs_search.methods._base import Pair


def as_plain_lora(model: PeftModel, pairs: Mapping[str, Pair]) -> PlainLora:
    """Return an adapter's function as LoRA, its trained head included.

    Args:
        pairs: The update of each adapted layer, by full name.
    """
    config = model.active_peft_config
    saved = tuple(config.modules_to_save or ())
    state = get_peft_model_state_dict(model, adapter_name=ADAPTER, save_embedding_layers=False)
    heads = tuple(f"{ROOT}{name}." for name in saved)
    layers = (module for module in model.modules() if isinstance(module, BaseTunerLayer))
    return PlainLora(
        pairs=pairs,
        others={name: tensor.detach().cpu().contiguous() for name, tensor in state.items() if name.startswith(heads)},
        saved=saved,
        task_type=config.task_type,
        fan_in_fan_out=any(getattr(layer, "fan_in_fan_out", False) for layer in layers),
        pooling=pooling_of(cast("PreTrainedModel", model.get_base_model())),
    )


def lora_layers(model: PeftModel) -> dict[str, Linear]:
    """Return the layers with a LoRA adapter, by full name in the base, in model order."""
    return {name.removeprefix(ROOT): layer for name, layer in model.named_modules() if isinstance(layer, Linear)}


def pair_of(layer: Linear) -> Pair:
    """Return a layer's own A and B; the layer's scaling is not in them."""
    a, b = (side.get_submodule(ADAPTER).get_parameter("weight") for side in (layer.lora_A, layer.lora_B))
    return a.detach(), b.detach()


def _initial_pairs(config: LoraConfig, sizes: Sizes, seed: int) -> dict[str, Pair]:
    """Draw the A (r, in) and B (out, r) that layers start with, float32 on the CPU, one layer after the other.

    They are what PEFT draws with torch's generator at `seed` for a float32 base that has just these layers adapted.
    """
    own = copy.copy(config)
    pairs: dict[str, Pair] = {}
    own.fan_in_fan_out = False  # the layers below keep their weight as (out, in)
    with torch.random.fork_rng(devices=[]):
        torch.default_generator.manual_seed(seed)
        for name, (out_features, in_features) in sizes.items():
            empty = nn.Linear(in_features, out_features, bias=False, device="meta").to_empty(device="cpu")
            pairs[name] = pair_of(Linear(empty, ADAPTER, own, r=own.r, lora_alpha=own.lora_alpha))
    return pairs


@torch.no_grad()
def draw_pairs(model: PeftModel, config: LoraConfig, seed: int) -> None:
    """Start A and B of a model's layers in float32: PEFT draws them in the dtype of the base."""
    layers = lora_layers(model)
    weights = {name: matrix(layer.get_base_layer()) for name, layer in layers.items()}
    sizes = {name: (weight.shape[0], weight.shape[1]) for name, weight in weights.items()}
    for name, pair in _initial_pairs(config, sizes, seed).items():
        for own, drawn in zip(pair_of(layers[name]), pair, strict=True):
            own.copy_(drawn)


# ---- packed ----------------------------------------------------------------------------------------------------------
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
        self.tensors = [self.vector.requires_grad_()]

    def pairs(self, vector: Tensor) -> dict[str, Pair]:
        """View a vector like the slot's as A and B of each layer."""
        shapes = [shape for pair in self._shapes.values() for shape in pair]
        sides = [side.view(s) for side, s in zip(torch.split(vector, [prod(s) for s in shapes]), shapes, strict=True)]
        return dict(zip(self.modules, zip(sides[::2], sides[1::2], strict=True), strict=True))

    def named(self, values: Sequence[Tensor]) -> dict[str, Tensor]:
        (vector,) = values
        named = {}
        for module, pair in self.pairs(vector).items():
            for side, value in zip("AB", pair, strict=True):
                named[f"{ROOT}{module}.lora_{side}.{ADAPTER}.weight"] = value
        return named


@dataclass(frozen=True)
class _SlotPair:
    """A and B of one slot on one layer, in the dtype of the base, with each worker's float32 gradients of both."""

    a: Tensor
    b: Tensor
    scaling: float
    grads: Sequence[Pair]


class _TrainedPairs:
    """What the slots of a pack add to one layer; a `LayerUpdate`.

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
        slots: `PackedPairs`, and None for slots of other methods.
        linears: The base's linear layers, by full name.
        num_workers: Passes that may be computed at the same time.
    """

    def __init__(
        self, slots: Sequence[PackedAdapter | None], linears: Mapping[str, nn.Module], num_workers: int
    ) -> None:
        own = cast("Sequence[PackedPairs | None]", slots)  # of one method
        self._own = {index: slot for index, slot in enumerate(own) if slot is not None}
        self.modules = [name for name in linears if any(name in slot.modules for slot in self._own.values())]
        self._dtype = linears[self.modules[0]].get_parameter("weight").dtype
        self._grads, self._values = dict[int, Tensor](), dict[int, Tensor]()
        self._pairs: dict[int, dict[str, _SlotPair]] = {}
        for index, slot in self._own.items():
            self._grads[index] = torch.zeros(num_workers, len(slot.vector), device=slot.vector.device)
            grads = [slot.pairs(vector) for vector in self._grads[index]]
            # In the base's dtype; the slot's own numbers where that is float32.
            self._values[index] = slot.vector.detach().to(self._dtype)
            self._pairs[index] = {
                module: _SlotPair(a, b, slot.scaling, [pairs[module] for pairs in grads])
                for module, (a, b) in slot.pairs(self._values[index]).items()
            }

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
