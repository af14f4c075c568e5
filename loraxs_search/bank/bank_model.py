"""The base of a bank: layers in place, factors loaded, heads that adapters start from, and rows that name adapters."""

from __future__ import annotations

import copy
import threading
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, replace
from functools import cached_property, partial
from itertools import accumulate, groupby
from math import prod

import numpy as np
import torch
from torch import Tensor, nn
from transformers.pytorch_utils import Conv1D

from loraxs_search.base_model.attention import use_padded_attention
from loraxs_search.base_model.layers import head_names, make_identity, matrix, with_labels
from loraxs_search.base_model.load import load_model, missing_poolers
from loraxs_search.base_model.reading import place_pooling, resolved_pooling
from loraxs_search.base_model.sharing import probe_sharing
from loraxs_search.engine.layers import (
    AdaptedBase,
    AdaptedHead,
    AdaptedLinear,
    HeadState,
    LayerUpdate,
    Owners,
    PassContext,
    RowMap,
    RowSegment,
)
from loraxs_search.engine.passes import Requester, forward
from loraxs_search.errors import IntegrityError, UsageError, unknown_name
from loraxs_search.factors.store import agrees, fingerprint
from loraxs_search.methods._base import ROOT, R
from loraxs_search.methods.loraxs import FactorKey, LoraXSConfig, ModuleSettings, checked_factors, current_factor_store
from loraxs_search.methods.loraxs.model import check_body
from loraxs_search.methods.loraxs.packed import FactorPairs, add_core_update_
from loraxs_search.records.codec import Pooling, Sigma, to_json
from loraxs_search.records.search import OperatingPoint
from loraxs_search.records.task import BaseModel, Task, TaskModel
from loraxs_search.tasks.encoded import RowSource
from loraxs_search.tasks.kinds import TaskKind, kind_of


@dataclass(frozen=True)
class _Layout:
    """The shape of an adapter; rows whose adapters have one layout are computed together.

    Scale, sigma and the numbers themselves are not part of it.

    Args:
        modules: Adapted modules with rank and factors, in the order in which they are stored.
        head: Full names and shapes of the head parameters that are stored, after the modules.
        model: How the base is loaded for them, and what their heads read of it.
        identity_layers: Head layers that are the identity.
    """

    modules: tuple[tuple[str, int, FactorKey], ...]
    head: tuple[tuple[str, tuple[int, ...]], ...]
    model: TaskModel
    identity_layers: tuple[str, ...]

    @cached_property
    def places(self) -> dict[str, tuple[int, tuple[int, ...]]]:
        """Where in an adapter's vector what is stored begins, with its shape: a module's C, or a head's parameter.

        C (r, r) is R multiplied by its scale and singular values.
        """
        shapes = {**{name: (rank, rank) for name, rank, _ in self.modules}, **dict(self.head)}
        starts = accumulate((prod(shape) for shape in shapes.values()), initial=0)
        return {name: (start, shape) for (name, shape), start in zip(shapes.items(), starts, strict=False)}

    @cached_property
    def factors(self) -> dict[str, FactorKey]:
        """The factors of each adapted module."""
        return {name: key for name, _, key in self.modules}

    @cached_property
    def sort_key(self) -> str:
        """Rows of a batch are sorted by this, so that those of like modules and ranks are neighbours."""
        return repr((self.modules, self.model.num_outputs or 0, self.head))


@dataclass(frozen=True, eq=False)
class StoredAdapter:
    """An adapter in memory; it never changes.

    Args:
        layout: One object for all adapters that have it.
        vector: All cores and then the head's parameters, (width,), float32.
        kind: One object for all adapters of a task: rows of one kind are reduced together.
        points: Its operating points.
    """

    layout: _Layout
    vector: Tensor
    kind: TaskKind
    points: tuple[OperatingPoint, ...] = ()


@dataclass(frozen=True)
class _StoredRows:
    """The adapters of neighbouring rows, all of one layout.

    Args:
        layout: None if rows name no adapter.
        vectors: Shape (rows, width), or (1, width) where all rows name the same adapter.
        heads: Modules by name that a layer of the head takes its shape and what is not stored from.
    """

    layout: _Layout | None
    vectors: Tensor
    heads: Mapping[str, nn.Module]


@dataclass
class _StoredCores(LayerUpdate):
    """What the adapters of a bank add to one layer.

    Args:
        module: Full name of the layer.
    """

    module: str
    pairs: FactorPairs

    def adapts(self, rows: RowMap) -> bool:
        layouts = (segment.adapter.layout for segment in rows.segments)
        return any(layout is not None and self.module in layout.factors for layout in layouts)

    def add_(self, x: Tensor, y: Tensor, rows: RowMap) -> tuple[Tensor, ...]:
        for segment in rows.segments:
            layout, vectors = segment.adapter.layout, segment.adapter.vectors
            if layout is None or self.module not in layout.factors:
                continue
            start, (rank, _) = layout.places[self.module]
            cores = vectors[:, start : start + rank * rank].view(-1, rank, rank).to(x.dtype)  # (n or 1, r, r)
            at = rows.positions(x, segment.start, segment.stop)
            add_core_update_(x[at], y[at], self.pairs.pair(self.module, layout.factors[self.module], rank), cores)
        return ()


_Heads = Mapping[str, nn.Module]


class BankModel:
    """A frozen base that computes batches whose rows name adapters.

    Several threads may compute batches at once.

    Args:
        task_model: How the base is loaded; rows without an adapter go through this head, where it has one.
    Raises:
        BaseModelError: the base does not compute each row by itself.
    """

    def __init__(self, base: BaseModel, task_model: TaskModel, device: torch.device) -> None:
        self.base, self.device = base, device
        self.task_model = replace(task_model, pooling=resolved_pooling(task_model.pooling, base)[0])
        self.has_head = task_model.num_outputs is not None  # without one, hidden states are read
        self.model = load_model(base, self.task_model, device=device)
        use_padded_attention(self.model)
        self.context = PassContext()
        self._fingerprints: dict[tuple[str, FactorKey, int, Sigma], tuple[float, ...]] = {}
        self._bodies: set[tuple[float, ...]] = set()  # fingerprints that have been checked
        self._templates: dict[tuple[object, ...], _Heads] = {}
        self._layouts: dict[_Layout, _Layout] = {}
        self._kinds: dict[str, TaskKind] = {}  # by task
        self._loading = threading.Lock()  # of what is learnt from adapters: held while factors are computed
        self.head_names = head_names(self.model)
        self._missing_poolers = missing_poolers(self.model)
        output = self.model.get_output_embeddings()  # it projects what rows read, outside their pass
        self._linears = {
            name: module
            for name, module in self.model.named_modules()
            if isinstance(module, (nn.Linear, Conv1D))
            and name.split(".")[0] not in self.head_names
            and module is not output
        }
        sharing = probe_sharing(self.model, tuple(self._linears))
        sharing.check("Adapters of a bank", "`load_adapter` takes one adapter for all rows")
        self._unpackable = sharing.unpackable
        self._pairs = FactorPairs(self._linears, current_factor_store)
        self.own_heads: _Heads = {name: self.model.get_submodule(name) for name in self.head_names}

        def pooling_of_rows() -> list[tuple[int, Pooling]]:  # what the heads of neighbouring rows read of the base
            segments: Sequence[RowSegment] = self.context.row_map.segments
            models = [own.adapter.layout.model if own.adapter.layout else self.task_model for own in segments]
            return [(own.num_rows, model.pooling) for own, model in zip(segments, models, strict=True)]

        place_pooling(self.model, self.task_model.pooling, pooling_of_rows)
        for name, layer in self._linears.items():
            self.model.set_submodule(name, AdaptedLinear(layer, self.context, [_StoredCores(name, self._pairs)]))

        def head_of_rows(name: str, segment: RowSegment, _: int) -> HeadState:
            rows, prefix = segment.adapter, f"{name}."
            stored = {
                parameter.removeprefix(prefix): rows.vectors[:, start : start + prod(shape)].view(-1, *shape)
                for parameter, (start, shape) in (rows.layout.places if rows.layout else {}).items()
                if parameter.startswith(prefix)
            }
            if len(rows.vectors) == 1:
                return HeadState(rows.heads[name], {key: value[0] for key, value in stored.items()})
            return HeadState(rows.heads[name], stored, per_row=True)

        for name, head in self.own_heads.items():
            self.model.set_submodule(name, AdaptedHead(head, self.context, partial(head_of_rows, name)))

    def stored(self, config: LoraXSConfig, task: Task, tensors: Mapping[str, Tensor]) -> StoredAdapter:
        """Check an adapter's config and tensors, and return it as it is stored.

        Raises:
            UsageError: it has its own factors, reads the base in another way, or adapts a module that the base lacks or
                computes for all rows at once.
            IntegrityError: a module of the config is missing, or a tensor has another name or shape than it should.
            BaseModelError: the config was made for other factors, or for another body.
        """
        r, head = _split_tensors(tensors)
        with self._loading, torch.inference_mode():
            kind, own = kind_of(task), self.task_model
            if (kind.model.num_outputs is None) == self.has_head:
                has, lacks = ("has one", "has none") if self.has_head else ("has none", "has one")
                raise UsageError(
                    f"A bank holds adapters that all have a head, or all have none. This one's base {has}, but"
                    f" {task.name}, of kind {task.kind}, {lacks}.",
                    hint="make another bank for it: its first adapter, or `task_model`, decides",
                )
            # What their heads read is each row's own.
            if replace(kind.model.body, pooling="class") != replace(own.body, pooling="class"):
                raise UsageError(
                    f"Adapters of a bank must all read the base as {own.auto_class}, but {task.name}, of kind"
                    f" {task.kind}, reads {kind.model.auto_class}.",
                    hint="make another bank for it",
                )
            settings = self._settings(config, list(r))
            layout = _Layout(
                tuple((name, s.rank, s.factor_key) for name, (s, _) in settings.items()),
                tuple(sorted((name, tuple(value.shape)) for name, value in head.items())),
                replace(kind.model, pooling=config.pooling),
                tuple(config.pass_through),
            )
            layout = self._layouts.setdefault(layout, layout)
            shapes: dict[str, tuple[int, ...]] = {name: (rank, rank) for name, rank, _ in layout.modules}
            shapes |= dict(layout.head)
            for name, value in (r | head).items():
                if tuple(value.shape) != shapes[name] or not value.is_floating_point():
                    raise IntegrityError(
                        f"{name} must be floating point of shape {shapes[name]}, but got {tuple(value.shape)}."
                    )
            self.heads(layout)
            numbers = [r[name].to(self.device, torch.float32) * scale for name, (_, scale) in settings.items()]
            numbers += [head[name].to(self.device, torch.float32) for name, _ in layout.head]
            vector = torch.cat([own.flatten() for own in numbers])
            return StoredAdapter(layout, vector, self._kinds.setdefault(to_json(task), kind))

    def _settings(self, config: LoraXSConfig, modules: Sequence[str]) -> dict[str, tuple[ModuleSettings, Tensor]]:
        """Resolve an adapter's settings on each of its modules, in model order, and prepare their factors.

        Returns:
            The settings, and the matrix that turns R into C by an elementwise product, shape (r, r).
        """
        if config.basis == "gaussian":
            raise UsageError(
                "Adapters of a bank must share the base's own factors, but A and B of this one were drawn.",
                hint="`load_adapter` takes it, one adapter for all rows",
            )
        if unknown := sorted(set(modules) - set(self._linears)):
            raise UsageError(unknown_name("target_modules", unknown[0], self._linears))
        if shared := [name for name in modules if name in self._unpackable]:
            raise UsageError(
                "Adapters of a bank must adapt layers that each row has to itself, but this base gives"
                f" {shared[0]} what all rows share, rows in another order, or nothing.",
                hint="`load_adapter` takes one such adapter for all rows",
            )
        wanted = set(modules)
        if config.factor_fingerprints and (missing := sorted(wanted ^ config.factor_fingerprints.keys())):
            raise IntegrityError(
                f"An adapter must hold an R for each module of its config, but {missing[0]} is missing."
            )
        if (body := tuple(config.body_fingerprint)) not in self._bodies:
            check_body(body, self.model)
            self._bodies.add(body)
        settings = {}
        for name in (name for name in self._linears if name in wanted):
            weight = matrix(self._linears[name]).detach()
            own = ModuleSettings.of(config, name, *weight.shape)
            if (recorded := config.factor_fingerprints.get(name)) is not None:
                key = (name, own.factor_key, own.rank, own.sigma)
                if key not in self._fingerprints:
                    factors = self._pairs.factors(name, own.factor_key)
                    self._fingerprints[key] = fingerprint(*factors.ab(own.rank, own.sigma))
                if not agrees(recorded, self._fingerprints[key]):
                    factors, factor_key = checked_factors(weight, own, name, {name: recorded})
                    own = replace(own, factor_key=factor_key)  # of the factors that the adapter was trained in
                    self._pairs.add_variant(name, own.factor_key, factors)
            self._pairs.pair(name, own.factor_key, own.rank)
            scale = own.scale_core(self._pairs.factors(name, own.factor_key).singular_values)
            settings[name] = own, scale.to(self.device)
        return settings

    def heads(self, layout: _Layout) -> _Heads:
        """Return the head modules of a layout, with the parameters that its adapters do not store.

        Raises:
            IntegrityError: the layout has parameters or identities that this base's head lacks, or of another shape.
        """
        key = (layout.model, layout.head, layout.identity_layers)
        if key in self._templates:
            return self._templates[key]
        if layout.head and not self.head_names:
            raise IntegrityError(
                f"An adapter without a head must hold only R, but got {layout.head[0][0]} of {layout.head[0][1]}."
            )
        # The body, which all adapters share, has no layers that are the identity.
        identities = [name for name in layout.identity_layers if name.split(".")[0] in self.head_names]
        if other := sorted({*layout.identity_layers} - {*identities} - {*self._missing_poolers}):
            raise IntegrityError(
                f"`pass_through` must name layers of the head, or a pooler that the base lacks, but names {other[0]}."
            )
        meta = with_labels(self.model, layout.model.num_outputs or 0) if self.head_names else self.model
        shaped = self.own_heads if meta is self.model else {name: meta.get_submodule(name) for name in self.head_names}
        heads = nn.ModuleDict({name: copy.deepcopy(head) for name, head in shaped.items()})
        if meta is not self.model:
            heads = heads.to_empty(device=self.device).float().requires_grad_(False).eval()
        stored = dict(layout.head)
        shapes = {name: tuple(parameter.shape) for name, parameter in heads.named_parameters()}
        if wrong := [name for name, shape in layout.head if shapes.get(name) != shape]:
            raise IntegrityError(
                f"Beside R an adapter may hold parameters of the head only ({', '.join(shapes)}), each of its shape, "
                f"but got {wrong[0]} of {stored[wrong[0]]}."
            )
        given = stored.keys() | {f"{name}.{part}" for name in identities for part in ("weight", "bias")}
        if missing := [name for name, _ in heads.named_parameters() if name not in given]:
            # The same as in `load_adapter`: the checkpoint's own head, or a freshly drawn one.
            loaded = load_model(self.base, layout.model, device=self.device)
            for name in missing:
                heads.get_parameter(name).copy_(loaded.get_parameter(name))
        make_identity(heads, identities)
        self._templates[key] = dict(heads.items())
        return self._templates[key]


class BankRows(AdaptedBase):
    """Adapters under numbers that rows name them by; the bank may lose them meanwhile.

    `put` and `drop` are for one thread; passes may be computed side by side.

    Args:
        adapters: Those that are there from the beginning, numbered from 0; None is the bare base.
    """

    def __init__(self, bank: BankModel, adapters: Sequence[StoredAdapter | None] = ()) -> None:
        super().__init__(bank.model, bank.context)
        self._bank = bank
        self._adapters = dict(enumerate(adapters))
        self._next = len(adapters)

    def put(self, adapter: StoredAdapter | None) -> int:
        """Add an adapter, and return its number."""
        self._adapters[self._next] = adapter
        self._next += 1
        return self._next - 1

    def drop(self, owner: int) -> None:
        """Remove an adapter that no row names any more."""
        del self._adapters[owner]

    def row_map(self, owners: Owners, worker: int = 0) -> RowMap:
        segments, start = list[RowSegment](), 0
        own = (self._adapters[owner] for owner in owners.tolist())
        for _, run in groupby(own, key=lambda adapter: None if adapter is None else id(adapter.layout)):
            adapters = list(run)
            if (first := adapters[0]) is None:
                stored = _StoredRows(None, torch.empty(0, device=self.device), self._bank.own_heads)
            else:
                same = all(adapter is first for adapter in adapters)
                vectors = first.vector[None] if same else torch.stack([own.vector for own in adapters if own])
                stored = _StoredRows(first.layout, vectors, self._bank.heads(first.layout))
            segments.append(RowSegment(stored, start, start + len(adapters)))
            start += len(adapters)
        return RowMap(segments, self.device, worker)

    def requesters(self, data: RowSource, owners: Mapping[str, int]) -> dict[str, Requester]:
        """Return who asks, by name, given whose adapter each has; those of one layout stand side by side."""
        found = dict[str, Requester]()
        for name in sorted(owners, key=lambda name: self._likeness(owners[name])):
            adapter = self._adapters[owners[name]]
            found[name] = Requester(owners[name], data, None if adapter is None else adapter.layout.model.num_outputs)
        return found

    @torch.inference_mode()
    def logits(self, inputs: Mapping[str, Tensor]) -> list[Tensor]:
        """Return the logits of each adapter's row, float32: its head's (labels,), or the next token's (vocabulary,).

        Args:
            inputs: What the model takes, (n, T), the rows in the order of the adapters.
        """
        order = sorted(self._adapters, key=self._likeness)
        mine = {name: value[torch.tensor(order)].to(self.device) for name, value in inputs.items()}
        reads = None
        if not self._bank.has_head:  # of each row the last token, whichever side padding is on
            mask_nT = mine.get("attention_mask", torch.ones_like(mine["input_ids"]))  # without one, rows are whole
            columns_T = torch.arange(1, mask_nT.shape[1] + 1, device=mask_nT.device)
            rows_n = torch.arange(len(mask_nT), device=mask_nT.device)
            reads = torch.stack([rows_n, (mask_nT * columns_T).argmax(1)], dim=1)
        with self.context.computing(self.row_map(np.array(order))):
            outputs = forward(self.model, mine, reads)
        lines = list(outputs.read if outputs.project is None else outputs.project(outputs.read))
        by_row = dict(zip(order, lines, strict=True))
        if outputs.project is None:  # outputs narrower than the widest are padded
            for row, adapter in self._adapters.items():
                width = self._bank.model.config.num_labels if adapter is None else adapter.layout.model.num_outputs
                by_row[row] = by_row[row][..., :width]
        return [by_row[row] for row in range(len(order))]

    def _likeness(self, owner: int) -> tuple[bool, str, int]:
        """Return what adapters are sorted by: those without one come last."""
        adapter = self._adapters[owner]
        return adapter is None, "" if adapter is None else adapter.layout.sort_key, owner


def _split_tensors(tensors: Mapping[str, Tensor]) -> tuple[dict[str, Tensor], dict[str, Tensor]]:
    """Tell the R of a LoRA-XS adapter by module from head parameters by full name, PEFT's names taken off.

    Raises:
        IntegrityError: a name is not one that PEFT writes for LoRA-XS.
    """
    r, head = {}, {}
    for key, value in tensors.items():
        name = key.removeprefix(ROOT)
        if name == key:
            raise IntegrityError(f"Tensors of an adapter must be named {ROOT}..., but got {key!r}.")
        module, _, last = name.rpartition(".")
        if last == R:
            r[module] = value
        else:
            head[name] = value
    return r, head
