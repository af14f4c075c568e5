"""The frozen layers below the lowest adapted one: computed once for each row, skipped by every pass.

While dropout is off and no slot adapts a layer below j, what enters layer j depends only on a row's tokens. Shapes:
states (n, T, width), each row's real tokens on the left; kept without padding, (tokens, width) for each row.
"""

from __future__ import annotations

import threading
from collections.abc import Iterable, Iterator, Sequence
from contextlib import contextmanager
from typing import Any

import numpy as np
import numpy.typing as npt
import torch
from torch import Tensor, nn
from transformers import PreTrainedModel

from loraxs_search.base_model.layers import WrappedLayer
from loraxs_search.base_model.reading import close_to, dummy_inputs, readable, rounding
from loraxs_search.base_model.tokenizer import padding_side
from loraxs_search.records.codec import Split
from loraxs_search.tasks.encoded import EncodedRows, RowSource

Indices = npt.NDArray[np.int64]
# Rows of one task in a pass; those of a split may be cached, rows made for one request never are.
_Rows = tuple[RowSource, Split | EncodedRows, Indices]

CPU_BYTES, DEVICE_BYTES = 1 << 30, 4 << 30


class PrefixCache:
    """Skips the layers below the lowest adapted one, and caches their outputs on the device of the base.

    The base's layers are hidden, not changed. Full memory is no error: entries that no slot in place can use are
    dropped first, and rows that still do not fit are computed again in each pass. Passes may run in several threads;
    everything else is for one caller at a time, between passes.

    Args:
        layers: The repeated layers of `model`; None when it has no such list. Then nothing is skipped, and neither
            where rows are padded on the left.
        max_bytes: Limit of the cache; None means 1 GiB on a CPU and 4 GiB elsewhere, 0 that nothing is skipped.
    """

    def __init__(self, model: PreTrainedModel, layers: nn.ModuleList | None, max_bytes: int | None = None) -> None:
        default = CPU_BYTES if model.device.type == "cpu" else DEVICE_BYTES
        self._max_bytes = default if max_bytes is None else max_bytes
        self._can_skip = layers is not None and self._max_bytes > 0 and padding_side(model.config) == "right"
        self._model, self._layers = model, layers if layers is not None else nn.ModuleList()
        self._state = _SkipState()
        self._widths: dict[int, int] = {}  # by depth: bytes of one token's state, 0 where layers cannot be skipped
        # By depth, task and split, the oldest first: what enters the layer of that depth, by row.
        self._entries: dict[tuple[int, RowSource, Split], dict[int, Tensor]] = {}
        self._tasks: frozenset[RowSource] = frozenset()
        self.depth = 0  # how many layers passes skip
        self.num_bytes = 0  # memory of the cached rows

    def place(self, depth: int, tasks: Iterable[RowSource]) -> None:
        """Skip the layers below `depth` for rows of `tasks` from now on; the base must be as it was loaded.

        A probe checks that this changes nothing: not every base is a chain in which each layer takes one tensor from
        the one before.
        """
        self._tasks = frozenset(tasks)
        if self._can_skip and depth:
            if depth not in self._widths:
                self._widths[depth] = self._probe(depth)
            if self._widths[depth]:
                self._skip(depth)

    def remove(self) -> None:
        """Put the layers back; cached rows stay."""
        for index in range(self.depth):
            self._layers[index] = self._layers[index].get_submodule("layer")
        self.depth = 0

    def shrink(self) -> bool:
        """Empty the cache, and use at most half its size from now on: memory ran out elsewhere.

        Returns:
            Whether anything was cached.
        """
        if had_rows := self.num_bytes > 0:
            self._max_bytes, self.num_bytes = self.num_bytes // 2, 0
            self._entries.clear()
        return had_rows

    def missing(self, data: RowSource, split: Split, rows: Indices) -> Indices:
        """Return those of these rows that are not cached and will fit, ascending; none if nothing is skipped."""
        if not self.depth:
            return np.empty(0, dtype=np.int64)
        known = self._entries.setdefault((self.depth, data, split), {})
        new = np.array([row for row in np.unique(rows).tolist() if row not in known], dtype=np.int64)
        wanted = np.cumsum(data.lengths(split)[new]) * self._widths[self.depth]
        for key in list(self._entries) if len(new) else ():
            if self.num_bytes + int(wanted[-1]) <= self._max_bytes:
                break
            if key[0] != self.depth or key[1] not in self._tasks:
                self.num_bytes -= sum(states.nbytes for states in self._entries.pop(key).values())
        return new[self.num_bytes + wanted <= self._max_bytes]

    def compute(self, inputs: dict[str, Tensor], lengths: npt.NDArray[np.integer]) -> tuple[Tensor, ...]:
        """Return what enters layer j for each row, without padding.

        Args:
            inputs: What the model takes, (n, T), on its device.
            lengths: Real tokens of each row, (n,).
        """
        states = self.entering(inputs)
        packed = states.flatten(0, 1)[_token_indices(lengths, states)]
        return torch.split(packed, lengths.tolist())

    def keep(self, data: RowSource, split: Split, rows: Indices, states: Sequence[Tensor]) -> None:
        """Cache rows that were missing."""
        self._entries.setdefault((self.depth, data, split), {}).update(zip(rows.tolist(), states, strict=True))
        self.num_bytes += sum(row.nbytes for row in states)

    @torch.no_grad()
    def entering(self, inputs: dict[str, Tensor]) -> Tensor:
        """Compute what enters layer j for the model's inputs, shape (n, T, width), and nothing above."""
        self._state.stops = True
        try:
            self._model(**inputs)
        except _ReachedError as reached:
            states: Tensor = reached.args[0]
            return states
        finally:
            self._state.stops = False
        raise AssertionError("a skipped layer has let a pass through")

    @contextmanager
    def skipped(self, parts: Sequence[_Rows], inputs: dict[str, Tensor]) -> Iterator[None]:
        """Skip the layers while this thread computes a pass of these rows and inputs."""
        with self.given(self._states(parts, inputs) if self.depth else None):
            yield

    @contextmanager
    def given(self, states: Tensor | None) -> Iterator[None]:
        """Let passes of this thread begin at layer j with these states, None for the first layer."""
        self._state.states = states
        try:
            yield
        finally:
            self._state.states = None

    # ---- inside ------------------------------------------------------------------------------------------------------
    @torch.no_grad()
    def _states(self, parts: Sequence[_Rows], inputs: dict[str, Tensor]) -> Tensor:
        """Return what enters layer j, as wide as the inputs; zero in the padding, which no real token reads."""
        rows = list[Tensor | None]()
        for data, source, numbers in parts:
            kept = {} if isinstance(source, EncodedRows) else self._entries.get((self.depth, data, source), {})
            rows += [kept.get(row) for row in numbers.tolist()]
        known = [states for states in rows if states is not None]
        if not known:
            return self.entering(inputs)
        states = known[0].new_zeros(*inputs["input_ids"].shape, known[0].shape[-1])
        lengths = np.array([0 if row is None else len(row) for row in rows])
        states.flatten(0, 1).index_copy_(0, _token_indices(lengths, states), torch.cat(known))
        if new := [i for i, row in enumerate(rows) if row is None]:
            states[new] = self.entering({name: value[new] for name, value in inputs.items()})
        return states

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
    """How the current pass goes through the layers below j; each thread has its own."""

    states: Tensor | None = None  # what enters layer j; None if passes compute it
    stops = False  # whether a pass ends where that is computed


class _ReachedError(Exception):
    """Ends a forward pass early, with what enters layer j."""


class _SkippedLayer(WrappedLayer):
    """Hides a layer below depth j."""

    def __init__(self, layer: nn.Module, state: _SkipState, first: bool, last: bool) -> None:
        super().__init__(layer)
        self._state, self._first, self._last = state, first, last

    def forward(self, x: Tensor, *args: Any, **kwargs: Any) -> Tensor:
        if (states := self._state.states) is not None:
            return states if self._first else x
        y: Tensor = self.layer(x, *args, **kwargs)
        if self._last and self._state.stops:
            raise _ReachedError(y)
        return y


def _token_indices(lengths: npt.NDArray[np.integer], states: Tensor) -> Tensor:
    """Return where the real tokens of rows are among all of `states`, row after row."""
    rows, columns = np.nonzero(np.arange(states.shape[1]) < lengths[:, None])
    return torch.from_numpy(rows * states.shape[1] + columns).to(states.device)
