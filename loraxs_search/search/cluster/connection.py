"""Connecting to Ray: a cluster by address, or one on this machine that lives as long as the search."""

from __future__ import annotations

import contextlib
import logging
import os
import signal
import threading
from collections.abc import Iterator, Mapping
from typing import Any

from loraxs_search.errors import ClusterError, LoraxsError, UsageError
from loraxs_search.home import home
from loraxs_search.search.cluster import ray_private
from loraxs_search.search.cluster.connection_check import check_answers, token_error
from loraxs_search.search.cluster.placement import Node
from loraxs_search.search.cluster.runtime_env import job_environment

NAMESPACE = "loraxs-search"

# Read by Ray when it is imported or initialised, hence set before `import ray`:
# - loggers: CSV, JSON and TensorBoard files of every trial on the driver, none of which we read;
# - strict metric check: a trial that failed reports its reason and no metric;
# - niceness: workers of a Ray started here would run at 15 and be starved twentyfold by any other busy process;
# - snapshots: Tune's own are never used (the study folder is the truth), so they are made rare.
_RAY_ENVIRONMENT = {
    "TUNE_DISABLE_AUTO_CALLBACK_LOGGERS": "1",
    "TUNE_DISABLE_STRICT_METRIC_CHECKING": "1",
    "TUNE_GLOBAL_CHECKPOINT_S": "86400",
    "RAY_USAGE_STATS_ENABLED": "0",
    "RAY_AIR_NEW_OUTPUT": "0",
    "RAY_ACCEL_ENV_VAR_OVERRIDE_ON_ZERO": "0",
    "RAY_worker_niceness": "0",
}

_LOCAL_HINT = "try again when the machine is less busy, or see the cause with --traceback"


@contextlib.contextmanager
def connected(address: str | None, *, runtime_env: str | None = None) -> Iterator[None]:
    """Connect to the cluster at `address`, or start one here and stop it at the end.

    Args:
        runtime_env: YAML file of an environment for a cluster's nodes.

    Raises:
        ClusterError: nothing answers at `address`, it asks for another token, or Ray cannot start.
        UsageError: `runtime_env` cannot be read, or is given without a cluster; or the address is no cluster's.
    """
    if runtime_env is not None and address is None:
        raise UsageError(
            "`--runtime-env` must be given with --address: on this machine trials run in the environment at hand.",
            hint="leave it out, or name a cluster",
        )
    for name, value in _RAY_ENVIRONMENT.items():
        os.environ.setdefault(name, value)
    logging.getLogger("ray.tune").setLevel(logging.CRITICAL)  # it prints tracebacks of trials; the ledger has reasons
    import ray
    from ray.exceptions import AuthenticationError

    if ray.is_initialized():  # a program that brought its own connection keeps it
        with _own_errors():
            yield
        return
    env = None if address is None else job_environment(runtime_env)
    check_answers(address)
    on_sigterm = signal.getsignal(signal.SIGTERM)
    try:
        # Ray's processes here inherit it: a runtime environment would have to be made first.
        with _home_in_environment():
            ray.init(
                address=address or "local",
                namespace=NAMESPACE,
                include_dashboard=False if address is None else None,
                log_to_driver=False,
                logging_level=logging.ERROR,
                runtime_env=env,
            )
    except AuthenticationError as error:
        raise token_error(address) from error
    except Exception as error:  # Ray raises plain ones too, such as for a node that takes more than 30 s to start
        where = f"a Ray cluster at {address}" if address else "Ray on this machine"
        hint = "check that it runs: `ray status --address ADDRESS`" if address else _LOCAL_HINT
        raise ClusterError(f"{where} must be reachable, but: {str(error).rstrip('.')}.", hint=hint) from error
    if threading.current_thread() is threading.main_thread():
        signal.signal(signal.SIGTERM, on_sigterm)  # Ray puts its own there, which ends the process at once
    try:
        with _own_errors():
            yield
    finally:
        ray.shutdown()


def own_error(error: BaseException) -> BaseException:
    """Return our error of another process as it was raised there: Ray's has its traceback as its text."""
    from ray.exceptions import RayTaskError

    return error.cause if isinstance(error, RayTaskError) and isinstance(error.cause, LoraxsError) else error


@contextlib.contextmanager
def _own_errors() -> Iterator[None]:
    """Raise our errors of other processes as they were raised there."""
    from ray.exceptions import RayTaskError

    try:
        yield
    except RayTaskError as error:
        if (own := own_error(error)) is not error:
            raise own from error
        raise


@contextlib.contextmanager
def _home_in_environment() -> Iterator[None]:
    before = os.environ.get("LORAXS_HOME")
    os.environ["LORAXS_HOME"] = str(home())
    try:
        yield
    finally:
        if before is None:
            del os.environ["LORAXS_HOME"]
        else:
            os.environ["LORAXS_HOME"] = before


def living_nodes() -> list[Node]:
    """Return the nodes that are alive now, in a stable order."""
    import ray

    alive: list[Mapping[str, Any]] = [node for node in ray.nodes() if node["Alive"]]
    return sorted(map(_node, alive), key=lambda node: (node.address, node.node_id))


def _node(node: Mapping[str, Any]) -> Node:
    offers = node["Resources"]
    return Node(node["NodeID"], int(offers.get("CPU", 0)), int(offers.get("GPU", 0)), node["NodeManagerAddress"])


def nodes_to_come() -> list[Node]:
    """Return one node of each kind that the cluster's autoscaler can start; empty where it has reported none."""
    return [
        Node(group.name, int(group.resources.get("CPU", 0)), int(group.resources.get("GPU", 0)))
        for group in ray_private.node_groups()
        if group.max_count != 0
    ]
