"""Evaluates the reports of nodes, and finds what is wrong with a cluster. Pure."""

from __future__ import annotations

from collections.abc import Iterable, Iterator, Mapping, Sequence
from dataclasses import dataclass, field
from typing import Literal

from loraxs_search.versions import TRAINING

Verdict = Literal["ok", "warn", "fail"]

# A host trains in these: another version there may give other results, or fail. The others run in the driver only.
_MUST_AGREE = (*TRAINING, "datasets", "ray")
_GIB = 2**30
_FEW_FILES, _MANY_FILES = 1024, 4096
_SKEW_WARN_S, _SKEW_FAIL_S = 2.0, 60.0


@dataclass(frozen=True)
class NodeFacts:
    """What a node reports of itself.

    Args:
        skew_s: Its clock against the driver's, less what the question itself took.
        offers_gpus: GPUs that Ray gives to trials there.
        gpus: (name, MiB in all, MiB free) of each; [N/A] where it shares the machine's memory.
        base_from: Where the base would be taken from.
    """

    node: str
    versions: Mapping[str, str]
    skew_s: float = 0.0
    offers_gpus: int = 0
    host: str = ""
    missing_files: Sequence[str] = ()
    file_digests: Mapping[str, str] = field(default_factory=dict)
    mlflow_problem: str | None = None
    open_files: int | None = None
    home: str = ""
    home_problem: str | None = None
    free_bytes: int | None = None
    memory_bytes: int | None = None
    free_memory_bytes: int | None = None
    gpus: Sequence[Sequence[str]] = ()
    torch_gpus: int = 0
    base_from: str | None = None
    hub_problem: str | None = None


@dataclass(frozen=True)
class CheckResult:
    """One check of one node."""

    node: str
    check: str
    verdict: Verdict
    value: str
    hint: str = ""


@dataclass(frozen=True)
class Expected:
    """What all nodes are compared with: the driver's versions, and the questions asked.

    Args:
        mlflow: The server's address, without its password; None for an embedded store.
    """

    versions: Mapping[str, str] = field(default_factory=dict)
    mlflow: str | None = None
    files: Sequence[str] = ()


def evaluate(facts: NodeFacts, expected: Expected) -> Iterator[CheckResult]:
    """Yield a result for each check of a node."""
    yield _versions(facts, expected.versions)
    if expected.mlflow is not None:
        hint = f"open the way from {facts.node} to {expected.mlflow}: its address, firewall, proxy (no_proxy)"
        yield _either(facts, "mlflow", facts.mlflow_problem, expected.mlflow, hint)
    if expected.files:
        missing = f"missing: {', '.join(facts.missing_files)}" if facts.missing_files else None
        hint = "put the files at the same path on every node, or mount a folder that all share"
        yield _either(facts, "files", missing, f"{len(expected.files)} there", hint)
    if facts.home:
        yield from _thorough(facts)


def unlike_files(nodes: Iterable[NodeFacts]) -> Iterator[CheckResult]:
    """Yield a result for each file that differs from that on the first node that has it."""
    first: dict[str, tuple[str, str]] = {}
    for facts in nodes:
        for path, digest in facts.file_digests.items():
            node, expected = first.setdefault(path, (facts.node, digest))
            if digest != expected:
                value = f"{path} has sha256 {digest[:16]} here, {expected[:16]} on {node}"
                yield CheckResult(facts.node, "files", "fail", value, "bring the same file to every node")


def silent(node: str, problem: str) -> CheckResult:
    """Return the result for a node that did not answer."""
    return CheckResult(node, "answer", "fail", problem, "see the node's logs below its Ray folder; is it overloaded?")


def failures(results: Iterable[CheckResult]) -> list[CheckResult]:
    """Return the results that prevent a search."""
    return [result for result in results if result.verdict == "fail"]


# ---- one check each --------------------------------------------------------------------------------------------------
def _judged(facts: NodeFacts, check: str, verdict: Verdict, value: str, hint: str) -> CheckResult:
    """Return a result, whose hint is of use only where something is wrong."""
    return CheckResult(facts.node, check, verdict, value, "" if verdict == "ok" else hint)


def _either(facts: NodeFacts, check: str, problem: str | None, fine: str, hint: str) -> CheckResult:
    return _judged(facts, check, "fail" if problem else "ok", problem or fine, hint)


def _versions(facts: NodeFacts, expected: Mapping[str, str]) -> CheckResult:
    grave, slight = list[str](), list[str]()
    for package, wanted in expected.items():
        installed = facts.versions.get(package)
        if installed == wanted:
            continue
        text = f"{package} {installed or 'missing'}, the driver has {wanted}"
        (grave if _is_grave(package, installed, wanted) else slight).append(text)
    if grave or slight:
        hint = "install the same versions on every node, or have `uv` or `pip` in a --runtime-env FILE ask for them"
        return CheckResult(facts.node, "versions", "fail" if grave else "warn", "; ".join(grave + slight), hint)
    return CheckResult(facts.node, "versions", "ok", f"Python {facts.versions.get('python')}, packages as the driver's")


def _is_grave(package: str, installed: str | None, wanted: str) -> bool:
    if package == "python":  # another minor version may not read its pickles
        return installed is None or installed.split(".")[:2] != wanted.split(".")[:2]
    if package not in _MUST_AGREE:
        return False
    # 2.13.0+cpu and +cu128 agree
    return installed is None or installed.partition("+")[0] != wanted.partition("+")[0]


def _thorough(facts: NodeFacts) -> Iterator[CheckResult]:
    yield _disk(facts)
    yield _memory(facts)
    if facts.offers_gpus or facts.gpus:
        yield _gpus(facts)
    yield _open_files(facts)
    yield _clock(facts)
    if facts.base_from is not None:
        yield CheckResult(facts.node, "base", "ok", facts.base_from)
    if facts.hub_problem is not None:
        hint = "let the node reach the hub, set HF_ENDPOINT to a mirror, or bring the base as a folder or package"
        yield CheckResult(facts.node, "hub", "fail", facts.hub_problem, hint)


def _disk(facts: NodeFacts) -> CheckResult:
    hint = "set LORAXS_HOME, when its Ray is started, to a folder with room that it can write to"
    if facts.home_problem:
        return CheckResult(facts.node, "storage", "fail", f"{facts.home}: {facts.home_problem}", hint)
    free = facts.free_bytes or 0
    verdict: Verdict = "fail" if free < _GIB / 2 else "warn" if free < 5 * _GIB else "ok"
    return _judged(facts, "storage", verdict, f"{facts.home}: {_gib(free)} free", hint)


def _memory(facts: NodeFacts) -> CheckResult:
    free, total = facts.free_memory_bytes or 0, facts.memory_bytes or 0
    hint = "a host needs the base, its factors and the rows in memory"
    verdict: Verdict = "warn" if total and free < 2 * _GIB else "ok"
    return _judged(facts, "memory", verdict, f"{_gib(free)} of {_gib(total)} free", hint)


def _gpus(facts: NodeFacts) -> CheckResult:
    sizes = [(int(total), int(free)) for _, total, free in facts.gpus if (total + free).isdigit()]
    kinds = ", ".join(_gpu(*gpu) for gpu in facts.gpus)
    value = f"Ray offers {facts.offers_gpus}, torch sees {facts.torch_gpus}" + (f": {kinds}" if kinds else "")
    if facts.torch_gpus < facts.offers_gpus:
        hint = "install a torch built for the node's driver, or start its Ray with the --num-gpus it has"
        return CheckResult(facts.node, "gpus", "fail", value, hint)
    if facts.torch_gpus > facts.offers_gpus:
        return CheckResult(facts.node, "gpus", "warn", value, "start its Ray with --num-gpus to have them used")
    if any(free < total / 2 for total, free in sizes):
        return CheckResult(facts.node, "gpus", "warn", value, "another program holds their memory")
    return CheckResult(facts.node, "gpus", "ok", value)


def _gpu(name: str, total: str, free: str) -> str:
    is_known = (total + free).isdigit()
    return f"{name} ({int(free) / 1024:.0f} of {int(total) / 1024:.0f} GiB free)" if is_known else name


def _open_files(facts: NodeFacts) -> CheckResult:
    limit = facts.open_files
    if limit is None or limit < 0 or limit >= _MANY_FILES:  # -1: no limit
        return CheckResult(facts.node, "open files", "ok", "unlimited" if limit in (None, -1) else str(limit))
    hint = f"`ulimit -n {_MANY_FILES * 16}` before its Ray is started"
    return CheckResult(facts.node, "open files", "fail" if limit < _FEW_FILES else "warn", str(limit), hint)


def _clock(facts: NodeFacts) -> CheckResult:
    skew = abs(facts.skew_s)
    verdict: Verdict = "fail" if skew > _SKEW_FAIL_S else "warn" if skew > _SKEW_WARN_S else "ok"
    hint = "let NTP or chrony set the clock: times of records come from it"
    return _judged(facts, "clock", verdict, f"{facts.skew_s:+.1f} s against the driver", hint)


def _gib(size: int) -> str:
    return f"{size / _GIB:.1f} GiB"
