"""Plain LoRA as a method: PEFT's own tuner. Read without torch or PEFT.

Many trials share a pass: y_i += s B A x_i for the rows of each slot. Letters: n rows of T positions each, r a slot's
rank. Slots need nothing of each other, so ranks are not padded: a slot costs what its own products cost.
"""

from __future__ import annotations

import copy
from collections.abc import Iterator, Mapping, Sequence
from math import prod
from types import MappingProxyType
from typing import TYPE_CHECKING, Any, ClassVar, cast

from loraxs_search.methods._base import (
    ADAPTER,
    NO_ALPHA,
    ROOT,
    HeadPlan,
    Modules,
    PackedAdapter,
    Params,
    Possible,
    Shapes,
    Sizes,
    check_ranks,
)
from loraxs_search.methods._peft import PeftMethod
from loraxs_search.plugins import ParameterSpec
from loraxs_search.records.codec import Scalar
from loraxs_search.records.trial import Hyperparameters

if TYPE_CHECKING:
    import torch
    from peft import LoraConfig, PeftConfig, PeftModel
    from peft.tuners.lora import Linear
    from torch import Tensor, nn
    from transformers import PreTrainedModel

    from loraxs_search.engine.layers import RowMap, RowSegment
    from loraxs_search.factors.store import FactorStore
    from loraxs_search.methods._base import Linears, Packing, Pair, PlainLora


_STORED = "loraxs_stored_dtype"  # of a config in memory: PEFT's has no such field, and its file needs none


class Lora(PeftMethod):
    """delta_W = scale * B A, with A and B trained: r (in + out) numbers a layer. Trials share passes with LoRA-XS.

    alpha = scale * rank. A and B start from the trial's seed, in float32 whatever the base is in.
    """

    name: str = "lora"
    title: str = "LoRA"
    symbol: str = "A, B"
    description: str = "A and B (trained, of low rank)"
    parameters: Mapping[str, ParameterSpec] = MappingProxyType(
        {
            "rank": ParameterSpec("int", low=1, high=65536, about="r, the rows of A and the columns of B."),
            "scale": ParameterSpec("float", above=True, default=1.0, about="Factor of the update, alpha / r."),
            "stored_dtype": ParameterSpec(
                "name",
                names=("float16", "float32"),
                default="float16",
                about="What A and B are rounded to before they are scored and stored; trials train in float32, and the"
                " head stays so. PEFT reads both.",
            ),
        }
    )
    not_offered: Mapping[str, str] = NO_ALPHA
    sized_by: tuple[str, ...] = ("rank", "stored_dtype")
    packs: ClassVar[bool] = True
    has_plain_lora: ClassVar[bool] = True

    # ---- resolution --------------------------------------------------------------------------------------------------
    def recipe(self, params: Params) -> Mapping[str, Sequence[Scalar]]:
        """Measured at rank 4: "A recipe" in tests/benchmarks/README.md; at other ranks the rate is a guess."""
        return {
            "rank": (4,),
            "target_modules": ("all-linear",),
            "scale": (Hyperparameters.scale,),
            "learning_rate": (2.5e-3,),
            "head_learning_rate": (5.0e-3,),
        }

    def fields(self, params: Params, possible: Possible) -> Mapping[str, Any]:
        own = self.with_defaults(params)
        return {"stored_dtype": own.pop("stored_dtype"), "method_params": own}

    def params(self, hyper: Hyperparameters) -> Params:
        return self.with_defaults({**hyper.method_params, "stored_dtype": hyper.stored_dtype})

    def check(self, params: Params, modules: Modules) -> None:
        """Hold the rank against the smaller side of each layer: beyond it, more numbers give no other update.

        Raises:
            UsageError: it is above one of them.
        """
        check_ranks(int(params["rank"]), modules)

    def stored(self, params: Params, modules: Modules) -> Shapes:
        rank, shapes = int(params["rank"]), dict[str, tuple[int, ...]]()
        for module in modules:
            shapes[f"{module.name}.lora_A.weight"] = (rank, module.in_features)
            shapes[f"{module.name}.lora_B.weight"] = (module.out_features, rank)
        return shapes

    # ---- work --------------------------------------------------------------------------------------------------------
    def config(self, hyper: Hyperparameters, attachment: Mapping[str, Any]) -> LoraConfig:
        from peft import LoraConfig

        params = self.params(hyper)
        rank = int(params["rank"])
        alpha = float(params["scale"]) * rank
        config = LoraConfig(
            r=rank,
            lora_alpha=int(alpha) if alpha.is_integer() else alpha,  # type: ignore[arg-type]  # any number will do
            **attachment,
        )
        setattr(config, _STORED, hyper.stored_dtype)
        return config

    def attach(
        self, model: PreTrainedModel, hyper: Hyperparameters, head: HeadPlan, factors: FactorStore | None
    ) -> PeftModel:
        import torch

        from loraxs_search.base_model.layers import matrix

        adapted = super().attach(model, hyper, head, factors)
        layers = _layers(adapted)
        weights = {name: matrix(layer.get_base_layer()) for name, layer in layers.items()}
        sizes = {name: (weight.shape[0], weight.shape[1]) for name, weight in weights.items()}
        with torch.no_grad():  # PEFT has drawn them in the dtype of the base
            for name, pair in _initial_pairs(self.config(hyper, {}), sizes, hyper.seed).items():
                for own, drawn in zip(_pair_of(layers[name]), pair, strict=True):
                    own.copy_(drawn)
        return adapted

    def written(self, tensors: Mapping[str, Tensor], config: PeftConfig) -> Mapping[str, Tensor]:
        from loraxs_search.methods.stored import compact

        return compact(tensors, getattr(config, _STORED))

    def plain_lora(self, model: PeftModel) -> PlainLora:
        pairs = {}
        for name, layer in _layers(model).items():
            a, b = _pair_of(layer)
            pairs[name] = a, layer.scaling[ADAPTER] * b
        return self.as_plain_lora(model, pairs)

    def packed_adapter(
        self, hyper: Hyperparameters, linears: Linears, factors: FactorStore, device: torch.device
    ) -> PackedAdapter:
        from loraxs_search.base_model.layers import matrix

        sizes = {name: (matrix(layer).shape[0], matrix(layer).shape[1]) for name, layer in linears.items()}
        return _PackedPairs(self.config(hyper, {}), sizes, hyper.seed, device)

    def packed_updates(self, linears: Linears, factors: FactorStore, num_workers: int) -> Packing:
        return lambda slots: _PackedLora(cast("Sequence[_PackedPairs | None]", slots), linears, num_workers)


def _layers(model: PeftModel) -> dict[str, Linear]:
    """Return the layers with a LoRA adapter, by full name in the base, in model order."""
    from peft.tuners.lora import Linear

    return {name.removeprefix(ROOT): layer for name, layer in model.named_modules() if isinstance(layer, Linear)}


def _pair_of(layer: Linear) -> Pair:
    """Return a layer's own A and B; the layer's scaling is not in them."""
    a, b = (side.get_submodule(ADAPTER).get_parameter("weight") for side in (layer.lora_A, layer.lora_B))
    return a.detach(), b.detach()


def _initial_pairs(config: LoraConfig, sizes: Sizes, seed: int) -> dict[str, Pair]:
    """Draw the A (r, in) and B (out, r) that layers start with, float32 on the CPU, one layer after the other.

    They are what PEFT draws with torch's generator at `seed` for a float32 base that has just these layers adapted.
    """
    import torch
    from peft.tuners.lora import Linear
    from torch import nn

    own = copy.copy(config)
    pairs: dict[str, Pair] = {}
    own.fan_in_fan_out = False  # the layers below keep their weight as (out, in)
    with torch.random.fork_rng(devices=[]):
        torch.default_generator.manual_seed(seed)
        for name, (out_features, in_features) in sizes.items():
            empty = nn.Linear(in_features, out_features, bias=False, device="meta").to_empty(device="cpu")
            pairs[name] = _pair_of(Linear(empty, ADAPTER, own, r=own.r, lora_alpha=own.lora_alpha))
    return pairs


# ---- packed ----------------------------------------------------------------------------------------------------------
class _PackedPairs(PackedAdapter):
    """A (r, in) and B (out, r) of every layer, one after the other in one float32 vector, drawn as `attach` draws them.

    Args:
        sizes: Of the adapted layers, in model order, which is the vector's.
    """

    def __init__(self, config: LoraConfig, sizes: Sizes, seed: int, device: torch.device) -> None:
        import torch

        self.modules = tuple(sizes)
        self.scaling = float(config.lora_alpha / config.r)  # as PEFT's
        self._shapes = [shape for size in sizes.values() for shape in ((config.r, size[1]), (size[0], config.r))]
        drawn = _initial_pairs(config, sizes, seed)
        self.vector = torch.cat([side.flatten() for pair in drawn.values() for side in pair]).to(device)
        self.tensors = [self.vector.requires_grad_()]

    def pairs(self, vector: Tensor) -> dict[str, Pair]:
        """View a vector like the slot's as A and B of each layer."""
        parts = vector.split([prod(shape) for shape in self._shapes])  # type: ignore[no-untyped-call]
        sides = [part.view(shape) for part, shape in zip(parts, self._shapes, strict=True)]
        return dict(zip(self.modules, zip(sides[::2], sides[1::2], strict=True), strict=True))

    def named(self, values: Sequence[Tensor]) -> dict[str, Tensor]:
        (vector,) = values
        named = {}
        for module, pair in self.pairs(vector).items():
            for side, value in zip("AB", pair, strict=True):
                named[f"{ROOT}{module}.lora_{side}.{ADAPTER}.weight"] = value
        return named


class _TrainedPairs:
    """What the slots of a pack add to one layer; a `LayerUpdate`.

    Args:
        pairs: A and B in the dtype of the base, their scaling, and each worker's float32 gradients of both, by the
            index of the slots that adapt this layer.
    """

    def __init__(self, pairs: Mapping[int, tuple[Tensor, Tensor, float, Sequence[Pair]]]) -> None:
        self._pairs = pairs

    def adapts(self, rows: RowMap) -> bool:
        return any(segment.adapter in self._pairs for segment in rows.segments)

    def add_(self, x: Tensor, y: Tensor, rows: RowMap) -> list[Tensor]:
        saved = [x]  # the gradient of A needs it
        for segment, (a, b, scaling, _) in self._own(rows):
            at = rows.positions(x, segment.start, segment.stop)
            z = x[at].mm(a.T)  # (n T, r)
            y[at].addmm_(z, b.T, alpha=scaling)
            saved.append(z)
        return saved

    def backward_(self, dy: Tensor, dx: Tensor | None, saved: Sequence[Tensor], rows: RowMap) -> None:
        x, *products = saved
        for (segment, (a, b, scaling, grads)), z in zip(self._own(rows), products, strict=True):
            at, (grad_a, grad_b) = rows.positions(x, segment.start, segment.stop), grads[rows.worker]
            g = dy[at].mm(b).mul_(scaling)  # (n T, r)
            for total, left, right in ((grad_b, dy[at].T, z.mul(scaling)), (grad_a, g.T, x[at])):
                if left.dtype == total.dtype:
                    total.addmm_(left, right)
                else:
                    total.add_(left.mm(right))
            if dx is not None:
                dx[at].addmm_(g, a)

    def _own(self, rows: RowMap) -> Iterator[tuple[RowSegment, tuple[Tensor, Tensor, float, Sequence[Pair]]]]:
        for segment in rows.segments:
            if (pair := self._pairs.get(segment.adapter)) is not None:
                yield segment, pair


class _PackedLora:
    """A and B of every slot in the dtype that passes compute with, and their gradients: the `SlotUpdates` of LoRA.

    Args:
        linears: The base's linear layers, by full name.
        num_workers: Passes that may be computed at the same time.
    """

    def __init__(
        self, slots: Sequence[_PackedPairs | None], linears: Mapping[str, nn.Module], num_workers: int
    ) -> None:
        self._own = {index: slot for index, slot in enumerate(slots) if slot is not None}
        self.modules = [name for name in linears if any(name in slot.modules for slot in self._own.values())]
        dtype = linears[self.modules[0]].get_parameter("weight").dtype
        self._grads: dict[int, Tensor] = {}
        self._rounded: dict[int, Tensor] = {}
        self._pairs: dict[int, dict[str, tuple[Tensor, Tensor, float, Sequence[Pair]]]] = {}
        for index, slot in self._own.items():
            vector = slot.vector.detach()
            self._grads[index] = vector.new_zeros(num_workers, len(vector))
            if dtype != vector.dtype:  # else passes compute with the slot's own numbers
                vector = self._rounded[index] = vector.to(dtype)
            grads = [slot.pairs(own) for own in self._grads[index]]
            self._pairs[index] = {
                module: (a, b, slot.scaling, [pairs[module] for pairs in grads])
                for module, (a, b) in slot.pairs(vector).items()
            }

    @property
    def slot_bytes(self) -> int:
        """Memory of the largest slot: the gradients of each worker, and a copy in the base's dtype."""
        rounded = {index: values.nbytes for index, values in self._rounded.items()}
        return max(grads.nbytes + rounded.get(index, 0) for index, grads in self._grads.items())

    def update(self, module: str) -> _TrainedPairs:
        """Return what is added to the output of one of `modules`."""
        return _TrainedPairs({index: pairs[module] for index, pairs in self._pairs.items() if module in pairs})

    def begin(self) -> None:
        """Read every slot's current A and B, and set gradients to zero."""
        for grads in self._grads.values():
            grads.zero_()
        for index, values in self._rounded.items():
            values.copy_(self._own[index].vector.detach())

    def collect(self) -> None:
        """Set the gradient of every slot, summed over the workers in their order."""
        for index, slot in self._own.items():
            first, *others = self._grads[index]
            for grad in others:
                first += grad
            slot.vector.grad = first
