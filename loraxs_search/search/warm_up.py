"""Processes for trainables that stand ready when trials begin, made while the first host loads the base."""

from __future__ import annotations

import os
from typing import Any

import ray


def _stand_by(host_ready: list[Any]) -> int:
    import loraxs_search.search.trainable  # noqa: F401  # what a trainable needs

    ray.wait(host_ready)  # so that the next one gets a process of its own
    return os.getpid()


def warm_up(num_trainables: int, host_ready: Any) -> list[Any]:
    """Have processes made for this many trainables; Ray gives them to actors that are created next.

    A trainable's process takes 2 s of CPU to start, a dozen of them as long as the base takes to load. Those that
    are not used end by themselves.

    Args:
        host_ready: A reference; processes wait until it is there.
    Returns:
        References to the id of each process, there when it is ready.
    """
    stand_by = ray.remote(num_cpus=0)(_stand_by)
    return [stand_by.remote([host_ready]) for _ in range(num_trainables)]
