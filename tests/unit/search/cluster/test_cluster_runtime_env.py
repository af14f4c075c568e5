"""What goes to every node with a search."""

from __future__ import annotations

import json
import re
from pathlib import Path

import pytest

import loraxs_search
from loraxs_search.errors import UsageError
from loraxs_search.search.cluster.connection import connected, job_environment, setup_problem

PACKAGE = str(Path(loraxs_search.__file__).parent)


def test_the_package_goes_to_every_node(tmp_path):
    assert job_environment(None) == {"py_modules": [PACKAGE], "excludes": ["__pycache__"]}
    file = tmp_path / "env.yaml"
    file.write_text("uv: [peft==0.21.2]\n")
    assert job_environment(str(file)) == {"uv": ["peft==0.21.2"], **job_environment(None)}


def test_modules_that_were_chosen_stand(tmp_path, monkeypatch):
    file = tmp_path / "env.yaml"
    file.write_text("py_modules: [gs://bucket/ours.zip]\n")
    assert job_environment(str(file)) == {"py_modules": ["gs://bucket/ours.zip"]}
    job = {"runtime_env": {"py_modules": ["gcs://a.zip"], "excludes": []}}
    monkeypatch.setenv("RAY_JOB_CONFIG_JSON_ENV_VAR", json.dumps(job))
    assert job_environment(None) == {}, "Ray refuses what the job and its driver both name"


@pytest.mark.parametrize("text", ["[a, b]", "a: [", "1: x"])
def test_a_file_that_is_no_environment_is_refused(text, tmp_path):
    file = tmp_path / "env.yaml"
    file.write_text(text)
    with pytest.raises(UsageError, match="--runtime-env"):
        job_environment(str(file))
    with pytest.raises(UsageError, match="No such file"):
        job_environment(str(tmp_path / "none.yaml"))


@pytest.mark.parametrize(
    ("text", "message"),
    [
        ("pipp: [cowsay]", r"env\.yaml` must be one of: pip, .*, but got 'pipp'"),
        ("pip: [cowsay]\nuv: [cowsay]", "cannot be specified at the same time"),
        ("pip: 5", "must be of type str or List"),
        ("pip: none-such.txt", "not a valid file"),
        ("env_vars: {A: 1}", r"must be of type Dict\[str, str\]"),
        ("working_dir: /none/such", "/none/such"),
    ],
)
def test_what_ray_does_not_take_is_refused_with_the_file(text, message, tmp_path):
    file = tmp_path / "env.yaml"
    file.write_text(text)
    with pytest.raises(UsageError, match=message) as caught:
        job_environment(str(file))
    assert str(file) in str(caught.value)


def test_keys_of_plugins_are_taken(tmp_path, monkeypatch):
    monkeypatch.setenv("RAY_RUNTIME_ENV_PLUGINS", "[]")
    file = tmp_path / "env.yaml"
    file.write_text("ours: 1\n")
    assert job_environment(str(file))["ours"] == 1


# The ends of what Ray 2.60 says, with pip 23 and uv 0.9 behind it.
COMMAND = """Failed to set up runtime environment.
[Node 10.0.0.7] Traceback (most recent call last):
ray._private.runtime_env.utils.SubprocessCalledProcessError: Run cmd[13] failed with the following details.
Command '['python', '-m', 'pip', 'install', '-r', 'requirements.txt']' returned non-zero exit status 1.
Last 50 lines of stdout:
"""
PIP = """    Looking in indexes: https://index.example
    ERROR: Could not find a version that satisfies the requirement cow==1.0 (from versions: none)
    ERROR: No matching distribution found for cow==1.0
"""
UV = """    Using Python 3.11.7 environment at: /tmp/virtualenv
    error: No solution found when resolving dependencies
      cause: Because cow was not found in the package registry and you require cow==1.0, we can conclude that your \
requirements are unsatisfiable.
"""
RAY = """Traceback (most recent call last):
RuntimeError: Changing the ray version is not allowed:
  current version: 2.59.0, expect version: 2.60.0, do not install a different version of Ray.
"""


@pytest.mark.parametrize(
    ("output", "problem"),
    [
        (COMMAND + PIP, "ERROR: Could not find .* cow==1.0 .* ERROR: No matching distribution found for cow==1.0"),
        (COMMAND + UV, "error: No solution found .* cause: Because cow was not found .* unsatisfiable."),
        (COMMAND + "    Killed\n", "Killed"),
        (RAY, "current version: 2.59.0, .*"),
    ],
)
def test_why_an_environment_was_not_made_is_one_line(output, problem):
    assert re.fullmatch(problem, setup_problem(output))


def test_an_environment_without_a_cluster_is_refused():
    with pytest.raises(UsageError, match="with --address"), connected(None, runtime_env="env.yaml"):
        pass
