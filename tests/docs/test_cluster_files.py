"""cluster/ holds what it says: schemas, options and commands are checked against the programs that will read them."""

from __future__ import annotations

import configparser
import copy
import importlib.metadata
import itertools
import json
import os
import re
import shlex
import subprocess
import sys
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest
import typer
from packaging.requirements import Requirement
from support.cluster_files import (
    CLUSTER,
    FILES,
    LAUNCHERS,
    MANIFESTS,
    NODE_ENVIRONMENT,
    SCRIPTS,
    documents,
    environment,
    read,
)
from support.pages import ROOT

from loraxs_search import __version__
from loraxs_search.cli._main import app
from loraxs_search.home import shipped_spaces

TEXTS = {str(path.relative_to(ROOT)): path.read_text() for path in [*FILES, CLUSTER / "README.md"]}
BIN = Path(sys.executable).parent


# ---- every file ------------------------------------------------------------------------------------------------------
def test_every_file_opens_with_what_it_is_and_needs_and_its_commands_and_the_index_names_it():
    """A new file gets its checks below."""
    known = {*LAUNCHERS, *SCRIPTS, *MANIFESTS, "kuberay/Dockerfile", "mlflow/basic_auth.ini"}
    assert {str(path.relative_to(CLUSTER)) for path in FILES} == known
    index = read("README.md")
    programs = r"(cluster/|ray |kubectl |sbatch |docker )"
    for name in known:
        lines = read(name).removeprefix("#!/usr/bin/env bash\n").splitlines()
        head = "\n".join(lines[: next(i for i, line in enumerate(lines) if not line.startswith("#"))])
        assert re.match(r"# [A-Z]", head) and "# Needs: " in head, name
        assert re.search(rf'^#( Run:)? {{4,}}(eval "\$\()?{programs}', head, re.MULTILINE), head
        folder, slash, _ = name.rpartition("/")
        assert f"`{folder + slash if folder else name}`" in index, name


def test_files_named_in_a_file_exist_and_no_secret_stands_in_it():
    """What is named like a secret is taken from elsewhere, generated, or a gap for the reader to fill."""
    for name, text in TEXTS.items():
        for path in re.findall(r"\bcluster/[\w./-]*\w", text):
            assert (ROOT / path).exists(), (name, path)
        values = re.findall(r"(?:PASSWORD|TOKEN|SECRET\w*|ACCESS_KEY\w*)(?:=|\", *\"|, value: )(\S*)", text)
        assert [value for value in values if not re.match(r"(\.\.\.|\$\(|\$\w|$)", value)] == [], name


# ---- commands --------------------------------------------------------------------------------------------------------
def our_commands(text: str) -> Iterator[list[str]]:
    """Every call of the command line in comments, quotes and code, as the shell would split it."""
    verbs = "|".join(typer.main.get_command(app).commands)  # type: ignore[attr-defined]
    for call in re.findall(rf"loraxs-search ((?:{verbs})\b[^'`\n|>&;()]*)", text):
        yield shlex.split(call, comments=True)


def test_our_commands_are_there_and_understood_by_the_command_line():
    group: Any = typer.main.get_command(app)
    verbs = set[str]()
    for args in (args for text in TEXTS.values() for args in our_commands(text)):
        with group.make_context("loraxs-search", list(args)) as context:
            verb, command, rest = group.resolve_command(context, list(args))
            command.make_context(verb, rest, parent=context)
        verbs.add(verb)
        if verb == "launch" and args[1] not in ("SPACE", "$space"):
            assert args[1] in shipped_spaces()
    assert {"launch", "resume", "status", "pull"} <= verbs
    for name in {*LAUNCHERS, "local/start.sh", "slurm.sbatch", "kuberay/rayjob.yaml", "mlflow/serve.sh"}:
        assert any(args[0] == "launch" for args in our_commands(read(name))), name


# ---- shell -----------------------------------------------------------------------------------------------------------
def shellcheck(text: str, *options: str) -> str:
    command = [BIN / "shellcheck", "--shell=bash", *options, "-"]
    return subprocess.run(command, input=text, capture_output=True, text=True, timeout=60, check=False).stdout


def test_scripts_and_the_commands_of_launchers_pass_shellcheck():
    for name in SCRIPTS:
        assert shellcheck(read(name)) == ""
        assert os.access(CLUSTER / name, os.X_OK)
    # $RAY_HEAD_IP is one word; what goes into ~/.bashrc is expanded there.
    commands = dict.fromkeys(command for name in LAUNCHERS for command in launcher_commands(name))
    for command in commands:
        assert shellcheck(command, "--exclude=SC2086,SC2016") == "", command


def launcher_commands(name: str) -> Iterator[str]:
    [config] = documents(name)
    for key, value in config.items():
        if key.endswith("_commands"):
            yield from value


# ---- Ray -------------------------------------------------------------------------------------------------------------
@pytest.mark.parametrize("name", LAUNCHERS)
def test_a_launcher_file_is_what_ray_up_takes(name):
    from ray.autoscaler._private.util import prepare_config, validate_config
    from ray.scripts.scripts import start

    lines = list(ray_start_lines(name))
    assert [("--head" in line) for line in lines] == [True, False]
    for line in lines:
        start.make_context("start", line)
    [config] = documents(name)
    if config["provider"]["type"] == "local":  # Ray's schema has no node types for these; it adds them itself
        assert "available_node_types" not in config
    prepared = prepare_config(copy.deepcopy(config))
    validate_config(prepared)
    assert prepared["max_workers"] >= 1
    assert str(config["file_mounts"]).count("auth_token") == 2
    if name != "on-prem.yaml":  # the files start all workers that they name, and what spot takes is replaced
        workers = [kind for key, kind in config["available_node_types"].items() if key != config["head_node_type"]]
        assert sum(kind["min_workers"] for kind in workers) == config["max_workers"]
        assert all("spot" in str(kind["node_config"]).lower() for kind in workers)


def ray_start_lines(name: str) -> Iterator[list[str]]:
    for command in launcher_commands(name):
        for part in command.split(";"):
            words = list(itertools.dropwhile(lambda word: re.match(r"\w+=", word), shlex.split(part)))
            if words[:2] == ["ray", "start"]:
                yield words[2:]


def test_every_node_asks_for_the_token_and_has_the_environment_of_a_local_one():
    for name in (*LAUNCHERS, "local/start.sh", "slurm.sbatch"):
        code = re.sub(r"^\s*#.*$", "", read(name), flags=re.MULTILINE)
        for variable, value in {"RAY_AUTH_MODE": "token", **NODE_ENVIRONMENT}.items():
            assert f" {variable}={value}" in code, (name, variable)


WHEEL = f"loraxs_search-{__version__}-py3-none-any.whl"


@pytest.mark.parametrize("name", [*LAUNCHERS, "kuberay/Dockerfile"])
def test_a_file_installs_the_wheel_of_make_dist_that_it_copies(name):
    header, code = [re.findall(pattern, read(name), re.MULTILINE) for pattern in (r"^# .*$", r"^[^#\n].*$")]
    assert any("make dist" in line for line in header)
    assert any(re.search(rf"pip install .*\S*/{re.escape(WHEEL)}\b", line) for line in code)
    assert set(re.findall(r"[\w.-]+\.whl", read(name))) == {WHEEL}
    if name in LAUNCHERS:
        [config] = documents(name)
        (home,) = {place.removesuffix("/dist") for place, source in config["file_mounts"].items() if source == "dist"}
        assert f"{home}/.ray/auth_token" in config["file_mounts"]
        assert all(f" ~/dist/{WHEEL}" in command for command in launcher_commands(name) if WHEEL in command)


def test_ray_up_does_not_turn_the_second_autoscaler_on():
    """`ray up` exports the variable before each command of the head; it takes the head for a worker there."""
    from ray.autoscaler._private.util import with_envs

    [config] = documents("on-prem.yaml")
    *_, command = with_envs(config["head_start_ray_commands"], {"RAY_enable_autoscaler_v2": "1"})
    ray = "ray() { echo $RAY_enable_autoscaler_v2 $*; }"
    done = subprocess.run(["bash", "-c", f"{ray}; {command}"], capture_output=True, text=True, timeout=60, check=True)
    assert done.stdout.startswith("0 start --head ")


def test_all_name_one_ray_and_one_image():
    named = r"(?:rayproject/ray:|rayVersion: |ray\[default\]==)([\d.*]+)"
    assert {version for text in TEXTS.values() for version in re.findall(named, text)} == {"2.60.0"}
    needed = [Requirement(r) for r in importlib.metadata.requires("loraxs-search") or ()]
    assert all(r.specifier.contains("2.60.0") for r in needed if r.name == "ray")
    images = {i for text in TEXTS.values() for i in re.findall(r"registry\.example\.org/loraxs-search:\S+", text)}
    assert images == {f"registry.example.org/loraxs-search:{__version__}"}


# ---- MLflow ----------------------------------------------------------------------------------------------------------
SERVER = {
    **dict.fromkeys(("PGHOST", "PGUSER", "PGDATABASE", "PGPASSWORD", "MLFLOW_AUTH_ADMIN_PASSWORD"), "x"),
    "MLFLOW_FLASK_SERVER_SECRET_KEY": "x",
    "ARTIFACTS": "s3://bucket/folder",
    "ALLOWED_HOSTS": "mlflow.example.org",
}


def serve(tmp_path: Path, variables: dict[str, str]) -> subprocess.CompletedProcess[str]:
    """Run serve.sh with a stand-in for `mlflow` that prints what it was given."""
    mlflow = tmp_path / "mlflow"
    mlflow.write_text(
        f"#!{sys.executable}\nimport json, os, sys\n"
        "print(json.dumps([sys.argv[1:], {k: v for k, v in os.environ.items() if k.startswith('MLFLOW_')}]))\n"
    )
    mlflow.chmod(0o755)
    env = {"PATH": f"{tmp_path}:{os.environ['PATH']}", **variables}
    return subprocess.run(
        [CLUSTER / "mlflow" / "serve.sh"], env=env, capture_output=True, text=True, timeout=60, check=False
    )


@pytest.mark.filterwarnings(
    "ignore:.*Any type hint is inferred:UserWarning"
)  # of MLflow's own, when its CLI is imported
def test_the_server_is_started_with_options_that_mlflow_knows_and_no_secret_among_them(tmp_path):
    from mlflow.cli import server

    done = serve(tmp_path, SERVER | {"PGPASSWORD": "pg-secret", "MLFLOW_AUTH_ADMIN_PASSWORD": "admin-secret"})
    assert done.returncode == 0, done.stderr
    [verb, *args], env = json.loads(done.stdout)
    params = server.make_context(verb, list(args)).params
    assert (params["host"], params["app_name"]) == ("127.0.0.1", "basic-auth")
    assert params["artifacts_destination"] == "s3://bucket/folder"
    assert env["MLFLOW_DISABLE_TELEMETRY"] == "true"
    assert not any("secret" in word for word in args)
    accounts = configparser.ConfigParser()
    accounts.read(env["MLFLOW_AUTH_CONFIG_PATH"])
    assert accounts["mlflow"]["database_uri"] == params["backend_store_uri"]


def test_the_server_does_not_start_without_what_it_presumes_and_the_deployment_gives_that(tmp_path):
    for missing in SERVER:
        done = serve(tmp_path, {name: value for name, value in SERVER.items() if name != missing})
        assert (done.returncode != 0, missing in done.stderr, done.stdout) == (True, True, ""), missing
    [deployment] = [d for d in documents("kuberay/mlflow.yaml") if d["kind"] == "Deployment"]
    assert set(SERVER) <= set(environment(deployment))
