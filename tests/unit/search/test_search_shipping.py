"""What goes to every node with a search."""

from __future__ import annotations

import json
from pathlib import Path

import pytest

import loraxs_search
from loraxs_search.errors import UsageError
from loraxs_search.search.cluster import connected
from loraxs_search.search.shipping import runtime_env

PACKAGE = str(Path(loraxs_search.__file__).parent)


def test_the_package_goes_to_every_node(tmp_path: Path) -> None:
    assert runtime_env(None) == {"py_modules": [PACKAGE], "excludes": ["__pycache__"]}
    file = tmp_path / "env.yaml"
    file.write_text("uv: [peft==0.21.2]\n")
    assert runtime_env(str(file)) == {"uv": ["peft==0.21.2"], **runtime_env(None)}


def test_modules_that_were_chosen_stand(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    file = tmp_path / "env.yaml"
    file.write_text("py_modules: [gs://bucket/ours.zip]\n")
    assert runtime_env(str(file)) == {"py_modules": ["gs://bucket/ours.zip"]}
    job = {"runtime_env": {"py_modules": ["gcs://a.zip"], "excludes": []}}
    monkeypatch.setenv("RAY_JOB_CONFIG_JSON_ENV_VAR", json.dumps(job))
    assert runtime_env(None) == {}, "Ray refuses what the job and its driver both name"


@pytest.mark.parametrize("text", ["[a, b]", "a: [", "1: x"])
def test_a_file_that_is_no_environment_is_refused(text: str, tmp_path: Path) -> None:
    file = tmp_path / "env.yaml"
    file.write_text(text)
    with pytest.raises(UsageError, match="--runtime-env"):
        runtime_env(str(file))
    with pytest.raises(UsageError, match="No such file"):
        runtime_env(str(tmp_path / "none.yaml"))


def test_an_environment_without_a_cluster_is_refused() -> None:
    with pytest.raises(UsageError, match="with --address"), connected(None, runtime_env="env.yaml"):
        pass
