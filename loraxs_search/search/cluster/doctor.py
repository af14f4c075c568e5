"""Asks every node of a cluster about itself before a search, thoroughly, or only what every search needs."""

from __future__ import annotations

import time
from collections.abc import Callable, Iterable, Sequence
from dataclasses import asdict
from pathlib import Path
from typing import TYPE_CHECKING, Any

from loraxs_search import versions as package_versions
from loraxs_search.base_model.package import with_known_package
from loraxs_search.errors import ClusterError, LoraxsError, counted
from loraxs_search.mlflow_uri import redact, resolve_uri, sqlite_path
from loraxs_search.search.cluster import node_facts, ray_private, runtime_env
from loraxs_search.search.cluster.connection import connected, living_nodes
from loraxs_search.search.cluster.node_checks import (
    CheckResult,
    Expected,
    NodeFacts,
    evaluate,
    failures,
    silent,
    unlike_files,
)
from loraxs_search.search.cluster.placement import Node
from loraxs_search.search_space.load import load_space
from loraxs_search.search_space.space import Space
from loraxs_search.studies.storage import Storage
from loraxs_search.tracking.store import ensure_store

if TYPE_CHECKING:
    import ray

_ANSWER_S, _FAST_ANSWER_S = 180.0, 60.0
_INSTALL_S = 900.0  # a node that has to install packages first
CLUSTER = "cluster"


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
        SpaceError: the space has faults.
        TrackingError: the tracking URI is malformed.
    """
    loaded = load_space(space) if space is not None else None
    uri = resolve_uri(tracking_uri)
    results = [_of_driver("mlflow", redact(uri), lambda: ensure_store(uri))]
    if storage is not None:
        results.append(_of_driver("storage", storage, lambda: Storage(storage).check()))
    try:
        with connected(address, runtime_env=runtime_env):
            results += _cluster(address)
            results += _ask_all(living_nodes(), [loaded] if loaded else [], uri, thorough=True)
    except ClusterError as error:
        results.append(CheckResult(CLUSTER, "ray", "fail", error.message, error.hint or ""))
    return results


def check_nodes(spaces: Sequence[Space], tracking_uri: str) -> None:
    """See in a few seconds that every node has the driver's versions, the spaces' files and a way to MLflow.

    Raises:
        ClusterError: one has not; the message has every fault of every node.
    """
    wrong = failures(_ask_all(living_nodes(), spaces, tracking_uri, thorough=False))
    if wrong:
        faults = "\n".join(f"  {failure.node}: {failure.check}: {failure.value}" for failure in wrong)
        hints = list(dict.fromkeys(failure.hint for failure in wrong))
        hint = "\n".join([*hints, "`loraxs-search doctor --address ADDRESS` checks more"])
        raise ClusterError(f"Every node of a cluster must be fit for the search, but:\n{faults}", hint=hint)


# ---- the whole -------------------------------------------------------------------------------------------------------
def _of_driver(check: str, value: str, try_it: Callable[[], object]) -> CheckResult:
    try:
        try_it()
    except LoraxsError as error:
        return CheckResult("driver", check, "fail", error.message, error.hint or "")
    return CheckResult("driver", check, "ok", value)


def _cluster(address: str | None) -> Iterable[CheckResult]:
    nodes = living_nodes()
    cpus, gpus = sum(node.num_cpus for node in nodes), sum(node.num_gpus for node in nodes)
    value = f"{counted(len(nodes), 'node')} with {counted(cpus, 'CPU')} and {counted(gpus, 'GPU')}"
    hint = "" if cpus or gpus else "start Ray with --num-cpus or --num-gpus above 0, or give search.concurrent"
    yield CheckResult(CLUSTER, "ray", "ok" if cpus or gpus else "warn", value, hint)
    if address is not None:
        yield _auth()


def _auth() -> CheckResult:
    if ray_private.is_token_auth_enabled():
        return CheckResult(CLUSTER, "token", "ok", "every node and client must show it")
    hint = "set RAY_AUTH_MODE=token and one RAY_AUTH_TOKEN on all nodes and here; cluster/README.md says how"
    return CheckResult(CLUSTER, "token", "warn", "none: whoever reaches Ray's port runs code there", hint)


# ---- every node ------------------------------------------------------------------------------------------------------
def _ask_all(nodes: Sequence[Node], spaces: Sequence[Space], uri: str, *, thorough: bool) -> list[CheckResult]:
    server = None if sqlite_path(uri) is not None else uri
    files = sorted({file for space in spaces for file in _files(space)})
    question = {
        "mlflow": server,
        "base": asdict(with_known_package(spaces[0].base_model)) if spaces else None,
        "hub": any(space.task.source.hub is not None or space.task.source.elsewhere for space in spaces),
        "thorough": thorough,
    }
    versions = runtime_env.versions()
    asked = []
    for node in nodes:
        # A node that only drives needs no rows.
        needed = files if node.num_cpus or node.num_gpus or len(nodes) == 1 else []
        asked.append((node, needed, time.time(), _ask(node, question | {"files": needed})))
    limit_s = _INSTALL_S if runtime_env.installers() else _ANSWER_S if thorough else _FAST_ANSWER_S
    results, facts = list[CheckResult](), list[NodeFacts]()
    for node, needed, at, reference in asked:
        answer = _answer(node, at, reference, limit_s)
        if isinstance(answer, NodeFacts):
            facts.append(answer)
            results += evaluate(answer, Expected(versions, redact(server) if server else None, needed))
        elif answer is not None:
            results.append(answer)
    return [*results, *unlike_files(facts)]


def _files(space: Space) -> list[str]:
    base = [space.base_model.id] if Path(space.base_model.id).expanduser().is_absolute() else []
    return [*base, *space.task.source.data_files.values()]


def _ask(node: Node, question: dict[str, Any]) -> ray.ObjectRef[Any]:
    import ray

    from loraxs_search.search.cluster.connection import pinned  # late, as Ray is

    for module in (node_facts, package_versions):  # a node may lack the package
        ray.cloudpickle.register_pickle_by_value(module)
    task = ray.remote(node_facts.facts_here).options(max_retries=0, **pinned(node.node_id))
    return task.remote(question)


def _answer(
    node: Node, asked_at: float, reference: ray.ObjectRef[Any], limit_s: float
) -> NodeFacts | CheckResult | None:
    """Return what a node reports of itself, or why it does not; None when it has left."""
    import ray
    from ray.exceptions import GetTimeoutError, RayError, RuntimeEnvSetupError

    try:
        facts = ray.get(reference, timeout=max(0.1, asked_at + limit_s - time.time()))
    except GetTimeoutError:
        return silent(node.address, f"none within {limit_s:.0f} s")
    except RayError as error:
        if node.node_id not in {living.node_id for living in living_nodes()}:
            return None  # as it may during a search
        if isinstance(error, RuntimeEnvSetupError):
            problem = runtime_env.setup_problem(str(error))
            return CheckResult(node.address, "environment", "fail", problem, runtime_env.SETUP_HINT)
        return silent(node.address, str(error).strip().splitlines()[-1])
    answered_at, read_at = time.time(), facts.pop("at")
    # Its clock was read at some time between question and answer: only what lies outside is skew.
    skew_s = max(0.0, read_at - answered_at) + min(0.0, read_at - asked_at)
    name = node.address if not facts["host"] else f"{node.address} ({facts['host']})"
    return NodeFacts(node=name, skew_s=skew_s, offers_gpus=node.num_gpus, **facts)
