"""cluster/ holds what it says: schemas, options and commands are checked against the programs that will read them."""

from __future__ import annotations

import configparser
import copy
import importlib.metadata
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
import yaml
from packaging.requirements import Requirement

from loraxs_search.cli._main import app
from loraxs_search.search.cluster.connection import _RAY_ENVIRONMENT
from loraxs_search.shipped_spaces import shipped_spaces

ROOT = Path(__file__).parents[2]
CLUSTER = ROOT / "cluster"
FILES = sorted(path for path in CLUSTER.rglob("*") if path.is_file() and path.name != "README.md")
TEXTS = {str(path.relative_to(ROOT)): path.read_text() for path in [*FILES, CLUSTER / "README.md"]}
LAUNCHERS = ("aws.yaml", "gcp.yaml", "on-prem.yaml")
SCRIPTS = ("local/start.sh", "local/stop.sh", "mlflow/serve.sh", "slurm.sbatch")
MANIFESTS = ("kuberay/mlflow.yaml", "kuberay/raycluster.yaml", "kuberay/rayjob.yaml")
BIN = Path(sys.executable).parent
KUBERNETES = "1.34"  # of the schemas; any version that knows these kinds would do

# A node started without these would not be as `launch` starts its own (`_RAY_ENVIRONMENT` says why each matters).
NODE_ENVIRONMENT = {
    name: _RAY_ENVIRONMENT[name]
    for name in ("RAY_worker_niceness", "RAY_ACCEL_ENV_VAR_OVERRIDE_ON_ZERO", "RAY_USAGE_STATS_ENABLED")
}


def read(name: str) -> str:
    return (CLUSTER / name).read_text()


def documents(name: str) -> list[dict[str, Any]]:
    return [document for document in yaml.safe_load_all(read(name)) if document]


# ---- every file ------------------------------------------------------------------------------------------------------
def test_every_file_is_known_here():
    """A new file gets its checks below."""
    known = {*LAUNCHERS, *SCRIPTS, *MANIFESTS, "kuberay/Dockerfile", "mlflow/basic_auth.ini"}
    assert {str(path.relative_to(CLUSTER)) for path in FILES} == known


@pytest.mark.parametrize("name", [*LAUNCHERS, *SCRIPTS, *MANIFESTS, "kuberay/Dockerfile", "mlflow/basic_auth.ini"])
def test_a_file_opens_with_what_it_is_and_needs_and_its_commands(name):
    lines = read(name).removeprefix("#!/usr/bin/env bash\n").splitlines()
    head = "\n".join(lines[: next(i for i, line in enumerate(lines) if not line.startswith("#"))])
    assert re.match(r"# [A-Z]", head)
    assert "# Needs: " in head
    programs = r"(cluster/|ray |kubectl |sbatch |docker )"
    assert re.search(rf'^#( Run:)? {{4,}}(eval "\$\()?{programs}', head, re.MULTILINE), head


def test_the_index_names_every_file():
    index = read("README.md")
    folders = {path.parent.name for path in FILES if path.parent != CLUSTER}
    names = {path.name for path in FILES if path.parent == CLUSTER} | {f"{folder}/" for folder in folders}
    assert {name for name in names if f"`{name}`" not in index} == set()


@pytest.mark.parametrize("name", TEXTS)
def test_files_named_in_a_file_exist(name):
    for path in re.findall(r"\bcluster/[\w./-]*\w", TEXTS[name]):
        assert (ROOT / path).exists(), path


@pytest.mark.parametrize("name", TEXTS)
def test_no_secret_stands_in_a_file(name):
    """What is named like a secret is taken from elsewhere, generated, or a gap for the reader to fill."""
    values = re.findall(r"(?:PASSWORD|TOKEN|SECRET\w*|ACCESS_KEY\w*)(?:=|\", *\"|, value: )(\S*)", TEXTS[name])
    assert [value for value in values if not re.match(r"(\.\.\.|\$\(|\$\w|$)", value)] == []


# ---- commands --------------------------------------------------------------------------------------------------------
def our_commands(text: str) -> Iterator[list[str]]:
    """Every call of the command line in comments, quotes and code, as the shell would split it."""
    verbs = "|".join(typer.main.get_command(app).commands)  # type: ignore[attr-defined]
    for call in re.findall(rf"loraxs-search ((?:{verbs})\b[^'`\n|>&;()]*)", text):
        yield shlex.split(call, comments=True)


@pytest.mark.parametrize("name", TEXTS)
def test_our_commands_are_understood_by_the_command_line(name):
    group: Any = typer.main.get_command(app)
    for args in our_commands(TEXTS[name]):
        with group.make_context("loraxs-search", list(args)) as context:
            verb, command, rest = group.resolve_command(context, list(args))
            command.make_context(verb, rest, parent=context)
        if verb == "launch" and args[1] not in ("SPACE", "$space"):
            assert args[1] in shipped_spaces()


def test_the_commands_are_found():
    verbs = {args[0] for text in TEXTS.values() for args in our_commands(text)}
    assert {"launch", "resume", "status", "pull"} <= verbs
    with_a_search = {*LAUNCHERS, "local/start.sh", "slurm.sbatch", "kuberay/rayjob.yaml", "mlflow/serve.sh"}
    for name in with_a_search:
        assert any(args[0] == "launch" for args in our_commands(read(name))), name


# ---- shell -----------------------------------------------------------------------------------------------------------
def shellcheck(text: str, *options: str) -> str:
    command = [BIN / "shellcheck", "--shell=bash", *options, "-"]
    return subprocess.run(command, input=text, capture_output=True, text=True, timeout=60, check=False).stdout


@pytest.mark.parametrize("name", SCRIPTS)
def test_a_script_passes_shellcheck(name):
    assert shellcheck(read(name)) == ""
    assert os.access(CLUSTER / name, os.X_OK)


@pytest.mark.parametrize("name", LAUNCHERS)
def test_the_commands_of_a_launcher_pass_shellcheck(name):
    for command in launcher_commands(name):
        # $RAY_HEAD_IP is one word; what goes into ~/.bashrc is expanded there.
        said = shellcheck(command, "--exclude=SC2086,SC2016")
        assert said == "", said


def launcher_commands(name: str) -> Iterator[str]:
    [config] = documents(name)
    for key, value in config.items():
        if key.endswith("_commands"):
            yield from value


# ---- Ray -------------------------------------------------------------------------------------------------------------
@pytest.mark.parametrize("name", LAUNCHERS)
def test_a_launcher_file_is_what_ray_up_takes(name):
    from ray.autoscaler._private.util import prepare_config, validate_config

    [config] = documents(name)
    if config["provider"]["type"] == "local":  # Ray's schema has no node types for these; it adds them itself
        assert "available_node_types" not in config
    prepared = prepare_config(copy.deepcopy(config))
    validate_config(prepared)
    assert prepared["max_workers"] >= 1
    assert str(config["file_mounts"]).count("auth_token") == 2


@pytest.mark.parametrize("name", ["aws.yaml", "gcp.yaml"])
def test_all_workers_are_there_when_a_search_starts(name):
    """As they stand, the files start what they name, and what spot takes is replaced."""
    [config] = documents(name)
    workers = [kind for key, kind in config["available_node_types"].items() if key != config["head_node_type"]]
    assert sum(kind["min_workers"] for kind in workers) == config["max_workers"]
    assert all("spot" in str(kind["node_config"]).lower() for kind in workers)


def ray_start_lines(name: str) -> Iterator[list[str]]:
    for command in launcher_commands(name):
        for part in command.split(";"):
            words = shlex.split(part)
            if words[:2] == ["ray", "start"]:
                yield words[2:]


@pytest.mark.parametrize("name", LAUNCHERS)
def test_ray_start_is_understood_by_ray(name):
    from ray.scripts.scripts import start

    lines = list(ray_start_lines(name))
    assert [("--head" in line) for line in lines] == [True, False]
    for line in lines:
        start.make_context("start", line)


@pytest.mark.parametrize("name", [*LAUNCHERS, "local/start.sh", "slurm.sbatch"])
def test_every_node_asks_for_the_token_and_has_the_environment_of_a_local_one(name):
    code = re.sub(r"^\s*#.*$", "", read(name), flags=re.MULTILINE)
    for variable, value in {"RAY_AUTH_MODE": "token", **NODE_ENVIRONMENT}.items():
        assert f" {variable}={value}" in code, variable


def test_all_name_one_ray_and_one_image():
    versions = {v for text in TEXTS.values() for v in re.findall(r"rayproject/ray:([\d.]+)|rayVersion: ([\d.]+)", text)}
    assert {a or b for a, b in versions} == {"2.60.0"}
    needed = [Requirement(r) for r in importlib.metadata.requires("loraxs-search") or ()]
    assert all(r.specifier.contains("2.60.0") for r in needed if r.name == "ray")
    images = {i for text in TEXTS.values() for i in re.findall(r"registry\.example\.org/loraxs-search:\S+", text)}
    assert len(images) == 1


# ---- Kubernetes ------------------------------------------------------------------------------------------------------
OBJECTS = [
    pytest.param(document, id=f"{document['kind']}-{document['metadata']['name']}")
    for name in MANIFESTS
    for document in documents(name)
]
OURS = [o for o in OBJECTS if not o.values[0]["apiVersion"].startswith("ray.io/")]  # type: ignore[index]
KUBERAY = [o for o in OBJECTS if o.values[0]["apiVersion"].startswith("ray.io/")]  # type: ignore[index]

# KubeRay's API reference, `ray.io/v1`; no package carries its schemas.
FIELDS = {
    "RayCluster": """authOptions autoscalerOptions enableInTreeAutoscaling gcsFaultToleranceOptions headGroupSpec
        headServiceAnnotations managedBy rayVersion suspend workerGroupSpecs""",
    "headGroupSpec": "enableIngress headService labels rayStartParams resources serviceType template",
    "workerGroupSpecs": """groupName idleTimeoutSeconds labels maxReplicas minReplicas numOfHosts rayStartParams
        replicas resources scaleStrategy suspend template""",
    "RayJob": """activeDeadlineSeconds backoffLimit clusterSelector deletionStrategy entrypoint entrypointNumCpus
        entrypointNumGpus entrypointResources jobId managedBy metadata preRunningDeadlineSeconds rayClusterSpec
        runtimeEnvYAML shutdownAfterJobFinishes submissionMode submitterConfig submitterPodTemplate suspend
        ttlSecondsAfterFinished""",
}


def unknown(section: dict[str, Any], kind: str) -> set[str]:
    return set(section) - set(FIELDS[kind].split())


def pod_templates(document: Any) -> Iterator[dict[str, Any]]:
    """Every pod that an object makes: whatever has containers."""
    if isinstance(document, dict):
        if "containers" in document.get("spec", {}):
            yield document
        for value in document.values():
            yield from pod_templates(value)
    elif isinstance(document, list):
        for value in document:
            yield from pod_templates(value)


def validate(document: dict[str, Any]) -> None:
    import kubernetes_validate

    kubernetes_validate.validate(document, KUBERNETES, strict=True)


@pytest.mark.parametrize("document", OURS)
def test_a_kubernetes_object_fits_its_published_schema(document):
    validate(document)


@pytest.mark.parametrize("document", KUBERAY)
def test_a_kuberay_object_has_documented_fields_and_sound_pods(document):
    spec = document["spec"]
    assert document["apiVersion"] == "ray.io/v1"
    assert unknown(spec, document["kind"]) == set()
    if document["kind"] == "RayCluster":
        assert spec["authOptions"] == {"mode": "token"}
        assert unknown(spec["headGroupSpec"], "headGroupSpec") == set()
        for group in spec["workerGroupSpecs"]:
            assert unknown(group, "workerGroupSpecs") == set()
            assert group["minReplicas"] == group["replicas"] == group["maxReplicas"]
        starts = [spec["headGroupSpec"], *spec["workerGroupSpecs"]]
        assert all(isinstance(v, str) for group in starts for v in group["rayStartParams"].values())
    templates = list(pod_templates(document))
    assert templates
    for template in templates:
        validate({"apiVersion": "v1", "kind": "PodTemplate", "metadata": {"name": "x"}, "template": template})


@pytest.mark.parametrize("document", [o for o in OBJECTS if list(pod_templates(o.values[0]))])
def test_pods_have_no_root_and_limits(document):
    for pod in (template["spec"] for template in pod_templates(document)):
        assert pod["securityContext"]["runAsNonRoot"] is True
        assert pod["securityContext"]["runAsUser"] > 0
        assert pod["automountServiceAccountToken"] is False
        for container in pod["containers"]:
            assert {"cpu", "memory"} <= set(container["resources"]["limits"])
            assert container["securityContext"]["allowPrivilegeEscalation"] is False
            assert container["securityContext"]["capabilities"] == {"drop": ["ALL"]}


def environment(document: Any) -> dict[str, Any]:
    found: dict[str, Any] = {}
    for template in pod_templates(document):
        for container in template["spec"]["containers"]:
            found |= {entry["name"]: entry for entry in container.get("env", ())}
    return found


def test_secrets_come_from_the_secret_that_the_header_makes():
    [pattern] = re.findall(r"grep -E '(.*?)'", read("kuberay/mlflow.yaml"))
    exported = re.findall(r"(\w+)=\.\.\.", read("kuberay/mlflow.yaml"))
    assert all(re.match(pattern, f"{name}=x") for name in exported)
    for name in MANIFESTS:
        for document in documents(name):
            assert document["kind"] != "Secret"
            for variable, entry in environment(document).items():
                if re.search("PASSWORD|TOKEN|SECRET|ACCESS_KEY", variable):
                    reference = entry["valueFrom"]["secretKeyRef"]
                    assert reference["name"] == "loraxs-mlflow"
                    assert reference["key"] in exported


def test_ray_pods_have_the_environment_of_a_local_node():
    [cluster] = [d for d in documents("kuberay/raycluster.yaml") if d["kind"] == "RayCluster"]
    for group in (cluster["spec"]["headGroupSpec"], *cluster["spec"]["workerGroupSpecs"]):
        found = {name: entry.get("value") for name, entry in environment(group).items()}
        assert NODE_ENVIRONMENT.items() <= found.items()


def test_policies_and_selectors_meet_the_pods_they_mean():
    objects = {(d["kind"], d["metadata"]["name"]): d for name in MANIFESTS for d in documents(name)}
    cluster, job = objects["RayCluster", "loraxs"], objects["RayJob", "reviews"]
    assert job["spec"]["clusterSelector"] == {"ray.io/cluster": cluster["metadata"]["name"]}
    policy = objects["NetworkPolicy", "loraxs-ray"]["spec"]
    assert policy["podSelector"]["matchLabels"] == job["spec"]["clusterSelector"]
    ours = policy["ingress"][0]["from"][0]["podSelector"]["matchLabels"]
    for template in (*pod_templates(cluster), *pod_templates(job)):
        assert ours.items() <= template["metadata"]["labels"].items()
    for kind, name in (("Deployment", "mlflow"), ("StatefulSet", "mlflow-postgres")):
        labels = objects[kind, name]["spec"]["template"]["metadata"]["labels"]
        assert objects["Service", name]["spec"]["selector"] == labels
        assert objects[kind, name]["spec"]["selector"]["matchLabels"] == labels


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


@pytest.mark.parametrize("missing", SERVER)
def test_the_server_does_not_start_without_what_it_presumes(missing, tmp_path):
    done = serve(tmp_path, {name: value for name, value in SERVER.items() if name != missing})
    assert done.returncode != 0
    assert missing in done.stderr
    assert done.stdout == ""


def test_the_deployment_gives_the_server_what_it_presumes():
    [deployment] = [d for d in documents("kuberay/mlflow.yaml") if d["kind"] == "Deployment"]
    assert set(SERVER) <= set(environment(deployment))
