"""Connecting to Ray: a cluster by address, or one on this machine that lives as long as the search."""

from __future__ import annotations

import contextlib
import logging
import os
import signal
import socket
import threading
import urllib.parse
from collections.abc import Iterator
from dataclasses import dataclass

from loraxs_search.errors import ClusterError
from loraxs_search.home import home

NAMESPACE = "loraxs-search"
_CONNECT_TIMEOUT_S = 5.0

# Read by Ray when it is imported or initialised, hence set before `import ray`:
# - loggers: CSV, JSON and TensorBoard files of every trial on the driver, none of which we read;
# - strict metric check: a trial that failed reports its reason and no metric;
# - niceness: workers of a Ray started here would run at 15 and be starved twentyfold by any other busy process;
# - idle workers: processes that stand by for trials would end after a second;
# - snapshots: Tune's own are never used (the study folder is the truth), so they are made rare.
_RAY_ENVIRONMENT = {
    "TUNE_DISABLE_AUTO_CALLBACK_LOGGERS": "1",
    "TUNE_DISABLE_STRICT_METRIC_CHECKING": "1",
    "TUNE_GLOBAL_CHECKPOINT_S": "86400",
    "RAY_USAGE_STATS_ENABLED": "0",
    "RAY_AIR_NEW_OUTPUT": "0",
    "RAY_ACCEL_ENV_VAR_OVERRIDE_ON_ZERO": "0",
    "RAY_worker_niceness": "0",
    "RAY_idle_worker_killing_time_threshold_ms": "30000",
}


@dataclass(frozen=True)
class Slots:
    """What one trial asks of the cluster, and how many fit at once."""

    resources: dict[str, float]
    num_slots: int
    threads: int


@contextlib.contextmanager
def connected(address: str | None) -> Iterator[None]:
    """Connect to the cluster at `address`, or start one here and stop it at the end.

    Raises:
        ClusterError: nothing answers at `address`, or Ray cannot start.
    """
    for name, value in _RAY_ENVIRONMENT.items():
        os.environ.setdefault(name, value)
    logging.getLogger("ray.tune").setLevel(logging.CRITICAL)  # it prints tracebacks of trials; the ledger has reasons
    import ray

    if ray.is_initialized():  # a program that brought its own connection keeps it
        yield
        return
    _check_answers(address)
    on_sigterm = signal.getsignal(signal.SIGTERM)
    try:
        ray.init(
            address=address or "local",
            namespace=NAMESPACE,
            include_dashboard=False if address is None else None,
            log_to_driver=False,
            logging_level="ERROR",
            runtime_env=None if address else {"env_vars": {"LORAXS_HOME": str(home())}},
        )
    except (ConnectionError, RuntimeError, ValueError, OSError) as error:
        where = f"a Ray cluster at {address}" if address else "Ray on this machine"
        hint = "check that it runs: `ray status --address ADDRESS`" if address else "see the cause with --traceback"
        raise ClusterError(f"{where} must be reachable, but: {error}.", hint=hint) from error
    if threading.current_thread() is threading.main_thread():
        signal.signal(signal.SIGTERM, on_sigterm)  # Ray puts its own there, which ends the process at once
    try:
        yield
    finally:
        ray.shutdown()


def _check_answers(address: str | None) -> None:
    """Refuse an address that nothing listens at: Ray itself tries for many minutes before it says so."""
    parts = urllib.parse.urlsplit(address if address and "://" in address else f"//{address or ''}")
    try:
        host, port = parts.hostname, parts.port
    except ValueError:
        host, port = None, None
    if host is None or port is None:  # `auto`, `local`: Ray knows at once
        return
    try:
        socket.create_connection((host, port), timeout=_CONNECT_TIMEOUT_S).close()
    except OSError as error:
        raise ClusterError(
            f"a Ray cluster at {address} must be reachable, but: {error.strerror or error}.",
            hint="start one with `ray start --head`, or leave --address out to search on this machine",
        ) from error


def slots(pack_size: int) -> Slots:
    """Say what a trial asks for: a share of a GPU where the cluster has any, else a share of a node's CPUs."""
    import ray

    nodes = [node["Resources"] for node in ray.nodes() if node["Alive"]]
    gpus = sum(int(node.get("GPU", 0)) for node in nodes)
    if gpus:
        return Slots({"CPU": 0.0, "GPU": 1.0 / pack_size}, gpus * pack_size, threads=1)
    cpus = [int(node["CPU"]) for node in nodes if node.get("CPU", 0) >= 1]
    if not cpus:
        raise ClusterError(
            "A cluster must have a GPU or a CPU to run trials on, but its nodes offer none.",
            hint="start Ray with --num-cpus or --num-gpus above 0",
        )
    share = min(cpus)
    return Slots({"CPU": share / pack_size}, sum(n // share for n in cpus) * pack_size, threads=share)


def gpu_node_ids() -> list[str]:
    """Return the ids of the living nodes that have a GPU."""
    import ray

    return [node["NodeID"] for node in ray.nodes() if node["Alive"] and node["Resources"].get("GPU", 0) >= 1]
