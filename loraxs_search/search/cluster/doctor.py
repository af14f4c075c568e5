"""Asks every node of a cluster about itself before a search, thoroughly, or only what every search needs."""

from __future__ import annotations

import time
from collections.abc import Callable, Sequence
from dataclasses import asdict, dataclass
from pathlib import Path

from loraxs_search import versions as package_versions
from loraxs_search.base_model.locate import with_known_package
from loraxs_search.errors import ClusterError, LoraxsError, counted
from loraxs_search.mlflow_uri import resolve_uri, sqlite_path
from loraxs_search.search.cluster import node_checks
from loraxs_search.search.cluster.connection import (
    SETUP_HINT,
    connected,
    expected_versions,
    living_nodes,
    pinned,
    setup_problem,
    shows_token,
)
from loraxs_search.search.cluster.node_checks import Finding, Verdict, compare_clocks
from loraxs_search.search.cluster.placement import Node
from loraxs_search.search_space.load import load_space
from loraxs_search.search_space.space import Space
from loraxs_search.studies.storage import Storage
from loraxs_search.tracking.store import ensure_store

_ANSWER_S, _FAST_ANSWER_S = 180.0, 60.0
_INSTALL_S = 900.0  # a node that has to install packages first
_INSTALLERS = {"uv", "pip", "conda", "image_uri", "container"}  # keys of an environment that has it do so
_CLUSTER = "cluster"


@dataclass(frozen=True)
class CheckResult:
    """One check of one node."""

    node: str
    check: str
    verdict: Verdict
    value: str
    hint: str = ""


def examine(
    space: str | None = None,
    *,
    address: str | None = None,
    tracking_uri: str | None = None,
    runtime_env: str | None = None,
    storage: str | None = None,
) -> list[CheckResult]:
    """Check a cluster before a search on it, or this machine; trains nothing, and leaves nothing behind.

    Args:
        space: Whose base and files are to be there; None leaves them out.
        storage: Where copies of studies are to be kept; None leaves it out.

    Raises:
        UsageError: the space has faults.
        TrackingError: the tracking URI is malformed.
    """
    loaded = load_space(space) if space is not None else None
    uri, results = resolve_uri(tracking_uri), list[CheckResult]()

    def check_here(check: str, value: str, try_it: Callable[[], object]) -> None:
        try:
            try_it()
            results.append(CheckResult("driver", check, "ok", value))
        except LoraxsError as error:
            results.append(CheckResult("driver", check, "fail", error.message, error.hint or ""))

    check_here("mlflow", uri, lambda: ensure_store(uri))
    if storage is not None:
        check_here("storage", storage, lambda: Storage(storage).check())
    try:
        with connected(address, runtime_env=runtime_env):
            nodes = living_nodes()
            cpus, gpus = sum(node.num_cpus for node in nodes), sum(node.num_gpus for node in nodes)
            value = f"{counted(len(nodes), 'node')} with {counted(cpus, 'CPU')} and {counted(gpus, 'GPU')}"
            hint = "start Ray with --num-cpus or --num-gpus above 0, or give search.concurrent"
            is_fit = bool(cpus or gpus)
            results.append(CheckResult(_CLUSTER, "ray", "ok" if is_fit else "warn", value, "" if is_fit else hint))
            if address is not None and shows_token():
                results.append(CheckResult(_CLUSTER, "token", "ok", "every node and client must show it"))
            elif address is not None:
                hint = "set RAY_AUTH_MODE=token and one RAY_AUTH_TOKEN on all nodes and here: see cluster/README.md"
                value = "none: whoever reaches Ray's port runs code there"
                results.append(CheckResult(_CLUSTER, "token", "warn", value, hint))
            results += _ask_all(nodes, [loaded] if loaded else [], uri, thorough=True)
    except ClusterError as error:
        results.append(CheckResult(_CLUSTER, "ray", "fail", error.message, error.hint or ""))
    return results


def check_nodes(spaces: Sequence[Space], tracking_uri: str) -> None:
    """See in a few seconds that every node has the driver's versions, the spaces' files and a way to MLflow.

    Raises:
        ClusterError: one has not; the message has every fault of every node.
    """
    results = _ask_all(living_nodes(), spaces, tracking_uri, thorough=False)
    if wrong := [result for result in results if result.verdict == "fail"]:
        faults = "\n".join(f"  {failure.node}: {failure.check}: {failure.value}" for failure in wrong)
        hints = list(dict.fromkeys(failure.hint for failure in wrong))
        hint = "\n".join([*hints, "`loraxs-search doctor --address ADDRESS` checks more"])
        raise ClusterError(f"Every node of a cluster must be fit for the search, but:\n{faults}", hint=hint)


def _ask_all(nodes: Sequence[Node], spaces: Sequence[Space], uri: str, *, thorough: bool) -> list[CheckResult]:
    """Ask all nodes at once, and return a result for each check of each; one that has left in between has none."""
    import ray
    from ray.exceptions import GetTimeoutError, RayError, RuntimeEnvSetupError

    bases = {space.base_model.id for space in spaces if Path(space.base_model.id).expanduser().is_absolute()}
    files = sorted(bases.union(*(space.task.source.data_files.values() for space in spaces)))
    environment = ray.get_runtime_context().runtime_env
    question = {
        "versions": expected_versions(),
        "mlflow": None if sqlite_path(uri) is not None else uri,
        "base": asdict(with_known_package(spaces[0].base_model)) if spaces else None,
        "hub": any(space.task.source.hub is not None or space.task.source.elsewhere for space in spaces),
        "thorough": thorough,
    }
    for module in (node_checks, package_versions):  # a node may lack the package
        ray.cloudpickle.register_pickle_by_value(module)
    asked = []
    for node in nodes:
        # A node that only drives needs no rows.
        needed = files if node.num_cpus or node.num_gpus or len(nodes) == 1 else []
        of_node = {"address": node.address, "gpus": node.num_gpus, "files": needed}
        task = ray.remote(node_checks.checks_here).options(max_retries=0, **pinned(node.node_id))
        asked.append((node, time.time(), task.remote(question | of_node)))
    limit_s = _INSTALL_S if _INSTALLERS & environment.keys() else _ANSWER_S if thorough else _FAST_ANSWER_S
    results = list[CheckResult]()
    for node, asked_at, reference in asked:
        try:
            answer: tuple[float, str, list[Finding]] = ray.get(
                reference, timeout=max(0.1, asked_at + limit_s - time.time())
            )
        except (GetTimeoutError, RayError) as error:
            if not isinstance(error, GetTimeoutError) and node.node_id not in {n.node_id for n in living_nodes()}:
                continue  # it has left, as it may during a search
            check, hint = "answer", "see the node's logs below its Ray folder; is it overloaded?"
            if isinstance(error, RuntimeEnvSetupError):
                check, problem, hint = "environment", setup_problem(str(error)), SETUP_HINT
            elif isinstance(error, GetTimeoutError):
                problem = f"none within {limit_s:.0f} s"
            else:
                problem = str(error).strip().splitlines()[-1]
            results.append(CheckResult(node.address, check, "fail", problem, hint))
            continue
        at, name, findings = answer
        results += [CheckResult(name, *finding) for finding in findings]
        if thorough:
            results.append(CheckResult(name, *compare_clocks(at, asked_at, time.time())))
    return results
