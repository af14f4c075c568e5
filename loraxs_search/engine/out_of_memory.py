"""When memory runs out: how devices say so, what a user can do, and checkpointing, which takes time for memory.

With gradient checkpointing, layers keep only their input, and are computed again when backward reaches them: a third
more time, and of a pass only one layer's activations at a time. transformers' own does this in training mode only,
which would turn dropout on, and knows nothing of our row maps.
"""

from __future__ import annotations

from contextlib import nullcontext
from functools import partial
from typing import Any

import torch
from torch import nn
from torch.utils.checkpoint import checkpoint

from loraxs_search.engine.layers import PassContext, WrappedLayer
from loraxs_search.errors import UsageError

# What to catch; the CPU's allocator raises a bare RuntimeError.
MEMORY_ERRORS = (torch.OutOfMemoryError, MemoryError, RuntimeError)


def is_out_of_memory(error: BaseException) -> bool:
    """Whether one of `MEMORY_ERRORS` means that memory ran out."""
    return isinstance(error, (torch.OutOfMemoryError, MemoryError)) or "can't allocate memory" in str(error)


class RowTooLongError(UsageError):
    """Memory does not hold a row, with whatever else must be there."""


def row_too_long(longest: int) -> RowTooLongError:
    """Return the error of a row that memory does not hold, of so many tokens."""
    return RowTooLongError(
        f"Memory must hold a pass of one row, but it ran out with a row of {longest} tokens.",
        hint=f"lower the task's `max_length` below {longest}, set `search.precision` to bfloat16, or use a device with"
        " more memory",
    )


def generation_too_long(num_tokens: int) -> RowTooLongError:
    """Return the error of a prompt that memory does not hold with what is written behind it."""
    return RowTooLongError(
        f"Memory must hold a prompt with what is written behind it, but it ran out with one of {num_tokens} tokens in"
        " all.",
        hint="lower the task's `max_length` or its `generation.max_new_tokens`, set `search.precision` to bfloat16, or"
        " use a device with more memory",
    )


class GradientCheckpointing:
    """Makes passes with gradients compute the repeated layers twice; what they compute stays the same.

    Layers below the lowest adapted one keep nothing for backward anyway. The topmost one is not touched: backward
    begins there, so it would gain nothing, and what is pruned of it may differ from pass to pass.

    Args:
        layers: The base's repeated layers; None when it has no such list, and then nothing is done.
        context: Where adapted layers find the rows of their pass; None if all rows have one adapter.
    """

    def __init__(self, layers: nn.ModuleList | None, context: PassContext[Any] | None = None) -> None:
        self._layers, self._context = layers, context
        self._placed: list[int] = []
        self.is_on = False

    def turn_on(self) -> bool:
        """Checkpoint from the next `place` on; return whether that is new and possible."""
        new = not self.is_on and self._layers is not None and len(self._layers) > 1
        self.is_on = self.is_on or new
        return new

    def place(self, lowest: int) -> None:
        """Wrap the layers from `lowest` on if checkpointing is on; adapted layers must be in place already."""
        if self._layers is None or not self.is_on:
            return
        for index in range(lowest, len(self._layers) - 1):
            self._layers[index] = _CheckpointedLayer(self._layers[index], self._context)
            self._placed.append(index)

    def remove(self) -> None:
        """Put the layers back."""
        for index in self._placed:
            assert self._layers is not None  # something was placed
            self._layers[index] = self._layers[index].get_submodule("layer")
        self._placed.clear()


class _CheckpointedLayer(WrappedLayer):
    """Computes a layer again in backward."""

    def __init__(self, layer: nn.Module, context: PassContext[Any] | None) -> None:
        super().__init__(layer)
        self._context = context

    def forward(self, *args: Any, **kwargs: Any) -> Any:
        if not torch.is_grad_enabled():
            return self.layer(*args, **kwargs)
        # What sets the rows of this thread's pass again.
        own = self._context
        computing = nullcontext if own is None else partial(own.computing, own.row_map, own.worker)

        def compute(*args: Any, **kwargs: Any) -> Any:
            # The second time backward calls this, after the pass, and on an accelerator in another thread.
            with computing():
                return self.layer(*args, **kwargs)

        # Nothing is drawn at random: dropout is off.
        return checkpoint(compute, *args, use_reentrant=False, preserve_rng_state=False, **kwargs)
