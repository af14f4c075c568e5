"""The gradient of a lone trial's batch: of one pass, or of as many as memory needs."""

from __future__ import annotations

import logging
from collections.abc import Iterator, Sequence
from typing import cast

import numpy as np
import numpy.typing as npt
import torch
from peft import PeftModel
from torch import Tensor, nn
from transformers import PreTrainedModel

from loraxs_search.base_model import repeated_layers
from loraxs_search.tasks import PreparedTask
from loraxs_search.trial.checkpointing import GradientCheckpointing
from loraxs_search.trial.forward import forward_batch
from loraxs_search.trial.out_of_memory import MEMORY_ERRORS, is_out_of_memory, row_too_long

log = logging.getLogger(__name__)
Indices = npt.NDArray[np.int64]


class BatchGradient:
    """Computes gradients of a model's trained parameters.

    Where memory runs out, a batch is computed in twice as many passes, from then on; and where one row is too much, the
    layers are computed again in backward.
    """

    def __init__(
        self, model: PeftModel | PreTrainedModel, parameters: Sequence[Tensor], data: PreparedTask, device: torch.device
    ) -> None:
        self._model, self._parameters, self._data, self._device = model, parameters, data, device
        self._checkpointing = GradientCheckpointing(_layers(model))
        self._num_passes = 1

    def compute(self, rows: Indices) -> tuple[float, int]:
        """Add the gradient of the mean loss of train rows; return that loss, and the rows' real tokens.

        Raises:
            UsageError: memory does not hold one row.
        """
        while True:
            try:
                with self._checkpointing.placed():
                    return self._sum(rows)
            except MEMORY_ERRORS as error:
                if not is_out_of_memory(error):
                    raise
                for parameter in self._parameters:
                    parameter.grad = None
                if not self._save_memory(len(rows)):
                    raise row_too_long(int(self._data.lengths("train")[rows].max())) from error
            torch.cuda.empty_cache()

    # ---- inside ------------------------------------------------------------------------------------------------------
    def _sum(self, rows: Indices) -> tuple[float, int]:
        count = int(self._data.encoded("train").counts(rows).sum())
        loss, num_tokens = 0.0, 0
        for part in self._passes(rows):
            batch = self._data.collate("train", part).to(self._device)
            own = self._data.kind.loss(forward_batch(self._model, batch), batch).sum() / count
            own.backward()  # type: ignore[no-untyped-call]
            loss, num_tokens = loss + float(own.detach()), num_tokens + batch.num_tokens
        return loss, num_tokens

    def _passes(self, rows: Indices) -> Iterator[Indices]:
        if self._num_passes == 1:
            yield rows
            return
        by_length = rows[np.argsort(self._data.lengths("train")[rows], kind="stable")]
        yield from np.array_split(by_length, min(self._num_passes, len(rows)))

    def _save_memory(self, num_rows: int) -> bool:
        """Do what makes the next try need less memory; return False where there is nothing left to do."""
        if self._num_passes < num_rows:
            self._num_passes *= 2
            log.warning("Memory ran out; a batch takes %d passes from now on.", min(self._num_passes, num_rows))
            return True
        if self._checkpointing.turn_on():
            self._num_passes = 1  # a row takes much less now
            log.warning("Memory ran out with one row; layers are computed again in backward from now on.")
            return True
        return False


def _layers(model: PeftModel | PreTrainedModel) -> nn.ModuleList | None:
    """Return the layers that the base repeats; None where it has several lists of them or none."""
    base = cast("PreTrainedModel", model.get_base_model() if isinstance(model, PeftModel) else model)
    name = repeated_layers(base, (name for name, _ in base.named_modules()))
    return cast("nn.ModuleList", base.get_submodule(name)) if name else None
