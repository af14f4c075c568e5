"""A base with adapters on it, as the engine computes it: whose adapters rows have, and which layers passes may skip."""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import AbstractContextManager, contextmanager, nullcontext
from typing import Any, cast

import numpy as np
import numpy.typing as npt
import torch
from peft import PeftModel
from torch import Tensor, nn
from transformers import PreTrainedModel

from loraxs_search.base_model.head import head_names
from loraxs_search.engine.prefix_cache import PrefixCache
from loraxs_search.engine.rows import PassContext, RowMap

Owners = npt.NDArray[np.integer]  # whose adapter each row has, (n,), by numbers that the base knows


def base_of(model: nn.Module) -> PreTrainedModel:
    """Return the base that a model is, or that carries its adapters."""
    return cast("PreTrainedModel", model.get_base_model() if isinstance(model, PeftModel) else model)


class AdaptedBase:
    """A base whose rows all have one adapter, as PEFT puts it on, or none. Subclasses know many.

    Several threads may compute passes at the same time; `begin` and `checkpoint_gradients` are called between passes.

    Args:
        model: The base as its task loads it, with or without adapters on it.
        context: Where adapted layers find the rows of their pass; None if all rows have one adapter.
    """

    prefix: PrefixCache | None = None

    def __init__(self, model: nn.Module, context: PassContext[Any] | None = None) -> None:
        self.model, self.context = model, context

    @property
    def device(self) -> torch.device:
        """The device of the base."""
        return next(self.model.parameters()).device

    @property
    def shares_beginnings(self) -> bool:
        """Whether what all rows of one request begin with is computed once; under a head, rows are read whole."""
        return not head_names(base_of(self.model))

    def begin(self) -> None:
        """Read the adapters' current numbers, and set gradients to zero."""

    def row_map(self, owners: Owners) -> RowMap[Any] | None:
        """Return the rows of a pass; those of one owner stand side by side."""
        return None

    def computing(self, row_map: RowMap[Any] | None, worker: int = 0) -> AbstractContextManager[None]:
        """Set the rows of the pass that this thread computes, until the context ends."""
        if self.context is None or row_map is None:
            return nullcontext()
        return self.context.computing(row_map, worker)

    @contextmanager
    def computing_whole(self, row_map: RowMap[Any] | None, worker: int = 0) -> Iterator[None]:
        """The same for passes that skip no layer, since a cache needs the keys and values of all."""
        with self.prefix.paused() if self.prefix else nullcontext(), self.computing(row_map, worker):
            yield

    @contextmanager
    def reading(self, reads: Tensor | None, width: int, owners: Owners) -> Iterator[bool]:
        """Compute no more of the topmost layer than this thread's pass reads, where that can be; yield whether it is.

        Args:
            reads: Row and column of each read, (M, 2); None if a head reads.
            width: T, the tokens of each row, padding included.
            owners: Whose each read is, (M,).
        """
        yield False

    def checkpoint_gradients(self) -> bool:
        """Compute layers again in backward from now on, to save memory; return whether that is new and possible."""
        return False
