"""Scoring one adapter: its task's requests, computed batch by batch."""

from __future__ import annotations

from collections.abc import Iterable, Mapping, Sequence
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
from loraxs_search.trial.decoding import Decoding
from loraxs_search.trial.forward import forward_batch
from loraxs_search.trial.generate import OnText, write
from loraxs_search.trial.shared_beginning import beginning_of
from loraxs_search.trial.shared_prompts import is_worth_sharing, prompt_groups, read_shared

EVAL_TOKENS = 4096
NUM_SAMPLES = 3  # rows that cards show
ResultT = TypeVar("ResultT")
Indices = npt.NDArray[np.int64]


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
        begun, rows = self._begun(self.data.encoded(request.source).take(request.rows))
        shares = is_worth_sharing(rows, np.arange(len(rows)))
        if not shares:
            rows = rows.with_prompts()

        @torch.inference_mode()
        def compute(positions: Indices) -> tuple[Tensor, ...]:
            batch = self.data.collate(rows, positions).to(self.device)
            if shares or begun:
                (outputs,) = read_shared(self.model, [rows.take(positions)], begun=begun)
            else:
                outputs = forward_batch(self.model, batch)
            return tuple(part.cpu() for part in request.reduce(outputs, batch))

        batches = self._prompt_batches(rows) if shares else eval_batches(rows.lengths, self._max_tokens)
        return in_row_order(batches, (self.pool.map if self.pool else map)(compute, batches))

    def _begun(self, rows: EncodedRows) -> tuple[Decoding | None, EncodedRows]:
        """Compute what all rows begin with, where that is worth it; return it, and what follows of each row."""
        size = beginning_of(rows)
        if not size:
            return None, rows
        decoding = Decoding(self.model)
        if rows.prompts is not None and not decoding.allows_gaps:
            return None, rows
        ids = torch.from_numpy((rows.ids if rows.prompts is None else rows.prompts).row(0)[:size].astype(np.int64))
        decoding.compute(ids[None].to(self.device), torch.ones(1, size, dtype=torch.int64, device=self.device))
        return decoding, rows.behind(size)

    def _prompt_batches(self, rows: EncodedRows) -> list[Indices]:
        """Return the rows of whole prompts in batches."""
        groups = prompt_groups(rows, np.arange(len(rows)))
        batches = eval_batches(np.array([tokens for tokens, _ in groups]), self._max_tokens)
        return [np.concatenate([groups[i][1] for i in batch.tolist()]) for batch in batches]

    @property
    def _max_tokens(self) -> int:
        # With more and smaller batches, threads end at about the same time.
        return EVAL_TOKENS // 2 if self.pool else EVAL_TOKENS


def in_row_order(positions: Sequence[npt.NDArray[np.int64]], parts: Iterable[tuple[Tensor, ...]]) -> tuple[Tensor, ...]:
    """Return what was computed for these positions, part by part, in the order of the rows."""
    order = torch.from_numpy(np.argsort(np.concatenate(positions)))
    return tuple(torch.cat(column)[order] for column in zip(*parts, strict=True))
