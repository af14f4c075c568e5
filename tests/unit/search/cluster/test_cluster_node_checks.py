"""What doctor makes of what nodes say of themselves."""

from __future__ import annotations

from typing import Any

import pytest
from support.tls import https_server

from loraxs_search.errors import ClusterError
from loraxs_search.search.cluster import doctor, node_checks
from loraxs_search.search.cluster.node_checks import CheckResult, evaluate

GIB = 2**30
HERE = {
    "python": "3.11.7",
    "loraxs-search": "0.1.0",
    "ray": "2.60.0",
    "torch": "2.13.0+cpu",
    "peft": "0.21.2",
    "transformers": "5.24.0",
    "datasets": "4.0.0",
    "optuna": "5.0.0",
}
FAST: dict[str, Any] = {"versions": HERE, "mlflow_problem": None, "missing_files": []}
SOUND = FAST | {
    "skew_s": 0.4,
    "open_files": 65536,
    "home": "/home/me/.loraxs-search",
    "home_problem": None,
    "free_bytes": 50 * GIB,
    "memory_bytes": 64 * GIB,
    "free_memory_bytes": 60 * GIB,
    "base_from": "folder",
    "hub_problem": None,
    "offers_gpus": 0,
    "torch_gpus": 0,
    "gpus": [],
}
EXPECTED: Any = (HERE, "http://mlflow:5000", ["/data/train.csv"])


def result_of(check: str, **changes: Any) -> CheckResult:
    (result,) = [it for it in evaluate("10.0.0.2", SOUND | changes, *EXPECTED) if it.check == check]
    return result


def test_a_sound_node_has_a_finding_for_each_check_and_all_are_well():
    results = list(evaluate("10.0.0.2", SOUND, *EXPECTED))
    checks = ["versions", "mlflow", "files", "storage", "memory", "open files", "clock", "base"]
    assert [it.check for it in results] == checks
    assert {it.verdict for it in results} == {"ok"}
    assert not any(it.hint for it in results)


@pytest.mark.parametrize(
    ("package", "version", "verdict"),
    [
        ("python", "3.12.1", "fail"),
        ("python", "3.11.9", "warn"),
        ("ray", "2.60.1", "fail"),
        ("torch", "2.13.0+cu128", "warn"),
        ("peft", None, "fail"),
        ("optuna", None, "warn"),
    ],
)
def test_versions_that_change_results_fail_and_others_warn(package, version, verdict):
    theirs = {name: v for name, v in (HERE | {package: version}).items() if v is not None}
    result = result_of("versions", versions=theirs)
    assert result.verdict == verdict
    assert f"{package} {version or 'missing'}, the driver has {HERE[package]}" in result.value
    assert "--runtime-env" in result.hint


GPU = ("NVIDIA H100", "81559", "80000")


@pytest.mark.parametrize(
    ("check", "changes", "verdict", "value"),
    [
        ("mlflow", {"mlflow_problem": "Connection refused"}, "fail", "Connection refused"),
        ("files", {"missing_files": ["/data/train.csv"]}, "fail", "missing: /data/train.csv"),
        ("storage", {"home_problem": "Read-only file system"}, "fail", "Read-only"),
        ("storage", {"free_bytes": GIB // 4}, "fail", "0.2 GiB free"),
        ("storage", {"free_bytes": 3 * GIB}, "warn", "3.0 GiB free"),
        ("memory", {"free_memory_bytes": GIB}, "warn", "1.0 GiB of 64.0 GiB free"),
        ("open files", {"open_files": 256}, "fail", "256"),
        ("open files", {"open_files": 1024}, "warn", "1024"),
        ("open files", {"open_files": -1}, "ok", "unlimited"),
        ("clock", {"skew_s": -3.0}, "warn", "-3.0 s"),
        ("clock", {"skew_s": 90.0}, "fail", "+90.0 s"),
        ("hub", {"hub_problem": "timed out"}, "fail", "timed out"),
        ("gpus", {"offers_gpus": 2}, "fail", "Ray offers 2, torch sees 0"),
        ("gpus", {"offers_gpus": 1, "torch_gpus": 1, "gpus": [GPU]}, "ok", "NVIDIA H100 (78 of 80 GiB free)"),
        ("gpus", {"offers_gpus": 1, "torch_gpus": 1, "gpus": [("T4", "16384", "900")]}, "warn", "1 of 16 GiB free"),
        ("gpus", {"offers_gpus": 1, "torch_gpus": 1, "gpus": [("GB10", "[N/A]", "[N/A]")]}, "ok", "sees 1: GB10"),
        ("gpus", {"torch_gpus": 1, "gpus": [GPU]}, "warn", "Ray offers 0, torch sees 1"),
    ],
)
def test_each_fault_has_its_verdict_its_value_and_a_hint(check, changes, verdict, value):
    result = result_of(check, **changes)
    assert (result.node, result.verdict) == ("10.0.0.2", verdict)
    assert value in result.value
    assert bool(result.hint) == (verdict != "ok")


def test_the_fast_look_asks_for_less():
    assert [it.check for it in evaluate("n", FAST, *EXPECTED)] == ["versions", "mlflow", "files"]
    assert [it.check for it in evaluate("n", FAST, HERE, None, [])] == ["versions"]


def test_a_certificate_is_the_drivers_to_trust(tmp_path):
    """A node only has to find the server; MLFLOW_TRACKING_SERVER_CERT_PATH is set where records are sent from."""
    question = {"files": [], "base": None, "hub": False, "thorough": False}
    with https_server(tmp_path) as (uri, _):
        assert node_checks.facts_here(question | {"mlflow": uri})["mlflow_problem"] is None
        wrong = node_checks.facts_here(question | {"mlflow": f"{uri}/elsewhere"})["mlflow_problem"]
        assert wrong == "it answers with status 404"
    closed = uri.rpartition(":")[0] + ":9"
    assert node_checks.facts_here(question | {"mlflow": closed})["mlflow_problem"] is not None


def test_a_node_says_of_itself_what_facts_hold(tmp_path, monkeypatch):
    """The real facts, here: every key is a field, and this machine is fit."""
    question = {
        "mlflow": "http://me:secret@127.0.0.1:9",
        "files": [str(tmp_path), str(tmp_path / "none")],
        "base": {"id": "org/nowhere", "package": None, "revision": None},
        "hub": False,
        "thorough": True,
    }
    facts = node_checks.facts_here(question)
    assert facts["at"] > 1e9
    assert facts["missing_files"] == [str(tmp_path / "none")]
    assert "secret" not in facts["mlflow_problem"]
    assert facts["base_from"] == "the hub"
    assert facts["hub_problem"] == "HF_HUB_OFFLINE is set"
    results = evaluate(
        "here", facts | {"skew_s": 0.0, "offers_gpus": 0}, facts["versions"], "http://x", question["files"]
    )
    assert {"mlflow", "files", "hub"} == {it.check for it in results if it.verdict == "fail"} - {
        "storage",
        "open files",
    }
    monkeypatch.setenv("LORAXS_HOME", "/proc/nowhere")
    assert node_checks.facts_here(question)["home_problem"]


def test_a_storage_is_looked_at_before_a_search(tmp_path, monkeypatch):
    def unreachable(*_: object, **__: object) -> None:
        raise ClusterError("no Ray here")

    def examined(uri: str) -> CheckResult:
        return doctor.examine(storage=uri)[1]

    monkeypatch.setattr(doctor, "ensure_store", lambda uri: None)
    monkeypatch.setattr(doctor, "connected", unreachable)
    assert examined(str(tmp_path)) == CheckResult("driver", "storage", "ok", str(tmp_path))
    assert list(tmp_path.iterdir()) == []
    missing = examined(str(tmp_path / "unmounted"))
    assert (missing.verdict, bool(missing.hint)) == ("fail", True)
    assert "must be a folder that is there" in missing.value
    assert examined("gs://bucket").verdict == "fail"
