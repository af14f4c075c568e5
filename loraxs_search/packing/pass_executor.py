"""Threads that compute passes side by side: on a CPU, whole passes share cores better than the operations in one."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from concurrent.futures import Future, ThreadPoolExecutor, wait
from typing import TypeVar

import torch

from loraxs_search.packing.plan import PASS_TOKENS, Pass

ResultT = TypeVar("ResultT")

_MAX_LANES = 4  # more would wait for each other to call into torch


class PassExecutor:
    """A fixed number of lanes; which lane computes which pass follows from the plan alone, never from timing.

    So gradients are summed in the same order each time, and a round's numbers are reproducible to the bit.

    Args:
        count: PassExecutor; 1 computes in the caller's thread.
        threads: Threads that each lane's operations use.
    """

    def __init__(self, count: int, threads: int = 1) -> None:
        self.count = count
        self._pool: ThreadPoolExecutor | None = None
        if count > 1:
            # The setting is the calling thread's own.
            self._pool = ThreadPoolExecutor(count, "lane", initializer=torch.set_num_threads, initargs=(threads,))

    def makespan(self, passes: Sequence[Pass]) -> int:
        """Return what the lane with most to do computes, in tokens, the cost of each pass included."""
        lanes = _assign(passes, self.count)
        return max(sum(passes[i].num_tokens + PASS_TOKENS for i in lane) for lane in lanes)

    def run(self, passes: Sequence[Pass], compute: Callable[[int, Pass], ResultT]) -> list[ResultT]:
        """Call `compute(lane, pass)` for every pass and return the results in the order of `passes`.

        An exception of any lane is raised once all lanes have come to rest.
        """
        lanes = _assign(passes, self.count)

        def drive(lane: int) -> list[tuple[int, ResultT]]:
            return [(index, compute(lane, passes[index])) for index in lanes[lane]]

        if self._pool is None:
            return [result for _, result in drive(0)]
        futures: list[Future[list[tuple[int, ResultT]]]] = [
            self._pool.submit(drive, lane) for lane in range(self.count) if lanes[lane]
        ]
        wait(futures)
        found = dict(item for future in futures for item in future.result())
        return [found[index] for index in range(len(passes))]


def lanes_of(device: torch.device) -> tuple[int, int]:
    """Return how many lanes suit a device, and the threads of each: on a CPU up to four lanes share its threads."""
    if device.type != "cpu":
        return 1, 1
    threads = torch.get_num_threads()
    count = min(threads, _MAX_LANES)
    return count, threads // count


def _assign(passes: Sequence[Pass], count: int) -> list[list[int]]:
    """Give each pass, largest first, to the lane with least to do; within a lane the order of `passes` is kept."""
    lanes: list[list[int]] = [[] for _ in range(count)]
    loads = [0] * count
    for index in sorted(range(len(passes)), key=lambda i: -passes[i].num_tokens):
        lane = loads.index(min(loads))
        lanes[lane].append(index)
        loads[lane] += passes[index].num_tokens
    return [sorted(lane) for lane in lanes]
