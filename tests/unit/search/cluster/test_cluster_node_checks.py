"""What a node finds wrong with itself, and what doctor makes of that."""

from __future__ import annotations

from pathlib import Path
from types import SimpleNamespace
from typing import Any

import pytest
from support.servers import https_server

from loraxs_search.errors import ClusterError
from loraxs_search.search.cluster import doctor, node_checks
from loraxs_search.search.cluster.doctor import CheckResult
from loraxs_search.search.cluster.node_checks import checks_here, compare_clocks, compare_versions
from loraxs_search.versions import with_python

GIB = 2**30
HERE = {"python": "3.11.7", "ray": "2.60.0", "torch": "2.13.0+cpu", "peft": "0.21.2", "optuna": "5.0.0"}
FAST: dict[str, Any] = {"address": "10.0.0.2", "versions": with_python(), "mlflow": None, "files": [], "base": None}
FAST |= {"thorough": False, "hub": False, "gpus": 0}


@pytest.fixture
def node(monkeypatch, tmp_path):
    """Checks a node of which all is well but what is given."""

    def checked(
        free_bytes: int = 50 * GIB, memory: str = "MemTotal: 67108864 kB\nMemAvailable: 62914560 kB\n",
        open_files: int = 65536, smi: str = "", torch_gpus: int = 0, home: Path = tmp_path / "home", **question: Any,
    ) -> dict[str, tuple[str, str]]:  # fmt: skip
        def run(command: list[str], **_: object) -> Any:
            stdout = smi if command[0] == "nvidia-smi" else str(torch_gpus)
            return SimpleNamespace(returncode=0, stdout=stdout)

        def read_text(path: Path, *args: Any, whole: Any = Path.read_text, **kwargs: Any) -> Any:
            return memory if str(path) == "/proc/meminfo" else whole(path, *args, **kwargs)

        with monkeypatch.context() as patch:
            patch.setenv("LORAXS_HOME", str(home))
            patch.setattr(node_checks.shutil, "disk_usage", lambda _: SimpleNamespace(free=free_bytes))
            patch.setattr(Path, "read_text", read_text)
            patch.setattr(node_checks.resource, "getrlimit", lambda _: (open_files, 0))
            patch.setattr(node_checks.subprocess, "run", run)
            at, name, found = checks_here(FAST | {"thorough": True} | question)
        assert at > 1e9
        assert name.startswith("10.0.0.2 (")
        assert all(bool(hint) == (verdict != "ok") for _, verdict, _, hint in found)
        return {check: (verdict, value) for check, verdict, value, _ in found}

    return checked


def test_a_sound_node_has_a_finding_for_each_check_and_all_are_well(node, tmp_path):
    found = node(files=[str(tmp_path)], base={"id": str(tmp_path), "package": None, "revision": None})
    assert list(found) == ["versions", "files", "storage", "memory", "open files", "base"]
    assert {verdict for verdict, *_ in found.values()} == {"ok"}
    assert (found["files"][1], found["base"][1]) == ("1 there", "folder")
    assert list(node()) == ["versions", "storage", "memory", "open files"]
    assert [check for check, *_ in checks_here(FAST)[2]] == ["versions"], "the fast look asks for less"


def test_versions_that_change_results_fail_and_others_warn():
    for package, version, verdict in (
        ("python", "3.12.1", "fail"),
        ("python", "3.11.9", "warn"),
        ("torch", "2.13.0+cu128", "warn"),
        ("peft", None, "fail"),
        ("optuna", None, "warn"),
    ):
        theirs = {name: v for name, v in (HERE | {package: version}).items() if v is not None}
        _, found, value, hint = compare_versions(theirs, HERE)
        assert (found, bool(hint)) == (verdict, True)
        assert f"{package} {version or 'missing'}, the driver has {HERE[package]}" in value


GPU = "NVIDIA H100, 81559, 80000"


def test_each_fault_has_its_verdict_its_value_and_a_hint(node):
    elsewhere = {"id": "org/nowhere", "package": None, "revision": None}
    for check, facts, verdict, value in (
        ("files", {"files": ["/data/train.csv"]}, "fail", "missing: /data/train.csv"),
        ("storage", {"home": Path("/proc/nowhere")}, "fail", "/proc/nowhere: No such file"),
        ("storage", {"free_bytes": GIB // 4}, "fail", "0.2 GiB free"),
        ("storage", {"free_bytes": 3 * GIB}, "warn", "3.0 GiB free"),
        ("memory", {"memory": "MemTotal: 67108864 kB\nMemAvailable: 1048576 kB"}, "warn", "1.0 GiB of 64.0 GiB free"),
        ("open files", {"open_files": 256}, "fail", "256"),
        ("open files", {"open_files": 1024}, "warn", "1024"),
        ("open files", {"open_files": -1}, "ok", "unlimited"),
        ("base", {"base": elsewhere}, "ok", "the hub"),
        ("hub", {"base": elsewhere}, "fail", "HF_HUB_OFFLINE is set"),
        ("hub", {"hub": True}, "fail", "HF_HUB_OFFLINE is set"),
        ("gpus", {"gpus": 2}, "fail", "Ray offers 2, torch sees 0"),
        ("gpus", {"gpus": 1, "smi": GPU, "torch_gpus": 1}, "ok", "torch sees 1: NVIDIA H100 (78 of 80 GiB free)"),
        ("gpus", {"gpus": 1, "smi": "T4, 16384, 900", "torch_gpus": 1}, "warn", "1 of 16 GiB free"),
        ("gpus", {"gpus": 1, "smi": "GB10, [N/A], [N/A]", "torch_gpus": 1}, "ok", "sees 1: GB10"),
        ("gpus", {"smi": GPU, "torch_gpus": 1}, "warn", "Ray offers 0, torch sees 1"),
    ):
        found = node(**facts)[check]
        assert (found[0], value in found[1]) == (verdict, True), (check, facts, found)


def test_a_certificate_is_the_drivers_to_trust(tmp_path):
    """A node only has to find the server; MLFLOW_TRACKING_SERVER_CERT_PATH is set where records are sent from."""

    def mlflow(uri: str) -> tuple[str, str]:
        (_, (_, verdict, value, _)) = checks_here(FAST | {"mlflow": uri})[2]
        return verdict, value

    with https_server(tmp_path) as (uri, _):
        assert mlflow(uri) == ("ok", uri)
        assert mlflow(f"{uri}/elsewhere") == ("fail", "it answers with status 404")
    assert mlflow(uri.rpartition(":")[0] + ":9")[0] == "fail"


def test_a_clock_is_wrong_where_it_lies_outside_question_and_answer():
    faults = {101.0: ("ok", "+0.0 s"), 97.0: ("warn", "-3.0 s"), 105.0: ("warn", "+3.0 s"), 192.0: ("fail", "+90.0 s")}
    for read_at, (verdict, value) in faults.items():
        _, found, said, _ = compare_clocks(read_at, 100.0, 102.0)
        assert (found, said.startswith(value)) == (verdict, True)


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
