"""cluster/ holds what it says: schemas, options and commands are checked against the programs that will read them."""

from __future__ import annotations

import configparser
import copy
import gzip
import importlib.metadata
import itertools
import json
import os
import re
import shlex
import subprocess
import sys
from collections.abc import Iterator
from functools import cache
from pathlib import Path
from typing import Any

import pytest
import typer
import yaml
from jsonschema import Draft202012Validator
from packaging.requirements import Requirement
from support.pages import ROOT

from loraxs_search import __version__
from loraxs_search.cli._main import app
from loraxs_search.home import shipped_spaces
from loraxs_search.search.cluster.connection import _RAY_ENVIRONMENT

CLUSTER = ROOT / "cluster"
FILES = sorted(path for path in CLUSTER.rglob("*") if path.is_file() and path.name != "README.md")
LAUNCHERS = ("aws.yaml", "gcp.yaml", "on-prem.yaml")
SCRIPTS = ("local/start.sh", "local/stop.sh", "mlflow/serve.sh", "slurm.sbatch")
MANIFESTS = tuple(sorted(str(path.relative_to(CLUSTER)) for path in CLUSTER.glob("kuberay/*.yaml")))

# A node started without these would not be as `launch` starts its own (`_RAY_ENVIRONMENT` says why each matters).
OURS = ("RAY_worker_niceness", "RAY_ACCEL_ENV_VAR_OVERRIDE_ON_ZERO", "RAY_USAGE_STATS_ENABLED")
NODE_ENVIRONMENT = {name: _RAY_ENVIRONMENT[name] for name in OURS}
TEXTS = {str(path.relative_to(ROOT)): path.read_text() for path in [*FILES, CLUSTER / "README.md"]}


def read(name: str) -> str:
    """Return the text of a file, named from cluster/."""
    return (CLUSTER / name).read_text()


def documents(name: str) -> list[dict[str, Any]]:
    """Return what a YAML file holds."""
    return [document for document in yaml.safe_load_all(read(name)) if document]


def pod_templates(document: Any) -> Iterator[dict[str, Any]]:
    """Return every pod that an object makes: whatever has containers."""
    if isinstance(document, dict):
        if "containers" in document.get("spec", {}):
            yield document
        for value in document.values():
            yield from pod_templates(value)
    elif isinstance(document, list):
        for value in document:
            yield from pod_templates(value)


def environment(document: Any) -> dict[str, Any]:
    """Return the variables of an object's pods, by name."""
    containers = [each for template in pod_templates(document) for each in template["spec"]["containers"]]
    return {entry["name"]: entry for container in containers for entry in container.get("env", ())}


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
def test_our_commands_are_there_and_understood_by_the_command_line():
    """Every call of the command line in comments, quotes and code, as the shell would split it."""
    group: Any = typer.main.get_command(app)
    call = re.compile(rf"loraxs-search ((?:{'|'.join(group.commands)})\b[^'`\n|>&;()]*)")
    calls = {name: [shlex.split(it, comments=True) for it in call.findall(text)] for name, text in TEXTS.items()}
    verbs = set[str]()
    for args in (args for own in calls.values() for args in own):
        with group.make_context("loraxs-search", list(args)) as context:
            verb, command, rest = group.resolve_command(context, list(args))
            command.make_context(verb, rest, parent=context)
        verbs.add(verb)
        if verb == "launch" and args[1] not in ("SPACE", "$space"):
            assert args[1] in shipped_spaces()
    assert {"launch", "resume", "status", "pull"} <= verbs
    for name in {*LAUNCHERS, "local/start.sh", "slurm.sbatch", "kuberay/rayjob.yaml", "mlflow/serve.sh"}:
        assert any(args[0] == "launch" for args in calls[f"cluster/{name}"]), name


# ---- shell -----------------------------------------------------------------------------------------------------------
def shellcheck(text: str, *options: str) -> str:
    command = [Path(sys.executable).parent / "shellcheck", "--shell=bash", *options, "-"]
    return subprocess.run(command, input=text, capture_output=True, text=True, timeout=60, check=False).stdout


def test_scripts_and_the_commands_of_launchers_pass_shellcheck():
    for name in SCRIPTS:
        assert shellcheck(read(name)) == ""
        assert os.access(CLUSTER / name, os.X_OK)
    # $RAY_HEAD_IP is one word; what goes into ~/.bashrc is expanded there.
    commands = dict.fromkeys(command for name in LAUNCHERS for command in launcher_commands(name))
    for command in commands:
        assert shellcheck(command, "--exclude=SC2086,SC2016") == "", command


def launcher_commands(name: str) -> list[str]:
    [config] = documents(name)
    return [command for key, value in config.items() if key.endswith("_commands") for command in value]


# ---- Ray -------------------------------------------------------------------------------------------------------------
@pytest.mark.parametrize("name", LAUNCHERS)
def test_a_launcher_file_is_what_ray_up_takes(name):
    from ray.autoscaler._private.util import prepare_config, validate_config
    from ray.scripts.scripts import start

    parts = [part for command in launcher_commands(name) for part in command.split(";")]
    words = [list(itertools.dropwhile(lambda word: re.match(r"\w+=", word), shlex.split(part))) for part in parts]
    lines = [rest for ray, verb, *rest in (each for each in words if len(each) > 1) if (ray, verb) == ("ray", "start")]
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
SECRETS = ("PGPASSWORD", "MLFLOW_AUTH_ADMIN_PASSWORD", "MLFLOW_FLASK_SERVER_SECRET_KEY")
SERVER = dict.fromkeys(("PGHOST", "PGUSER", "PGDATABASE"), "x") | dict.fromkeys(SECRETS, "a-secret")
SERVER |= {"ARTIFACTS": "s3://bucket/folder", "ALLOWED_HOSTS": "mlflow.example.org"}


def serve(tmp_path: Path, variables: dict[str, str]) -> subprocess.CompletedProcess[str]:
    """Run serve.sh with a stand-in for `mlflow` that prints what it was given."""
    mlflow = tmp_path / "mlflow"
    mlflow.write_text(
        f"#!{sys.executable}\nimport json, os, sys\n"
        "print(json.dumps([sys.argv[1:], {k: v for k, v in os.environ.items() if k.startswith('MLFLOW_')}]))\n"
    )
    mlflow.chmod(0o755)
    env, script = {"PATH": f"{tmp_path}:{os.environ['PATH']}", **variables}, CLUSTER / "mlflow" / "serve.sh"
    return subprocess.run([script], env=env, capture_output=True, text=True, timeout=60, check=False)


@pytest.mark.filterwarnings("ignore:.*Any type hint is inferred:UserWarning")  # of MLflow's CLI, as it is imported
def test_the_server_is_started_with_options_that_mlflow_knows_and_no_secret_among_them(tmp_path):
    from mlflow.cli import server

    done = serve(tmp_path, SERVER)
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


# ---- the manifests of KubeRay: each object against the schema that its server has, and all together ------------------
long = pytest.mark.long(part="cluster")
KUBERNETES = "1.34"  # of the schemas; any version that knows these kinds would do
OBJECTS = [document for name in MANIFESTS for document in documents(name)]
KUBERAY = [document for document in OBJECTS if document["apiVersion"].startswith("ray.io/")]


def validate(document: dict[str, Any]) -> None:
    import kubernetes_validate

    kubernetes_validate.validate(document, KUBERNETES, strict=True)


@long
def test_objects_fit_kubernetes_and_clusters_have_a_token_workers_that_are_there_and_pods_without_root():
    for document in (document for document in OBJECTS if document not in KUBERAY):
        validate(document)
    for document in KUBERAY:
        key = {"RayService": "rayClusterConfig", "RayJob": "rayClusterSpec"}.get(document["kind"])
        cluster = document["spec"] if key is None else document["spec"].get(key)
        if cluster:  # a job may go to one that is there
            assert cluster["authOptions"] == {"mode": "token"}
            for group in cluster["workerGroupSpecs"]:
                assert group["minReplicas"] == group["replicas"] == group["maxReplicas"]
            for group in (cluster["headGroupSpec"], *cluster["workerGroupSpecs"]):
                found = {name: entry.get("value") for name, entry in environment(group).items()}
                assert NODE_ENVIRONMENT.items() <= found.items()
        for template in (templates := list(pod_templates(document))):
            validate({"apiVersion": "v1", "kind": "PodTemplate", "metadata": {"name": "x"}, "template": template})
        assert templates
    for pod in (template["spec"] for document in OBJECTS for template in pod_templates(document)):
        assert pod["securityContext"]["runAsNonRoot"] is True
        assert pod["securityContext"]["runAsUser"] > 0
        assert pod["automountServiceAccountToken"] is False
        for container in pod["containers"]:
            assert {"cpu", "memory"} <= set(container["resources"]["limits"])
            assert container["securityContext"]["allowPrivilegeEscalation"] is False
            assert container["securityContext"]["capabilities"] == {"drop": ["ALL"]}


# ---- KubeRay's schemas, as strict as `kubectl apply --validate=strict` has them --------------------------------------
FOLDER = ROOT.parent / "shared" / "data" / "kuberay"
VERSIONS = ("1.5.1", "1.7.0")  # the oldest that cluster/README.md names, and the newest there is
needs_schemas = pytest.mark.skipif(not FOLDER.is_dir(), reason="KubeRay's schemas are not in ../shared/data/kuberay")


@cache
def _validator(version: str, kind: str) -> Any:
    with gzip.open(FOLDER / f"kuberay-v{version}.json.gz", "rt") as file:
        schema = _strict(json.load(file)[kind])
    schema["properties"]["metadata"]["additionalProperties"] = True  # Kubernetes' own, the same for every kind
    return Draft202012Validator(schema)


def _strict(schema: dict[str, Any]) -> dict[str, Any]:
    """Return a schema that refuses what the API server would drop, and takes null only where the server does."""
    made = {key: value for key, value in schema.items() if key != "nullable"}
    for key in ("properties", "patternProperties"):
        if key in made:
            made[key] = {name: _strict(part) for name, part in made[key].items()}
    for key in ("items", "additionalProperties"):
        if isinstance(made.get(key), dict):
            made[key] = _strict(made[key])
    if made.get("type") == "object" and not made.get("x-kubernetes-preserve-unknown-fields"):
        made.setdefault("additionalProperties", False)
    return {"anyOf": [made, {"type": "null"}]} if schema.get("nullable") else made


@long
@needs_schemas
@pytest.mark.parametrize("version", VERSIONS)
def test_kuberay_takes_each_object(version):
    whole = Draft202012Validator({"required": ["apiVersion", "kind", "metadata", "spec"]})
    for document in KUBERAY:
        errors = [*whole.iter_errors(document), *_validator(version, document["kind"]).iter_errors(document)]
        assert [f"{'/'.join(map(str, error.absolute_path))}: {error.message}" for error in errors] == []
        named = {"apiVersion": "v1", "kind": "ConfigMap", "metadata": document["metadata"]}
        validate(named)  # names and labels: KubeRay's schemas leave these to Kubernetes


@long
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


@long
def test_the_application_of_the_service_is_what_ray_serve_takes():
    from ray._common.utils import import_attr
    from ray.serve.schema import ServeDeploySchema

    [service] = [d for d in documents("kuberay/rayservice.yaml") if d["kind"] == "RayService"]
    config = ServeDeploySchema.model_validate(yaml.safe_load(service["spec"]["serveConfigV2"]))
    [application] = config.applications
    first, *workers = [template["spec"]["containers"][0] for template in pod_templates(service)]
    assert {port["name"]: port["containerPort"] for port in first["ports"]}["serve"] == config.http_options.port
    deployment = import_attr(application.import_path)(application.args)._bound_deployment
    [group] = service["spec"]["rayClusterConfig"]["workerGroupSpecs"]
    gpus = [int(worker["resources"]["limits"]["nvidia.com/gpu"]) * group["replicas"] for worker in workers]
    assert deployment.ray_actor_options["num_gpus"] * deployment.num_replicas == sum(gpus)
    keys = {mount["mountPath"] for mount in first["volumeMounts"]}
    assert application.args["api_key_file"].rpartition("/")[0] in keys


@long
def test_policies_and_selectors_meet_the_pods_they_mean():
    objects = {(d["kind"], d["metadata"]["name"]): d for name in MANIFESTS for d in documents(name)}
    cluster, job = objects["RayCluster", "loraxs"], objects["RayJob", "reviews"]
    assert job["spec"]["clusterSelector"] == {"ray.io/cluster": cluster["metadata"]["name"]}
    policy = objects["NetworkPolicy", "loraxs-ray"]["spec"]
    assert policy["podSelector"]["matchLabels"] == job["spec"]["clusterSelector"]
    ours = policy["ingress"][0]["from"][0]["podSelector"]["matchLabels"]
    service, adapters = objects["RayService", "adapters"], objects["NetworkPolicy", "loraxs-adapters"]["spec"]
    meant = adapters["podSelector"]["matchLabels"]
    assert all(meant.items() <= template["metadata"]["labels"].items() for template in pod_templates(service))
    assert adapters["ingress"][0] == policy["ingress"][0]
    for template in (*pod_templates(cluster), *pod_templates(job), *pod_templates(service)):
        assert ours.items() <= template["metadata"]["labels"].items()
    for kind, name in (("Deployment", "mlflow"), ("StatefulSet", "mlflow-postgres")):
        labels = objects[kind, name]["spec"]["template"]["metadata"]["labels"]
        assert objects["Service", name]["spec"]["selector"] == labels
        assert objects[kind, name]["spec"]["selector"]["matchLabels"] == labels
