"""Which rows form which batch: pure functions of row lengths, seed and step. No torch here.

Rows of like length are batched together, so that little is padded; which ones is drawn anew for each seed and epoch.
The order in which long and short batches come is drawn for the epoch alone: trials that share a pass have batches of
like length at the same step, whatever their seeds.
"""

from __future__ import annotations

from collections.abc import Sequence

import numpy as np
import numpy.typing as npt

Lengths = npt.NDArray[np.integer]
Indices = npt.NDArray[np.int64]

# Rows are shuffled, cut into windows of this many batches, and sorted by length within a window only: a whole-epoch
# sort would put the same rows together in each epoch.
_WINDOW_BATCHES = 32
_WINDOWS = 8  # at least, where there are batches enough: few rows are mixed anew too

# What one more batch costs beside its tokens (calls into the framework, small kernels), in tokens.
RUN_TOKENS = 128


def epoch_batches(lengths: Lengths, batch_size: int, *, seed: int, epoch: int) -> list[Indices]:
    """Plan one epoch: every row exactly once, in batches of `batch_size`, one of which may be short.

    Stateless: the plan follows from the arguments alone, on every machine.

    Args:
        lengths: Tokens of each row, shape (N,).
    """
    _check_positive(batch_size=batch_size)
    order = _shuffled(len(lengths), seed, epoch, 0)
    window = batch_size * min(_WINDOW_BATCHES, max(1, len(lengths) // (batch_size * _WINDOWS)))
    grouped = [_by_length(lengths, order[start : start + window]) for start in range(0, len(order), window)]
    batches = [rows[start : start + batch_size] for rows in grouped for start in range(0, len(rows), batch_size)]
    by_length = np.argsort([lengths[rows].max(initial=0) for rows in batches], kind="stable")
    return [batches[i] for i in by_length[_shuffled(len(batches), 0, epoch, 1)]]


def batch_at(lengths: Lengths, batch_size: int, *, seed: int, step: int) -> Indices:
    """Return the training batch of a step, counted from 0 over all epochs, without walking through those before."""
    return TrainingBatches(lengths, batch_size, seed).at(step)


class TrainingBatches:
    """One trial's training batches: those of `batch_at`, at the cost of one plan an epoch.

    The epoch at hand is kept, 4 bytes a row: planned anew it would cost more than the step where rows are many.

    Args:
        lengths: Tokens of each row, shape (N,); not changed while this lives.
    """

    def __init__(self, lengths: Lengths, batch_size: int, seed: int) -> None:
        _check_positive(batch_size=batch_size, num_rows=len(lengths))
        self._lengths, self._batch_size, self._seed = lengths, batch_size, seed
        self._epoch = -1
        self._rows = np.empty(0, dtype=np.int32)  # of the epoch, batch after batch
        self._starts = np.empty(0, dtype=np.int32)  # where each batch begins, and the end of the last

    def at(self, step: int) -> Indices:
        """Return the batch of a step, counted from 0 over all epochs."""
        epoch, index = divmod(step, -(-len(self._lengths) // self._batch_size))
        if epoch != self._epoch:
            batches = epoch_batches(self._lengths, self._batch_size, seed=self._seed, epoch=epoch)
            self._rows = np.concatenate(batches).astype(np.int32)
            self._starts = np.cumsum([0, *map(len, batches)], dtype=np.int32)
            self._epoch = epoch
        return self._rows[self._starts[index] : self._starts[index + 1]].astype(np.int64)


def eval_batches(lengths: Lengths, max_tokens: int) -> list[Indices]:
    """Plan an evaluation: every row exactly once, longest first, each batch of at most `max_tokens` padded tokens.

    A row that is longer than `max_tokens` is a batch of its own. Where lengths differ much, batches are smaller.
    """
    _check_positive(max_tokens=max_tokens)
    order = _by_length(lengths, np.arange(len(lengths), dtype=np.int64))[::-1]
    return [order[run] for run in cheapest_runs(np.maximum(lengths[order], 1).tolist(), max_tokens)]


def cheapest_runs(
    widths: Sequence[int], max_tokens: int, run_tokens: int = RUN_TOKENS, *, few_sizes: bool = False
) -> list[slice]:
    """Cut rows into runs that cost least: the padded tokens of each, and `run_tokens`.

    A run has 2^i rows, or as many as fit.

    Args:
        widths: What each row is padded to at least, widest first.
        max_tokens: No run of several rows has more padded tokens.
        few_sizes: Have 2^i rows in every run.
    """
    num_rows = len(widths)
    best, sizes = [0] * (num_rows + 1), [0] * num_rows  # best[i]: cost of the rows from i on
    for start in range(num_rows - 1, -1, -1):
        limit = max(1, min(num_rows - start, max_tokens // widths[start]))
        tried = [1 << i for i in range(limit.bit_length())] + ([] if few_sizes else [limit])
        costs = [size * widths[start] + run_tokens + best[start + size] for size in tried]
        best[start] = min(costs)
        sizes[start] = tried[costs.index(best[start])]
    runs, start = [], 0
    while start < num_rows:
        runs.append(slice(start, start + sizes[start]))
        start += sizes[start]
    return runs


def _shuffled(n: int, seed: int, epoch: int, purpose: int) -> Indices:
    # Raw draws, since numpy keeps those stable for ever but not what Generator makes of them.
    bits = np.random.PCG64(np.random.SeedSequence([seed & (2**64 - 1), epoch, purpose]))
    return np.argsort(bits.random_raw(n), kind="stable").astype(np.int64)


def _by_length(lengths: Lengths, rows: Indices) -> Indices:
    return rows[np.argsort(lengths[rows], kind="stable")]


def _check_positive(**values: int) -> None:
    for name, value in values.items():
        if value < 1:
            raise ValueError(f"`{name}` must be at least 1, but got {name}={value}.")
