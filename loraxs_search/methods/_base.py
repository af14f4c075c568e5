"""The contract of a method: what is trained on a frozen base, as the rest of the package uses it.

A method is a class without state: callers make one when they need it, and all instances are equal. Its module is
imported where a YAML file is read, in the driver, in the processes that ask hosts and in the registry, so it imports
neither torch nor transformers nor PEFT at its top; functions that need them import them inside. A method has three
sides.

**Declaration** (`name` to `has_plain_lora`): plain values. Any process, any thread.

**Resolution** (`recipe` to `size`): from the YAML file's values to a trial's hyperparameters. Called by the space
reader, `check` and the driver, without torch, any number of times; the same arguments give the same answer.

**Work** (`factors` to `packed_updates`): on a base in memory. A host calls these from one thread at a time for one
base; several bases, and so several threads, may be in one process. `attach` and `detach` come in pairs, one adapter at
a time on a base. A detached base is restored bit for bit, except for its head, which is drawn for each trial. An
`attach` that fails restores the base too.

What all methods share stays outside: learning rates, decay, betas, schedule, batch size, target modules and the head
belong to the search space; the training loop to `trial`; scores to the task's kind.

A method says through `size` how large its state is. One whose adapter PEFT does not build (full fine-tuning, the head
alone) implements `attach` to `load` itself; for the others `PeftMethod` does.

What a user can cause is a `LoraxsError` with the law and the value. Anything else ends the trial as our own mistake.
"""

from __future__ import annotations

import json
from abc import ABC, abstractmethod
from collections.abc import Callable, Iterable, Mapping, Sequence
from dataclasses import dataclass
from math import prod
from pathlib import Path
from types import MappingProxyType
from typing import TYPE_CHECKING, Any, ClassVar

from loraxs_search.errors import UsageError
from loraxs_search.manifest import Manifest
from loraxs_search.plugins import ParameterSpec, with_defaults
from loraxs_search.records.codec import Basis, Pooling, Scalar
from loraxs_search.records.task import LinearModule
from loraxs_search.records.trial import AdapterSize, Hyperparameters

if TYPE_CHECKING:
    import torch
    from peft import PeftModel
    from torch import Tensor, nn
    from transformers import PreTrainedModel

    from loraxs_search.engine.layers import SlotUpdates
    from loraxs_search.factors.compute import FactorKey
    from loraxs_search.factors.store import FactorStore

    Pair = tuple[Tensor, Tensor]  # A (r, in), B (out, r), float32; scales are multiplied into B
    Linears = Mapping[str, nn.Module]  # linear layers by full name, in model order
    Packing = Callable[[Sequence["PackedAdapter | None"]], SlotUpdates]

ADAPTER = "default"  # the one adapter of a trial, and of a loaded folder
ROOT = "base_model.model."
R = "loraxs_R"  # what the LoRA-XS tuner calls R, the one tensor that it stores of each layer
SCALE = "_scale"  # behind the name of a tensor of codes: that of its scales
NATIVE = "native"  # the form of an adapter as it was trained, which needs no export
FILES = ("adapter_config.json", "adapter_model.safetensors")
BYTES_PER_PARAMETER = 4  # what is trained is float32

Shapes = Mapping[str, tuple[int, ...]]  # of tensors, by full name in the base
Params = Mapping[str, Scalar]  # a method's own parameters, by name in YAML
Modules = Sequence[LinearModule]
NONE: Shapes = MappingProxyType({})
Possible = Mapping[str, Sequence[Scalar] | None]  # of each own parameter: all that a trial may have; None is a range
Sizes = Mapping[str, tuple[int, int]]  # of linear layers: full name to (out, in)


@dataclass(frozen=True)
class HeadPlan:
    """How the task's head is trained, in full module names of the base.

    Args:
        trained: Modules that are trained beside the adapter and stored whole.
        identity: Linear layers that are the identity when `attach` is called, and must be when the adapter is loaded:
            those before a head's output where only that is trained, and a pooler that the checkpoint lacks.
        task_type: PEFT's name of the task; None if PEFT must not train a head by itself.
        pooling: What the head reads of the base, on which it is in place when `attach` is called.
    """

    trained: tuple[str, ...] = ()
    identity: tuple[str, ...] = ()
    task_type: str | None = None
    pooling: Pooling = "class"


@dataclass(frozen=True)
class PlainLora:
    """An adapter as LoRA, whose own scaling is one.

    Args:
        pairs: Of each adapted layer, by full name; all of one rank.
        others: What else is stored, the head above all, under the keys that PEFT loads.
        saved: The modules that `others` belong to.
        fan_in_fan_out: Whether the layers keep their weights as (in, out).
    """

    pairs: Mapping[str, Pair]
    others: Mapping[str, Tensor]
    saved: Sequence[str] = ()
    task_type: str | None = None
    fan_in_fan_out: bool = False

    @property
    def rank(self) -> int:
        """Rank of each layer's update.

        Raises:
            UsageError: layers have several, for which a file of plain LoRA has no place.
        """
        ranks = sorted({len(a) for a, _ in self.pairs.values()})
        if len(ranks) > 1:
            raise UsageError(
                f"An update as plain LoRA must have one rank in all layers, but got {', '.join(map(str, ranks))}.",
                hint="use --format merged, or the adapter as it is",
            )
        return ranks[0]


class PackedAdapter(ABC):
    """One trial's adapter in a pack: the same numbers as the lone trial's, in shapes that suit a shared pass.

    Made and used by the host's own thread.

    Args of every kind of it:
        modules: Full names of the adapted layers in model order.
        tensors: What is trained: float32 leaves on the device; AdamW steps them in place.
    """

    modules: tuple[str, ...]
    tensors: list[Tensor]

    @abstractmethod
    def named(self, values: Sequence[Tensor]) -> dict[str, Tensor]:
        """Name values shaped like `tensors` (themselves, gradients, moments) as the lone trial's model names them.

        They are views of the values, and no two share a number: a snapshot fits pack and lone trial alike.
        """

    def stacked(self, named: Mapping[str, Tensor]) -> list[Tensor]:
        """Return values shaped like `tensors` from names that `named` gives; other names are passed over."""
        values = [tensor.detach().clone() for tensor in self.tensors]
        for name, view in self.named(values).items():
            view.copy_(named[name].detach())
        return values


class Method(ABC):
    """One way to adapt a frozen base."""

    name: str
    """In YAML, records and the registry: lower case, words joined by hyphens."""
    title: str
    """The name shown on model cards and in messages."""
    symbol: str = "adapter"
    """What people call the trained numbers, short enough for a table's head."""
    description: str = "adapter"
    """The same as a model card says it."""
    note: ClassVar[str] = ""
    """A sentence for the model card on what the adapter presumes."""
    parameters: Mapping[str, ParameterSpec] = MappingProxyType({})
    """Its own parameters in YAML, beside those that all methods have."""
    not_offered: Mapping[str, str] = MappingProxyType({})
    """Names that people may look for, and why they are not there: `must` sentences that follow the name."""
    sized_by: tuple[str, ...] = ()
    """The method's parameters, integers or words, that decide what is stored."""
    packs: ClassVar[bool] = False
    """Whether trials can share passes. The others train between the rounds of these."""
    can_start: ClassVar[bool] = False
    """Whether trials can start from a registered adapter: `start_asset` makes it what they start from."""
    is_baseline: ClassVar[bool] = False
    """Whether its trials are there to be compared with: candidates only where `promotion.methods` names it."""
    has_adapter: ClassVar[bool] = True
    """Whether what it trains is kept as an adapter. Of a method without one only metrics are recorded."""
    adapts_layers: ClassVar[bool] = True
    """Whether `target_modules` decides anything."""
    needs_head: ClassVar[bool] = False
    """Whether a task must have a head for it."""
    advice: ClassVar[str] = ""
    """What a user should know before searching with it: a clause that follows its name."""
    serves_in_bank: ClassVar[bool] = False
    """Whether an `AdapterBank` takes its adapters: it knows only the numbers of LoRA-XS."""
    says_pooling: ClassVar[bool] = False
    """Whether PEFT's config of an adapter says what its head reads, and which of its layers are the identity.

    Where it does not, PEFT refuses a pooled one, and such layers are stored whole.
    """
    merges: ClassVar[bool] = False
    """Whether an adapter's update can be added to the weights of its base."""
    has_plain_lora: ClassVar[bool] = False
    """Whether an adapter's update is plain LoRA, exactly, as `plain_lora` returns it."""

    # ---- resolution --------------------------------------------------------------------------------------------------
    def recipe(self, params: Params) -> Mapping[str, Sequence[Scalar]]:
        """Return values that did well on every task with a head that was measured, by name in YAML, the best first.

        The first trial has the first of each that its space has. The learning rate is asked for after the rank.

        Args:
            params: What the trial has already.
        """
        return {}

    def fields(self, params: Params, possible: Possible) -> Mapping[str, Any]:
        """Return the fields of `Hyperparameters` that a trial's own parameters come to.

        Args:
            params: Drawn for the trial; what a condition left out is missing.
            possible: What any trial of the space may have, for what must be alike in all of them.
        """
        return {"method_params": self.with_defaults(params)}

    def params(self, hyper: Hyperparameters) -> Params:
        """Return its own parameters out of a record, all of them."""
        return self.with_defaults(hyper.method_params)

    def with_defaults(self, params: Params) -> dict[str, Scalar]:
        """Return its own parameters, those left out at their defaults, in the order of the declaration."""
        return with_defaults(self.parameters, params)

    def slot_bytes(self, params: Params, modules: Modules, num_workers: int) -> int:
        """Return the memory that a packed trial takes on a device, without its head and activations.

        By default each trained number, its two moments and its copy in a pass, and a gradient for each worker.

        Args:
            params: All parameters of the method.
            modules: That it adapts.
            num_workers: Passes that may be computed at the same time.
        """
        return BYTES_PER_PARAMETER * self.size(params, modules, {}, {}).r_parameters * (4 + num_workers)

    def check(self, params: Params, modules: Modules) -> None:  # noqa: B027
        """Hold its own parameters against the layers that a trial adapts; any fit by default.

        Args:
            params: With defaults; of `describe` at least those of `sized_by`.
        Raises:
            UsageError: they do not fit; the message names a layer.
        """

    def factor_sets(self, possible: Possible) -> tuple[tuple[Basis, int], ...]:
        """Return basis and rank of the factors that trials of a space share; they are computed before the first trial.

        There are none by default.
        """
        return ()

    def start_asset(self, folder: Path, manifest: Manifest, *, with_head: bool) -> bytes:
        """Return a registered adapter of this method as the asset that trials start from; see `starting`.

        Only called where `can_start` says so.

        Args:
            folder: The adapter's, as it was pulled.
            with_head: Whether trials start from its head too.
        """
        raise NotImplementedError

    def check_start(self, start: Hyperparameters, params: Params, modules: Modules) -> None:  # noqa: B027
        """Hold a trial against the adapter of the same base and method that it starts from.

        Args:
            start: The adapter's.
            params: As of `check`.
            modules: That the trial adapts.
        Raises:
            UsageError: the trial cannot begin at the adapter's function.
        """

    @abstractmethod
    def size(
        self, params: Params, modules: Modules, head: Shapes, identity: Shapes, body: Shapes = NONE
    ) -> AdapterSize:
        """Return what `measure` returns for an adapter of these, without any weights.

        Args:
            modules: That are adapted.
            head: Parameters of the head that are trained.
            identity: Parameters of `HeadPlan.identity`.
            body: Parameters of the base below its head, for methods that train them.
        """

    # ---- work --------------------------------------------------------------------------------------------------------
    def factors(self, hyper: Hyperparameters, sizes: Sizes) -> Iterable[tuple[str, FactorKey]]:
        """Return every factor file that an adapter needs, by module, to be registered with it; none by default."""
        return ()

    def frozen_cosines(self, model: PeftModel | PreTrainedModel) -> tuple[float, ...]:
        """Return numbers that differ where another machine makes other frozen parts of the same base.

        There are no such numbers by default: what a seed draws, or the factor store keeps, is the same everywhere.

        Args:
            model: From `attach`.
        """
        return ()

    @abstractmethod
    def attach(
        self, model: PreTrainedModel, hyper: Hyperparameters, head: HeadPlan, factors: FactorStore | None
    ) -> PeftModel | PreTrainedModel:
        """Put a fresh adapter on a base, frozen but for what is trained, and return what is called in its place.

        It takes what the base takes and returns what the base returns. Parameters that require a gradient are the
        trial's: float32, on the base's device. Their names are the snapshot's. What is drawn depends on `hyper.seed`
        alone, and torch's global generators are left as they were.

        Args:
            model: The base with a fresh head; nothing else is on it.
            factors: Where factors come from; None means the store in use, see `use_factor_store`.
        Raises:
            UsageError: the adapter does not fit the base.
            BaseModelError, HomeError: its factors cannot be had.
        """

    @abstractmethod
    def detach(self, model: PeftModel | PreTrainedModel) -> PreTrainedModel:
        """Take the adapter off what `attach` returned, and return the base, frozen."""

    @abstractmethod
    def is_adapter(self, name: str, model: PeftModel | PreTrainedModel) -> bool:
        """Whether the trained parameter of this name is the adapter's, else the head's, which has its own rate.

        Args:
            model: What `attach` returned.
        """

    @abstractmethod
    def measure(self, model: PeftModel | PreTrainedModel) -> AdapterSize:
        """Count what `files` stores of a model, or would store."""

    def files(self, model: PeftModel | PreTrainedModel, body_fingerprint: Sequence[float]) -> dict[str, bytes]:
        """Return an adapter's files by name, as `load` reads them. Only called where `has_adapter` says so.

        Args:
            body_fingerprint: Numbers of the base below its head, for methods that record them; see `body_fingerprint`.
        """
        raise NotImplementedError

    def load(self, base: PreTrainedModel, folder: Path, device: str) -> PeftModel | PreTrainedModel:
        """Put a stored adapter on a base that was loaded for it; files and weights have been checked.

        Only called where `has_adapter` says so.

        Raises:
            BaseModelError: it was trained on another base, or in other factors.
        """
        raise NotImplementedError

    def plain_lora(self, model: PeftModel) -> PlainLora:
        """Return a loaded adapter's update as plain LoRA. Only called where `has_plain_lora` says so.

        Raises:
            UsageError: this adapter's is none, and why.
        """
        raise NotImplementedError

    def packed_adapter(
        self, hyper: Hyperparameters, linears: Linears, factors: FactorStore, device: torch.device
    ) -> PackedAdapter:
        """Return a trial's adapter at its start, with the very numbers that `attach` begins with.

        Only called where `packs` says so, as `packed_updates` is.

        Args:
            linears: The layers that the trial adapts, by full name, in model order.
        Raises:
            UsageError, BaseModelError: as `attach`.
        """
        raise NotImplementedError

    def packed_updates(self, linears: Linears, factors: FactorStore, num_workers: int) -> Packing:
        """Return what packs trials on a base; called once for each base, which stays as it is.

        The function that is returned takes an adapter for each slot of a pack, None for slots of other methods; one of
        them at least is there. It returns what these trials add to the base, for as long as a pack has just them.

        Args:
            linears: The base's linear layers that may be adapted, by full name, in model order.
            num_workers: Passes that may be computed at the same time.
        """
        raise NotImplementedError


_WIDTHS = {"F32": BYTES_PER_PARAMETER, "F16": 2, "I8": 1}


# ---- what methods share: the length of a file with PEFT's names, the law of ranks ------------------------------------
def file_bytes(
    tensors: Shapes,
    others: Shapes = MappingProxyType({}),
    *,
    root: str = ROOT,
    dtypes: Mapping[str, str] = MappingProxyType({}),
) -> int:
    """Return the length of a safetensors file with these tensors.

    8 bytes + a JSON header, padded to 8, that names each tensor + its numbers. Tensors stand in the order of their
    names, the widest numbers first. With a small rank the header is a good part of the file.

    Args:
        others: By full name in the file.
        root: What the names of `tensors` have before them in the file.
        dtypes: `F16` or `I8`, of those of `tensors` that are not float32.
    """
    header: dict[str, Any] = {"__metadata__": {"format": "pt"}}
    named = [(dtypes.get(name, "F32"), f"{root}{name}", shape) for name, shape in tensors.items()]
    named += [("F32", *each) for each in others.items()]
    end = 0
    for dtype, name, shape in sorted(named, key=lambda each: (-_WIDTHS[each[0]], each[1])):
        start, end = end, end + _WIDTHS[dtype] * prod(shape)
        header[name] = {"dtype": dtype, "shape": list(shape), "data_offsets": [start, end]}
    length = len(json.dumps(header, separators=(",", ":")))
    return 8 + length + -length % 8 + end


# `Method.not_offered` of those that have `rank` and `scale`.
NO_ALPHA = MappingProxyType(
    {"alpha": "is not offered, since with alpha fixed a larger rank learns slower; use `scale` (= alpha / rank)."}
)


def check_ranks(rank: int, modules: Sequence[LinearModule]) -> None:
    """Hold a rank against each layer's smaller side.

    Raises:
        UsageError: it is above one of them, or below 1; the message names the layer that it fits least.
    """
    smallest = min(modules, key=lambda module: min(module.in_features, module.out_features))
    most = min(smallest.in_features, smallest.out_features)
    if not 1 <= rank <= most:
        raise UsageError(
            f"`rank` must be in 1..{most}, but got rank={rank} for {smallest.name}.",
            hint="lower the rank, or leave this module out of target_modules",
        )
