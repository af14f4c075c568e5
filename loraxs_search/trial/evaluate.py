"""Scoring a model on a split."""

from __future__ import annotations

from concurrent.futures import Executor

import numpy as np
import numpy.typing as npt
import torch
from torch import Tensor

from loraxs_search.errors import TrialDivergedError
from loraxs_search.records import Split
from loraxs_search.tasks import PreparedTask, eval_batches
from loraxs_search.tasks.metrics import Values

EVAL_TOKENS = 4096


def evaluate(model: torch.nn.Module, data: PreparedTask, split: Split, device: torch.device) -> dict[str, float]:
    """Return the task's metrics and the mean loss of `model` on every row of `split`.

    Rows are grouped by length and padded to the longest of their group, at most `EVAL_TOKENS` tokens a pass.

    Raises:
        TrialDivergedError: a metric or the loss is not finite.
    """
    return answer(model, data, split, device)[0]


def answer(
    model: torch.nn.Module,
    data: PreparedTask,
    split: Split,
    device: torch.device,
    pool: Executor | None = None,
) -> tuple[dict[str, float], Values]:
    """Return what `evaluate` returns, and the answer to each row, shape (N,), in the split's order.

    Args:
        pool: Computes batches side by side; None computes one at a time in the caller's thread.
    Raises:
        TrialDivergedError: a metric or the loss is not finite.
    """
    predictions, losses = answer_rows(model, data, split, np.arange(data.num_rows(split)), device, pool)
    metrics = data.head.score(predictions, data.labels(split))
    metrics = {name: metrics[name] for name in data.task.metrics} | {"loss": float(losses.mean())}
    if bad := {k: v for k, v in metrics.items() if not np.isfinite(v)}:
        raise TrialDivergedError(f"`{split} metrics` must be finite, but got {bad}.")
    return metrics, predictions


def answer_rows(
    model: torch.nn.Module,
    data: PreparedTask,
    split: Split,
    rows: npt.NDArray[np.int64],
    device: torch.device,
    pool: Executor | None = None,
) -> tuple[Values, npt.NDArray[np.float32]]:
    """Return the answer to each of these rows, and its loss, both of shape (rows,), in their order.

    Raises:
        TrialDivergedError: some logit is not finite.
    """

    @torch.inference_mode()
    def score(positions: npt.NDArray[np.int64]) -> tuple[Tensor, npt.NDArray[np.float32]]:
        batch = data.collate(split, rows[positions])
        out = model(**{k: v.to(device) for k, v in batch.inputs.items()}).logits.float()
        return out.cpu(), data.head.loss(out, batch.labels.to(device)).cpu().numpy()

    # Of more and smaller batches no thread is the last for long.
    batches = eval_batches(data.lengths(split)[rows], EVAL_TOKENS // 2 if pool else EVAL_TOKENS)
    logits, losses = zip(*(pool.map if pool else map)(score, batches), strict=True)
    order = np.argsort(np.concatenate(batches))
    return data.head.predictions(torch.cat(logits))[order], np.concatenate(losses)[order]
