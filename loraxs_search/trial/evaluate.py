"""Scoring a model on a split."""

from __future__ import annotations

import numpy as np
import torch

from loraxs_search.errors import TrialDivergedError
from loraxs_search.records import Split
from loraxs_search.tasks import PreparedTask, eval_batches

EVAL_TOKENS = 4096


@torch.inference_mode()
def evaluate(model: torch.nn.Module, data: PreparedTask, split: Split, device: torch.device) -> dict[str, float]:
    """Return the task's metrics and the mean loss of `model` on every row of `split`.

    Rows are grouped by length and padded to the longest of their group, at most `EVAL_TOKENS` tokens a pass.

    Raises:
        TrialDivergedError: a metric or the loss is not finite.
    """
    logits, labels, losses = [], [], []
    for rows in eval_batches(data.lengths(split), EVAL_TOKENS):
        batch = data.collate(split, rows)
        out = model(**{k: v.to(device) for k, v in batch.inputs.items()}).logits.float()
        losses.append(data.head.loss(out, batch.labels.to(device)).cpu().numpy())
        logits.append(out.cpu())
        labels.append(batch.labels.numpy())
    metrics = data.head.score(data.head.predictions(torch.cat(logits)), np.concatenate(labels))
    metrics = {name: metrics[name] for name in data.task.metrics} | {"loss": float(np.concatenate(losses).mean())}
    if bad := {k: v for k, v in metrics.items() if not np.isfinite(v)}:
        raise TrialDivergedError(f"`{split} metrics` must be finite, but got {bad}.")
    return metrics
