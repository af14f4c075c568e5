"""How many threads torch computes with.

The number is the calling thread's own where torch computes with OpenMP, MKL or an OpenBLAS of OpenMP; but setting it
also sets what threads begin with that have not computed yet, in the whole process.
"""

from __future__ import annotations

import contextlib
from collections.abc import Iterator
from concurrent.futures import ThreadPoolExecutor

import torch


@contextlib.contextmanager
def single_thread() -> Iterator[None]:
    """Have torch use one thread for what the calling thread computes."""
    before = torch.get_num_threads()
    torch.set_num_threads(1)
    try:
        yield
    finally:
        torch.set_num_threads(before)


@contextlib.contextmanager
def side_by_side(count: int, threads: int = 1) -> Iterator[ThreadPoolExecutor]:
    """Have some threads, each with `threads` torch threads; an error cancels what waits."""
    before = torch.get_num_threads()
    pool = ThreadPoolExecutor(count, "torch", initializer=torch.set_num_threads, initargs=(threads,))
    try:
        yield pool
    finally:
        pool.shutdown(cancel_futures=True)
        torch.set_num_threads(before)
