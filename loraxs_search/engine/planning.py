"""Which rows share a pass over the base, and which thread computes which pass.

Rows are spread over as few passes as their lengths allow: rows of similar length share a pass, whoever asks for them.
Passes are computed side by side: on a CPU, whole passes share cores better than the operations in one.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from concurrent.futures import Future, ThreadPoolExecutor, wait
from dataclasses import dataclass
from typing import TypeVar

import numpy as np
import numpy.typing as npt
import torch

from loraxs_search.errors import UsageError
from loraxs_search.tasks.encoded import RUN_TOKENS, cheapest_runs

Indices = npt.NDArray[np.int64]


@dataclass(frozen=True)
class Demand:
    """The rows that one requester wants computed.

    Args:
        name: Unique among the demands of a plan.
        lengths: Tokens of each row, shape (n,).
    """

    name: str
    lengths: npt.NDArray[np.integer]


@dataclass(frozen=True)
class Share:
    """What a pass computes for one requester: `positions` into the demand's rows, ascending, at least one."""

    name: str
    positions: Indices


@dataclass(frozen=True)
class Pass:
    """Rows that go through the base together, padded to `width` tokens; each requester's rows are one block of it."""

    width: int
    shares: tuple[Share, ...]

    @property
    def num_rows(self) -> int:
        return sum(len(share.positions) for share in self.shares)

    @property
    def num_tokens(self) -> int:
        """Padded tokens, which is what the base computes."""
        return self.num_rows * self.width


def plan_passes(demands: Sequence[Demand], max_tokens: int, max_width: int | None = None) -> list[Pass]:
    """Plan passes that compute every row of every demand exactly once, the longest rows first.

    The plan minimises padded tokens plus `RUN_TOKENS` for each pass, and depends only on the arguments. Within a
    pass the requesters come in the order of `demands`.

    Args:
        max_tokens: No pass has more padded tokens than this.
        max_width: No row is padded to more tokens than this; None for no limit.
    Raises:
        UsageError: a row is longer than `max_tokens`.
    """
    for demand in demands:
        if len(demand.lengths) and (longest := int(demand.lengths.max())) > max_tokens:
            raise UsageError(
                f"`max_tokens` must hold the longest row, but got max_tokens={max_tokens} for a row of {longest} tokens"
                f", asked by {demand.name}.",
                hint=f"lower the task's `max_length` to {max_tokens}, or give the host a budget of {longest} or more",
            )
    if not any(len(demand.lengths) for demand in demands):
        return []
    max_width = min(max_tokens, max_width or max_tokens)
    lengths = np.concatenate([np.maximum(demand.lengths, 1) for demand in demands]).astype(np.int64)
    owners = np.repeat(np.arange(len(demands)), [len(demand.lengths) for demand in demands])
    positions = np.concatenate([np.arange(len(demand.lengths)) for demand in demands])
    order = np.argsort(-lengths, kind="stable")
    widths = {int(length): round_up(int(length), max_width) for length in np.unique(lengths)}
    passes = []
    for rows in cheapest_runs([widths[length] for length in lengths[order].tolist()], max_tokens, few_sizes=True):
        chosen = np.sort(order[rows])  # back to the order of demands, so that each requester's rows are one block
        shares = tuple(
            Share(demands[owner].name, positions[chosen[owners[chosen] == owner]])
            for owner in dict.fromkeys(owners[chosen].tolist())
        )
        passes.append(Pass(round_up(int(lengths[chosen].max()), max_width), shares))
    return passes


def round_up(width: int, most: int) -> int:
    """Return the next width that passes are padded to: 16 steps to each doubling, at most `most`.

    Together with rows in powers of two it keeps the shapes of passes few: a CPU's matrix kernels are built for
    each shape, which costs as much as a pass.
    """
    step = 1 << max(0, width.bit_length() - 5)
    return max(width, min(most, -(-width // step) * step))


ResultT = TypeVar("ResultT")

_MAX_WORKERS = 4  # more would wait for each other to call into torch


class PassExecutor:
    """A fixed number of workers; which one computes which pass depends on the plan, never on timing.

    So gradients are summed in the same order each time, and a round's numbers are reproducible to the bit.

    Args:
        num_workers: 1 computes in the caller's thread.
        threads: Threads that each worker's operations use.
        pool: Computes the passes, instead of its own threads.
    """

    def __init__(self, num_workers: int, threads: int = 1, pool: ThreadPoolExecutor | None = None) -> None:
        self.num_workers = num_workers
        self._pool = pool if num_workers > 1 else None
        if num_workers > 1 and pool is None:
            # The number of threads is a setting of the calling thread's own.
            self._pool = ThreadPoolExecutor(
                num_workers, "pass-worker", initializer=torch.set_num_threads, initargs=(threads,)
            )

    def makespan(self, passes: Sequence[Pass]) -> int:
        """Return what the worker with most to do computes, in tokens, the cost of each pass included."""
        shares = _assign(passes, self.num_workers)
        return max(sum(passes[i].num_tokens + RUN_TOKENS for i in share) for share in shares)

    def run(self, passes: Sequence[Pass], compute: Callable[[int, Pass], ResultT]) -> list[ResultT]:
        """Call `compute(worker, pass)` for every pass and return the results in the order of `passes`.

        An exception of any worker is raised once all workers are done.
        """
        shares = _assign(passes, self.num_workers)

        def work(worker: int) -> list[tuple[int, ResultT]]:
            return [(index, compute(worker, passes[index])) for index in shares[worker]]

        if self._pool is None:
            return [result for _, result in work(0)]
        futures: list[Future[list[tuple[int, ResultT]]]] = [
            self._pool.submit(work, worker) for worker in range(self.num_workers) if shares[worker]
        ]
        wait(futures)
        results = dict(item for future in futures for item in future.result())
        return [results[index] for index in range(len(passes))]


def workers_for(device: torch.device) -> tuple[int, int]:
    """Return how many workers suit a device, and the threads of each: on a CPU up to four share its threads."""
    if device.type != "cpu":
        return 1, 1
    threads = torch.get_num_threads()
    num_workers = min(threads, _MAX_WORKERS)
    return num_workers, threads // num_workers


def _assign(passes: Sequence[Pass], num_workers: int) -> list[list[int]]:
    """Give each pass, largest first, to the worker with least to do; each keeps the order of `passes`."""
    shares: list[list[int]] = [[] for _ in range(num_workers)]
    loads = [0] * num_workers
    for index in sorted(range(len(passes)), key=lambda i: -passes[i].num_tokens):
        worker = loads.index(min(loads))
        shares[worker].append(index)
        loads[worker] += passes[index].num_tokens
    return [sorted(share) for share in shares]
