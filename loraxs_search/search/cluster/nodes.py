"""Which node a process runs on, and how an actor or a task is held to one."""

from __future__ import annotations

from typing import Any

import ray
from ray.util.scheduling_strategies import NodeAffinitySchedulingStrategy


def here() -> str:
    """Return the id of the node that this process runs on."""
    return str(ray.get_runtime_context().get_node_id())


def pinned(node_id: str) -> dict[str, Any]:
    """Return Ray's options that hold an actor or a task to a node and take none of its resources."""
    return {"num_cpus": 0, "scheduling_strategy": NodeAffinitySchedulingStrategy(node_id, soft=False)}
