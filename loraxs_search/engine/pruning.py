"""Prunes the topmost layer to what is read of it; the numbers are those of the whole layer, gradients too.

Attention still reads every token. Its output projection and all that follows, the residuals too, are computed only for
the first token of each row where a head reads that one, (n, 1, width), and without a head only for the M reads, as one
row of M positions, (1, M, width).

Three hooks do it, for layers of the form x + attention(x), with norms or without, and then something of each position
by itself. What enters the layer is cut, so that what attention's output is added to is; the module that makes what
attention reads is given the whole of it all the same; and what enters the output projection is cut again.
"""

from __future__ import annotations

import itertools
import threading
from collections.abc import Callable, Iterator
from contextlib import ExitStack, contextmanager, suppress
from typing import Any

import torch
from torch import Tensor, nn
from torch.utils.hooks import RemovableHandle
from transformers import PreTrainedModel
from transformers.pytorch_utils import Conv1D

from loraxs_search.base_model.layers import head_names
from loraxs_search.base_model.reading import close_to, dummy_inputs, last_states, readable, rounding

_Arguments = tuple[tuple[Any, ...], dict[str, Any]]


class LastLayerPruning:
    """Cuts passes while it is in place: under a head all of them, else those of the threads that say what they read.

    A probe finds the modules and checks that cutting changes nothing. Where it does, nothing is cut: heads that read
    other tokens, layers that give attention and the rest the same input, or whose list is not the base's only one.

    Args:
        model: The base as it was loaded, or with adapters on its layers.
        layers: Its repeated layers; None when it has no such list.
    """

    def __init__(self, model: PreTrainedModel, layers: nn.ModuleList | None) -> None:
        self._has_head, self._pass = bool(head_names(model)), _Pass()
        self._handles: list[RemovableHandle] = []
        # The topmost layer, and the names in it of the module that is given the whole and of the projection.
        self._places: tuple[nn.Module, str, str] | None = None
        if layers is not None:
            with suppress(Exception):  # whatever a foreign base does: its layer is computed whole
                self._places = self._probe(model, layers[-1])

    def place(self) -> None:
        """Let passes be cut from now on. Modules that replace the base's own are in place already."""
        if self._places is not None and not self._handles:
            self._hook(*self._places)

    def remove(self) -> None:
        """Compute the whole layer again."""
        for handle in self._handles:
            handle.remove()
        self._handles = []

    @contextmanager
    def placed(self) -> Iterator[None]:
        """Cut passes for a while."""
        self.place()
        try:
            yield
        finally:
            self.remove()

    @contextmanager
    def reading(self, reads: Tensor | None, width: int, on_cut: Callable[[], None]) -> Iterator[bool]:
        """Cut this thread's passes to these reads; yield whether nothing but the reads leaves the body.

        Args:
            reads: Row and column of each, (M, 2); None if a head reads.
            width: T, the tokens of each row, padding included.
            on_cut: Called in each pass once what follows has the M reads for rows.
        """
        if reads is None or self._has_head or not self._handles:
            yield False
            return
        self._pass.reads, self._pass.on_cut = reads[:, 0] * width + reads[:, 1], on_cut
        try:
            yield True
        finally:
            vars(self._pass).clear()

    # ---- inside ------------------------------------------------------------------------------------------------------
    def _hook(self, layer: nn.Module, first: str, projection: str) -> None:
        own = self._pass

        def cut(states: Tensor) -> Tensor:  # (n, T, width)
            if self._has_head:
                return states[:, :1].contiguous()
            return states if own.reads is None else states.flatten(0, -2).index_select(0, own.reads)[None]

        def enter(_: nn.Module, args: tuple[Any, ...], kwargs: dict[str, Any]) -> _Arguments:
            own.whole = _entering(args, kwargs)
            own.part = cut(own.whole)
            return _replaced(args, kwargs, own.whole, own.part)

        def give_whole(_: nn.Module, args: tuple[Any, ...], kwargs: dict[str, Any]) -> _Arguments:
            return _replaced(args, kwargs, own.part, own.whole)

        def project(_: nn.Module, args: tuple[Any, ...], kwargs: dict[str, Any]) -> _Arguments:
            if own.on_cut is not None:
                own.on_cut()
            own.whole = own.part = None  # a pass under a head does not say when it ends
            return _replaced(args, kwargs, args[0], cut(args[0]))

        for name, hook in {"": enter, first: give_whole, projection: project}.items():
            self._handles.append(layer.get_submodule(name).register_forward_pre_hook(hook, with_kwargs=True))

    @torch.no_grad()
    def _probe(self, model: PreTrainedModel, layer: nn.Module) -> tuple[nn.Module, str, str] | None:
        """Return where to cut; None if that would change what is read."""
        inputs = dummy_inputs(model)
        compute, entering = readable if self._has_head else last_states, list[Tensor]()
        takers, linears = list[str](), list[str]()  # modules that are given what enters, and linear ones, as called

        def look_at(name: str, is_linear: bool) -> Callable[..., None]:
            def look(_: nn.Module, args: tuple[Any, ...], kwargs: dict[str, Any]) -> None:
                if not name:
                    entering.append(_entering(args, kwargs))
                elif any(value is entering[0] for value in (*args, *kwargs.values())):
                    takers.append(name)
                if is_linear:
                    linears.append(name)

            return look

        with ExitStack() as hooks:
            adapted: tuple[str, ...] = ()  # what stands inside an adapter's layer may be gone later
            for name, module in layer.named_modules():
                if name.startswith(adapted):
                    continue
                is_adapted = hasattr(module, "base_layer")
                adapted += (f"{name}.",) if is_adapted else ()
                look = look_at(name, is_adapted or isinstance(module, (nn.Linear, Conv1D)))
                hooks.enter_context(module.register_forward_pre_hook(look, with_kwargs=True))
            whole = compute(model, inputs)
        reads = torch.tensor([[0, 1], [0, 3], [0, 4], [1, 0], [1, 2]], device=whole.device)
        num_rows, num_positions = inputs["input_ids"].shape[0], inputs["input_ids"].numel()
        expected, num_cut = (whole, num_rows) if self._has_head else (whole[reads[:, 0], reads[:, 1]], len(reads))
        if self._has_head:  # first with the other tokens blotted out: to read what is not there would end a GPU's work
            blot = lambda _, __, out: torch.cat([out[:, :1], torch.zeros_like(out[:, 1:])], dim=1)  # noqa: E731
            with layer.register_forward_hook(blot):
                if not close_to(compute(model, inputs), whole, rounding(model)):
                    return None
        # A module within the first may be the one that the residual passes by; the first projection leaves out most.
        for (index, projection), first in itertools.product(enumerate(linears), takers[:2]):
            given: list[int] = []
            count = lambda _, args: given.append(args[0][..., 0].numel())  # noqa: B023, E731
            self._hook(layer, first, projection)
            try:
                with ExitStack() as hooks, self.reading(reads, inputs["input_ids"].shape[1], lambda: None):
                    for name in linears:
                        hooks.enter_context(layer.get_submodule(name).register_forward_pre_hook(count))
                    states = compute(model, inputs).flatten(0, -2)
            except Exception:  # noqa: BLE001  # a cut in the wrong place fits no further computation
                continue
            finally:
                self.remove()
            sizes = [num_positions] * index + [num_cut] * (len(linears) - index)
            if given == sizes and close_to(states, expected, rounding(model)):
                return layer, first, projection
        return None


class _Pass(threading.local):
    """The pass that a thread computes: its reads, (M,), into the n T positions, and what enters the layer."""

    reads: Tensor | None = None
    on_cut: Callable[[], None] | None = None
    whole: Tensor | None = None
    part: Tensor | None = None


def _replaced(args: tuple[Any, ...], kwargs: dict[str, Any], old: Tensor | None, new: Tensor | None) -> _Arguments:
    swap = {name: new if value is old else value for name, value in kwargs.items()}
    return tuple(new if value is old else value for value in args), swap


def _entering(args: tuple[Any, ...], kwargs: dict[str, Any]) -> Tensor:
    states: Tensor = args[0] if args else kwargs["hidden_states"]
    return states
