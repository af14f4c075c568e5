"""Skips the lowest layers of a base: computes their outputs alone, or starts a pass from known outputs."""

from __future__ import annotations

import threading
from collections.abc import Iterator
from contextlib import contextmanager
from typing import Any

import torch
from torch import Tensor, nn
from transformers import PreTrainedModel

from loraxs_search.base_model import close_to, dummy_inputs, readable, rounding


class LayerSkipping:
    """Lets passes skip the layers below a depth j. The base's layers are hidden, not changed.

    Args:
        layers: The repeated layers of `model`.
    """

    def __init__(self, model: PreTrainedModel, layers: nn.ModuleList) -> None:
        self._model, self._layers = model, layers
        self._state = _SkipState()
        self._widths: dict[int, int] = {}  # by depth: bytes of one token's state, 0 where layers cannot be skipped
        self.depth = 0

    @property
    def token_bytes(self) -> int:
        """Memory of what enters layer j for one token."""
        return self._widths[self.depth]

    def place(self, depth: int) -> None:
        """Skip the layers below `depth` if that changes nothing; the base must be as it was loaded.

        A probe checks that: not every base is a chain in which each layer takes one tensor from the one before.
        """
        if depth not in self._widths:
            self._widths[depth] = self._probe(depth)
        if self._widths[depth]:
            self._skip(depth)

    def remove(self) -> None:
        """Put the layers back."""
        for index in range(self.depth):
            self._layers[index] = self._layers[index].get_submodule("layer")
        self.depth = 0

    @torch.no_grad()
    def entering(self, inputs: dict[str, Tensor]) -> Tensor:
        """Compute what enters layer j for the model's inputs, shape (n, T, width), and nothing above."""
        try:
            self._model(**inputs)
        except _Reached as reached:
            return reached.states
        raise AssertionError("a skipped layer has let a pass through")

    @contextmanager
    def given(self, states: Tensor) -> Iterator[None]:
        """Let passes of this thread begin at layer j with these states."""
        self._state.states = states
        try:
            yield
        finally:
            self._state.states = None

    @contextmanager
    def paused(self) -> Iterator[None]:
        """Let passes of this thread compute every layer."""
        self._state.paused = True
        try:
            yield
        finally:
            self._state.paused = False

    # ---- inside ------------------------------------------------------------------------------------------------------
    def _skip(self, depth: int) -> None:
        for index in range(depth):
            self._layers[index] = _SkippedLayer(self._layers[index], self._state, index == 0, index == depth - 1)
        self.depth = depth

    @torch.no_grad()
    def _probe(self, depth: int) -> int:
        """Return the bytes of one token's state if two dummy rows have the same outputs with layers skipped, else 0."""
        try:
            inputs = dummy_inputs(self._model)
        except ValueError:
            return 0
        real = inputs["attention_mask"].bool()
        left: list[Tensor] = []
        hook = self._layers[-1].register_forward_hook(lambda _layer, _args, out: left.append(out[real]))
        try:
            whole = readable(self._model, inputs)
            self._skip(depth)
            states = self.entering(inputs) * real[..., None]  # padding is not cached
            with self.given(states):
                skipped, limit = readable(self._model, inputs), rounding(self._model)
                same = close_to(skipped, whole, limit) and close_to(left[1], left[0], limit)
            return states[0, 0].nbytes if same else 0
        except Exception:  # noqa: BLE001  # an unknown base may raise anything: it is computed in full
            return 0
        finally:
            hook.remove()
            self.remove()


class _SkipState(threading.local):
    """What enters layer j in the current pass, None where it must be computed; each thread has its own.

    Args:
        paused: Whether no layer is skipped, as where a cache needs the keys and values of all.
    """

    states: Tensor | None = None
    paused = False


class _Reached(Exception):  # noqa: N818  # it ends a forward pass early
    def __init__(self, states: Tensor) -> None:
        self.states = states


class _SkippedLayer(nn.Module):
    """Hides a layer below depth j."""

    def __init__(self, layer: nn.Module, state: _SkipState, first: bool, last: bool) -> None:
        super().__init__()
        self.layer = layer
        self._state, self._first, self._last = state, first, last

    def forward(self, x: Tensor, *args: Any, **kwargs: Any) -> Tensor:
        if self._state.paused:
            out: Tensor = self.layer(x, *args, **kwargs)
            return out
        if (states := self._state.states) is not None:
            return states if self._first else x
        y: Tensor = self.layer(x, *args, **kwargs)
        if self._last:
            raise _Reached(y)
        return y

    def __getattr__(self, name: str) -> Any:
        """Answer for the layer inside: some models ask their layers what kind they are."""
        try:
            return super().__getattr__(name)
        except AttributeError:
            return getattr(super().__getattr__("layer"), name)
