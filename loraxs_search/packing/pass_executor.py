"""Threads that compute passes side by side: on a CPU, whole passes share cores better than the operations in one."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from concurrent.futures import Future, ThreadPoolExecutor, wait
from typing import TypeVar

import torch

from loraxs_search.packing.plan import PASS_TOKENS, Pass

ResultT = TypeVar("ResultT")

_MAX_WORKERS = 4  # more would wait for each other to call into torch


class PassExecutor:
    """A fixed number of workers; which computes which pass follows from the plan alone, never from timing.

    So gradients are summed in the same order each time, and a round's numbers are reproducible to the bit.

    Args:
        num_workers: 1 computes in the caller's thread.
        threads: Threads that each worker's operations use.
    """

    def __init__(self, num_workers: int, threads: int = 1) -> None:
        self.num_workers = num_workers
        self._pool: ThreadPoolExecutor | None = None
        if num_workers > 1:
            # The number of threads is a setting of the calling thread's own.
            self._pool = ThreadPoolExecutor(
                num_workers, "pass-worker", initializer=torch.set_num_threads, initargs=(threads,)
            )

    def makespan(self, passes: Sequence[Pass]) -> int:
        """Return what the worker with most to do computes, in tokens, the cost of each pass included."""
        shares = _assign(passes, self.num_workers)
        return max(sum(passes[i].num_tokens + PASS_TOKENS for i in share) for share in shares)

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
