"""One forward pass: rows in, and what their task reads of them out."""

from __future__ import annotations

from typing import cast

import torch
from peft import PeftModel
from torch import Tensor
from transformers import PreTrainedModel

from loraxs_search.base_model import last_states, projection
from loraxs_search.tasks import Batch
from loraxs_search.tasks.kinds import PassOutputs


def forward(
    model: torch.nn.Module, inputs: dict[str, Tensor], reads: Tensor | None, *, is_cut: bool = False
) -> PassOutputs:
    """Compute rows, and no logits where only hidden states are read.

    Args:
        model: A base as its task loads it, with or without adapters on it.
        inputs: What the model takes, (n, T), on its device.
        reads: Row and column of each read, (M, 2); None where the base's head reads each row.
        is_cut: Whether nothing but the reads leaves the body, (1, M, width).
    """
    if reads is None:
        return PassOutputs(model(**inputs).logits.float())
    base = cast("PreTrainedModel", model.get_base_model() if isinstance(model, PeftModel) else model)
    states = last_states(base, inputs)
    return PassOutputs(states[0] if is_cut else states[reads[:, 0], reads[:, 1]], projection(base))


def forward_batch(model: torch.nn.Module, batch: Batch) -> PassOutputs:
    """Compute the rows of a batch that is on the model's device."""
    return forward(model, batch.inputs, batch.reads)
