"""Prunes the topmost layer to what is read of it; the numbers are those of the whole layer, gradients too.

Attention still reads every token. Under a head, what follows it is computed only for the first token, which is all
that BERT's heads read. Without a head, attention's output projection and all that follows it, the residuals too, are
computed only for the M reads, as one row of M positions, (1, M, width).

There three hooks do it, for layers of the form that decoders have: x + attention(norm(x)), and then something of each
position by itself. What enters the layer is cut, so that what it adds to is; its first module, which makes what
attention reads, is given the whole of it all the same; and what enters the output projection is cut again.
"""

from __future__ import annotations

import threading
from collections.abc import Callable, Iterator
from contextlib import ExitStack, contextmanager
from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor, nn
from torch.utils.hooks import RemovableHandle
from transformers import PreTrainedModel
from transformers.pytorch_utils import Conv1D

from loraxs_search.base_model.reading import close_to, dummy_inputs, last_states, readable, rounding


class LastLayerPruning:
    """Cuts the topmost layer's states to the first token of each row, right behind its attention.

    A probe finds that module and checks that cutting changes nothing. Where it does, or there is no such module
    (decoders read the last token), nothing is cut.

    Args:
        model: The base as it was loaded.
        layers: Its repeated layers; None when it has no such list.
    """

    def __init__(self, model: PreTrainedModel, layers: nn.ModuleList | None) -> None:
        self._handle: RemovableHandle | None = None
        # None if passes of this base cannot be cut.
        self.joint = _prunable_joint(model, layers[-1]) if layers is not None else None

    def place(self) -> None:
        """Cut passes from now on."""
        if self.joint is not None and self._handle is None:
            self._handle = self.joint.register_forward_pre_hook(_first_tokens)

    @contextmanager
    def placed(self) -> Iterator[None]:
        """Cut passes for a while."""
        self.place()
        try:
            yield
        finally:
            self.remove()

    def remove(self) -> None:
        """Compute the whole layer again."""
        if self._handle is not None:
            self._handle.remove()
            self._handle = None


@torch.no_grad()
def _prunable_joint(model: PreTrainedModel, layer: nn.Module) -> nn.Module | None:
    """Return the module whose inputs can be cut; None if that would change what the base computes.

    It is the first that is given two tensors alike: attention's output and the residual.
    """
    joints: list[nn.Module] = []

    def look(module: nn.Module, args: tuple[Any, ...]) -> None:
        if len(args) == 2 and all(isinstance(arg, Tensor) and arg.dim() == 3 for arg in args):
            joints.extend([module] if args[0].shape == args[1].shape else [])

    def blot(_: nn.Module, states: tuple[Tensor, ...]) -> tuple[Tensor, ...]:
        return tuple(torch.cat([tensor[:, :1], torch.zeros_like(tensor[:, 1:])], dim=1) for tensor in states)

    try:
        inputs = dummy_inputs(model)
        with ExitStack() as hooks:
            for module in layer.modules():
                hooks.enter_context(module.register_forward_pre_hook(look))
            whole = readable(model, inputs)
        # First with the other tokens blotted out: a head that reads one of them would ask a GPU for what is not there.
        for change in (blot, _first_tokens) if joints else ():
            with joints[0].register_forward_pre_hook(change):
                if not close_to(readable(model, inputs), whole, rounding(model)):
                    return None
    except Exception:  # noqa: BLE001  # whatever a foreign base does: its layer is computed whole
        return None
    return joints[0] if joints else None


def _first_tokens(_: nn.Module, states: tuple[Tensor, ...]) -> tuple[Tensor, ...]:
    return tuple(tensor[:, :1].contiguous() for tensor in states)


_Arguments = tuple[tuple[Any, ...], dict[str, Any]]


class ReadPruning:
    """Cuts passes of the threads that say what they read; all others are computed whole.

    A probe finds the modules and checks that cutting changes nothing. Where it does, nothing is cut: layers that give
    attention and the rest the same input, or whose list is not the base's only one.

    Args:
        model: The base as it was loaded.
        layers: Its repeated layers; None when it has no such list.
    """

    def __init__(self, model: PreTrainedModel, layers: nn.ModuleList | None) -> None:
        self._layers, self._pass = layers, _Pass()
        self._handles: list[RemovableHandle] = []
        self._places = self._probe(model, layers[-1]) if layers is not None else None

    def place(self) -> None:
        """Let passes be cut from now on. Modules that replace the base's own are in place already."""
        if self._places is not None and self._layers is not None and not self._handles:
            self._handles = self._hook(self._layers[-1], self._places)

    def remove(self) -> None:
        """Take the hooks off."""
        for handle in self._handles:
            handle.remove()
        self._handles = []

    @contextmanager
    def reading(self, reads: Tensor, width: int, on_cut: Callable[[], None]) -> Iterator[bool]:
        """Cut this thread's passes to these reads; yield whether they are.

        Args:
            reads: Row and column of each, (M, 2).
            width: T, the tokens of each row, padding included.
            on_cut: Called in each pass once what follows has the M reads for rows.
        """
        if not self._handles:
            yield False
            return
        self._pass.begin(reads[:, 0] * width + reads[:, 1], on_cut)
        try:
            yield True
        finally:
            self._pass.end()

    # ---- inside ------------------------------------------------------------------------------------------------------
    def _hook(self, layer: nn.Module, places: _Places) -> list[RemovableHandle]:
        hooks = {"": self._pass.enter, places.first: self._pass.give_whole, places.projection: self._pass.cut}
        return [
            layer.get_submodule(name).register_forward_pre_hook(hook, with_kwargs=True) for name, hook in hooks.items()
        ]

    @torch.no_grad()
    def _probe(self, model: PreTrainedModel, layer: nn.Module) -> _Places | None:
        """Return where to cut; None if that would change what leaves the body."""
        try:
            inputs = dummy_inputs(model)
            whole, first, linears = _look(model, layer, inputs)
        except Exception:  # noqa: BLE001  # whatever a foreign base does: its layer is computed whole
            return None
        reads = torch.tensor([[0, 1], [0, 3], [0, 4], [1, 0], [1, 2]], device=whole.device)
        expected = whole[reads[:, 0], reads[:, 1]]
        num_positions = len(whole[..., 0].flatten())
        for index, projection in enumerate(linears):  # the first that works leaves out most
            places = _Places(first, projection)
            states, given = self._cut_states(places, model, layer, inputs, reads, linears)
            sizes = [num_positions] * index + [len(reads)] * (len(linears) - index)
            if given == sizes and close_to(states, expected, rounding(model)):
                return places
        return None

    def _cut_states(
        self,
        places: _Places,
        model: PreTrainedModel,
        layer: nn.Module,
        inputs: dict[str, Tensor],
        reads: Tensor,
        linears: list[str],
    ) -> tuple[Tensor, list[int]]:
        """Return what leaves the body when it is cut, (M, width), and how many positions each linear is given."""
        given: list[int] = []
        self._handles = self._hook(layer, places)
        try:
            with ExitStack() as hooks, self.reading(reads, inputs["input_ids"].shape[1], lambda: None):
                for name in linears:
                    count = lambda _, args: given.append(args[0][..., 0].numel())  # noqa: E731
                    hooks.enter_context(layer.get_submodule(name).register_forward_pre_hook(count))
                return last_states(model, inputs).flatten(0, -2), given
        except Exception:  # noqa: BLE001  # a cut in the wrong place fits no further computation
            return reads.new_empty(0), []
        finally:
            self.remove()


@dataclass(frozen=True)
class _Places:
    """Names of modules within the layer: what the whole states go through first, and attention's output projection."""

    first: str
    projection: str


class _Pass(threading.local):
    """The pass that a thread computes; its methods but the first two are hooks before modules."""

    def __init__(self) -> None:
        self._reads: Tensor | None = None  # (M,), into the n T positions
        self._on_cut: Callable[[], None] = lambda: None
        self._whole = self._part = torch.empty(0)

    def begin(self, reads: Tensor, on_cut: Callable[[], None]) -> None:
        self._reads, self._on_cut = reads, on_cut

    def end(self) -> None:
        self._reads, self._on_cut = None, lambda: None
        self._whole = self._part = torch.empty(0)

    def enter(self, _: nn.Module, args: tuple[Any, ...], kwargs: dict[str, Any]) -> _Arguments | None:
        """Cut what enters the layer, (n, T, width)."""
        if self._reads is None:
            return None
        self._whole = _entering(args, kwargs)
        self._part = self._at_reads(self._whole, self._reads)
        return _replaced(args, kwargs, self._whole, self._part)

    def give_whole(self, _: nn.Module, args: tuple[Any, ...], kwargs: dict[str, Any]) -> _Arguments | None:
        return None if self._reads is None else _replaced(args, kwargs, self._part, self._whole)

    def cut(self, _: nn.Module, args: tuple[Any, ...], kwargs: dict[str, Any]) -> _Arguments | None:
        """Cut what attention gives, (n, T, heads d)."""
        if self._reads is None:
            return None
        self._on_cut()
        return _replaced(args, kwargs, args[0], self._at_reads(args[0], self._reads))

    @staticmethod
    def _at_reads(states: Tensor, reads: Tensor) -> Tensor:
        return states.flatten(0, -2).index_select(0, reads)[None]  # (1, M, width)


def _replaced(args: tuple[Any, ...], kwargs: dict[str, Any], old: Tensor, new: Tensor) -> _Arguments:
    swap = {name: new if value is old else value for name, value in kwargs.items()}
    return tuple(new if value is old else value for value in args), swap


def _look(model: PreTrainedModel, layer: nn.Module, inputs: dict[str, Tensor]) -> tuple[Tensor, str, list[str]]:
    """Return what leaves the body, and of the layer the module that is given first what enters it, and its linears.

    Linear modules come in the order of their calls.
    """
    entering, called, linears = list[Tensor](), list[str](), list[str]()

    def look_at(name: str, module: nn.Module) -> Any:
        def look(_: nn.Module, args: tuple[Any, ...], kwargs: dict[str, Any]) -> None:
            if not name:
                entering.append(_entering(args, kwargs))
            elif any(value is entering[0] for value in (*args, *kwargs.values())):
                called.append(name)
            if isinstance(module, (nn.Linear, Conv1D)):
                linears.append(name)

        return look

    with ExitStack() as hooks:
        for name, module in layer.named_modules():
            hooks.enter_context(module.register_forward_pre_hook(look_at(name, module), with_kwargs=True))
        states = last_states(model, inputs)
    return states, called[0], linears


def _entering(args: tuple[Any, ...], kwargs: dict[str, Any]) -> Tensor:
    states: Tensor = args[0] if args else kwargs["hidden_states"]
    return states
