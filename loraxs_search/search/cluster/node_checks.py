"""Evaluates what nodes report of themselves, and finds what is wrong with a cluster. Pure."""

from __future__ import annotations

from collections.abc import Iterable, Iterator, Mapping, Sequence
from dataclasses import dataclass
from typing import Any, Literal

from loraxs_search.versions import TRAINING

Verdict = Literal["ok", "warn", "fail"]

# A host trains in these: another version there may give other results, or fail. The others run in the driver only.
_MUST_AGREE = (*TRAINING, "datasets", "ray")
_GIB = 2**30
_FEW_FILES, _MANY_FILES = 1024, 4096
_SKEW_WARN_S, _SKEW_FAIL_S = 2.0, 60.0


@dataclass(frozen=True)
class CheckResult:
    """One check of one node."""

    node: str
    check: str
    verdict: Verdict
    value: str
    hint: str = ""


def compare_versions(node: str, installed: Mapping[str, str], expected: Mapping[str, str]) -> CheckResult:
    """Compare a node's versions with the driver's."""
    differs: dict[Verdict, list[str]] = {"fail": [], "warn": []}
    for package, wanted in expected.items():
        own = installed.get(package)
        if own == wanted:
            continue
        if package == "python":  # another minor version may not read its pickles
            is_grave = own is None or own.split(".")[:2] != wanted.split(".")[:2]
        else:  # 2.13.0+cpu and +cu128 agree
            is_grave = package in _MUST_AGREE and (own is None or own.partition("+")[0] != wanted.partition("+")[0])
        differs["fail" if is_grave else "warn"].append(f"{package} {own or 'missing'}, the driver has {wanted}")
    if texts := differs["fail"] + differs["warn"]:
        hint = "install the same versions on every node, or have `uv` or `pip` in a --runtime-env FILE ask for them"
        return CheckResult(node, "versions", "fail" if differs["fail"] else "warn", "; ".join(texts), hint)
    return CheckResult(node, "versions", "ok", f"Python {installed.get('python')}, packages as the driver's")


def evaluate(
    node: str, facts: Mapping[str, Any], versions: Mapping[str, str], mlflow: str | None, files: Sequence[str]
) -> Iterator[CheckResult]:
    """Yield a result for each check of a node.

    Args:
        facts: What `node_facts.facts_here` returns, with `skew_s` of its clock and the GPUs that Ray offers there.
        versions: The driver's.
        mlflow: The server's address, without its password; None for an embedded store.
        files: Those that were asked for.
    """

    def result(check: str, verdict: Verdict, value: str, hint: str = "") -> CheckResult:
        return CheckResult(node, check, verdict, value, "" if verdict == "ok" else hint)

    yield compare_versions(node, facts["versions"], versions)
    if mlflow is not None:
        hint = f"open the way from {node} to {mlflow}: its address, firewall, proxy (no_proxy)"
        yield result("mlflow", "fail" if facts["mlflow_problem"] else "ok", facts["mlflow_problem"] or mlflow, hint)
    if files:
        missing = f"missing: {', '.join(facts['missing_files'])}" if facts["missing_files"] else ""
        hint = "put the files at the same path on every node, or mount a folder that all share"
        yield result("files", "fail" if missing else "ok", missing or f"{len(files)} there", hint)
    if "home" not in facts:  # it was not asked for the rest
        return

    free = facts["free_bytes"]
    verdict: Verdict = "fail" if facts["home_problem"] or free < _GIB / 2 else "warn" if free < 5 * _GIB else "ok"
    hint = "set LORAXS_HOME, when its Ray is started, to a folder with room that it can write to"
    yield result("storage", verdict, f"{facts['home']}: {facts['home_problem'] or f'{_gib(free)} free'}", hint)

    free, total = facts["free_memory_bytes"] or 0, facts["memory_bytes"] or 0
    hint = "a host needs the base, its factors and the rows in memory"
    yield result("memory", "warn" if total and free < 2 * _GIB else "ok", f"{_gib(free)} of {_gib(total)} free", hint)

    offers, sees, gpus = facts["offers_gpus"], facts["torch_gpus"], facts["gpus"]
    if offers or gpus:
        sizes = [(int(total), int(free)) for _, total, free in gpus if (total + free).isdigit()]  # else [N/A]
        verdict, hint = "ok", ""
        if sees < offers:
            verdict, hint = "fail", "install a torch built for the node's driver, or start its Ray with the GPUs it has"
        elif sees > offers:
            verdict, hint = "warn", "start its Ray with --num-gpus to have them used"
        elif any(free < total / 2 for total, free in sizes):
            verdict, hint = "warn", "another program holds their memory"
        kinds = [
            f"{name} ({int(free) / 1024:.0f} of {int(total) / 1024:.0f} GiB free)" if (total + free).isdigit() else name
            for name, total, free in gpus
        ]
        value = f"Ray offers {offers}, torch sees {sees}" + (f": {', '.join(kinds)}" if kinds else "")
        yield result("gpus", verdict, value, hint)

    limit = facts["open_files"]
    verdict = "ok" if limit < 0 or limit >= _MANY_FILES else "fail" if limit < _FEW_FILES else "warn"  # -1: no limit
    hint = f"`ulimit -n {_MANY_FILES * 16}` before its Ray is started"
    yield result("open files", verdict, "unlimited" if limit == -1 else str(limit), hint)

    skew_s = facts["skew_s"]
    verdict = "fail" if abs(skew_s) > _SKEW_FAIL_S else "warn" if abs(skew_s) > _SKEW_WARN_S else "ok"
    hint = "let NTP or chrony set the clock: times of records come from it"
    yield result("clock", verdict, f"{skew_s:+.1f} s against the driver", hint)

    if facts["base_from"] is not None:
        yield result("base", "ok", facts["base_from"])
    if facts["hub_problem"] is not None:
        hint = "let the node reach the hub, set HF_ENDPOINT to a mirror, or bring the base as a folder or package"
        yield result("hub", "fail", facts["hub_problem"], hint)


def unlike_files(digests: Mapping[str, Mapping[str, str]]) -> Iterator[CheckResult]:
    """Yield a result for each file that differs from that on the first node that has it.

    Args:
        digests: Of each file, by node.
    """
    first: dict[str, tuple[str, str]] = {}
    for own, files in digests.items():
        for path, digest in files.items():
            node, expected = first.setdefault(path, (own, digest))
            if digest != expected:
                value = f"{path} has sha256 {digest[:16]} here, {expected[:16]} on {node}"
                yield CheckResult(own, "files", "fail", value, "bring the same file to every node")


def failures(results: Iterable[CheckResult]) -> list[CheckResult]:
    """Return the results that prevent a search."""
    return [result for result in results if result.verdict == "fail"]


def _gib(size: int) -> str:
    return f"{size / _GIB:.1f} GiB"
