"""Scoring one adapter: its task's requests, computed batch by batch."""

from __future__ import annotations

from collections.abc import Callable, Iterable, Mapping, Sequence
from concurrent.futures import Executor
from dataclasses import dataclass
from typing import Any, TypeVar

import numpy as np
import numpy.typing as npt
import torch
from torch import Tensor

from loraxs_search.errors import TrialDivergedError
from loraxs_search.records import Sample, Split
from loraxs_search.tasks import PreparedTask, RowSource, eval_batches
from loraxs_search.tasks.encoded import EncodedRows
from loraxs_search.tasks.kinds import Asking, Read, Request, RowScores, Write, Written, drive
from loraxs_search.trial.forward import forward_batch
from loraxs_search.trial.generate import OnText, write
from loraxs_search.trial.shared_prompts import is_worth_sharing, prompt_groups, read_shared

EVAL_TOKENS = 4096
NUM_SAMPLES = 3  # rows that cards show
ResultT = TypeVar("ResultT")
_Compute = Callable[[npt.NDArray[np.int64]], tuple[Tensor, ...]]


def evaluate(model: torch.nn.Module, data: PreparedTask, split: Split, device: torch.device) -> dict[str, float]:
    """Return the task's metrics and the mean loss of `model` on every row of `split`.

    Rows are grouped by length and padded to the longest of their group, at most `EVAL_TOKENS` tokens a pass.

    Raises:
        TrialDivergedError: a metric or the loss is not finite.
    """
    return split_metrics(data, split, score_rows(model, data, split, np.arange(data.num_rows(split)), device))


def split_metrics(data: PreparedTask, split: Split, scores: RowScores) -> dict[str, float]:
    """Return the task's metrics and the mean loss of a whole split.

    Args:
        scores: Scores of every row of the split, in its order.
    Raises:
        TrialDivergedError: a metric or the loss is not finite.
    """
    metrics = data.kind.measure_scores(scores, data.labels(split))
    if bad := {name: value for name, value in metrics.items() if not np.isfinite(value)}:
        raise TrialDivergedError(f"`{split} metrics` must be finite, but got {bad}.")
    return metrics


def score_rows(
    model: torch.nn.Module,
    data: PreparedTask,
    split: Split,
    rows: npt.NDArray[np.int64],
    device: torch.device,
    pool: Executor | None = None,
) -> RowScores:
    """Return the answers to these rows and their losses, in their order.

    Args:
        pool: Computes batches side by side; None computes one at a time in the caller's thread.
    Raises:
        TrialDivergedError: some output is not finite.
    """
    return ask(model, data, data.kind.score(data, split, rows), device, pool)


def sample_answers(data: PreparedTask) -> Asking[list[Sample]]:
    """Yield requests, and return the first test rows with the answers to them, for people."""
    return data.kind.samples(data, "test", np.arange(min(NUM_SAMPLES, data.num_rows("test"))))


def ask(
    model: torch.nn.Module,
    data: RowSource,
    asking: Asking[ResultT],
    device: torch.device,
    pool: Executor | None = None,
    on_text: OnText | None = None,
) -> ResultT:
    """Compute the requests of a task kind until it returns its result.

    Args:
        on_text: Called with a row's number in its request and each piece of text, as it is written.
    Raises:
        TrialDivergedError: a number is not finite.
    """
    reader = _Reader(model, data, device, pool, on_text)
    result = drive({"": asking}, reader.compute)[""]
    if isinstance(result, TrialDivergedError):
        raise result
    return result


@dataclass(frozen=True)
class _Reader:
    model: torch.nn.Module
    data: RowSource
    device: torch.device
    pool: Executor | None
    on_text: OnText | None

    def compute(self, requests: Mapping[str, Request]) -> dict[str, Any]:
        return {
            key: self._read(request) if isinstance(request, Read) else self._write(request)
            for key, request in requests.items()
        }

    def _write(self, request: Write) -> Written:
        return write(self.model, request, self.data.tokenizer, on_text=self.on_text)

    def _read(self, request: Read) -> tuple[Tensor, ...]:
        source = self.data.encoded(request.source)
        if is_worth_sharing(source, request.rows):
            return self._read_shared(request, source)
        whole = source.with_prompts()

        @torch.inference_mode()
        def compute(positions: npt.NDArray[np.int64]) -> tuple[Tensor, ...]:
            batch = self.data.collate(whole, request.rows[positions]).to(self.device)
            return tuple(part.cpu() for part in request.reduce(forward_batch(self.model, batch), batch))

        batches = eval_batches(whole.lengths[request.rows], self._max_tokens)
        return in_row_order(batches, self._map(compute, batches))

    def _read_shared(self, request: Read, source: EncodedRows) -> tuple[Tensor, ...]:
        groups = prompt_groups(source, request.rows)

        @torch.inference_mode()
        def compute(positions: npt.NDArray[np.int64]) -> tuple[Tensor, ...]:
            rows = request.rows[positions]
            (outputs,) = read_shared(self.model, [source.take(rows)])
            batch = self.data.collate(source, rows).to(self.device)
            return tuple(part.cpu() for part in request.reduce(outputs, batch))

        planned = eval_batches(np.array([tokens for tokens, _ in groups]), self._max_tokens)
        batches = [np.concatenate([groups[i][1] for i in batch.tolist()]) for batch in planned]
        return in_row_order(batches, self._map(compute, batches))

    @property
    def _max_tokens(self) -> int:
        # With more and smaller batches, threads end at about the same time.
        return EVAL_TOKENS // 2 if self.pool else EVAL_TOKENS

    def _map(self, compute: _Compute, batches: Sequence[npt.NDArray[np.int64]]) -> Iterable[tuple[Tensor, ...]]:
        return (self.pool.map if self.pool else map)(compute, batches)


def in_row_order(positions: Sequence[npt.NDArray[np.int64]], parts: Iterable[tuple[Tensor, ...]]) -> tuple[Tensor, ...]:
    """Return what was computed for these positions, part by part, in the order of the rows."""
    order = torch.from_numpy(np.argsort(np.concatenate(positions)))
    return tuple(torch.cat(column)[order] for column in zip(*parts, strict=True))
