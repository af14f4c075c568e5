"""The manifests of cluster/kuberay: each object against the schema that its server has, and all of them together."""

from __future__ import annotations

import gzip
import json
import re
from functools import cache
from typing import Any

import pytest
import yaml
from jsonschema import Draft202012Validator
from support.cluster_files import MANIFESTS, NODE_ENVIRONMENT, documents, environment, pod_templates, read
from support.pages import ROOT

pytestmark = pytest.mark.long(part="cluster")
KUBERNETES = "1.34"  # of the schemas; any version that knows these kinds would do
OBJECTS = [document for name in MANIFESTS for document in documents(name)]
KUBERAY = [document for document in OBJECTS if document["apiVersion"].startswith("ray.io/")]


def validate(document: dict[str, Any]) -> None:
    import kubernetes_validate

    kubernetes_validate.validate(document, KUBERNETES, strict=True)


def ray_clusters(document: dict[str, Any]) -> list[dict[str, Any]]:
    """Return the cluster that an object of KubeRay makes; none for a job on a cluster that is there."""
    key = {"RayService": "rayClusterConfig", "RayJob": "rayClusterSpec"}.get(document["kind"])
    cluster = document["spec"] if key is None else document["spec"].get(key)
    return [cluster] if cluster else []


def test_objects_fit_kubernetes_and_clusters_have_a_token_workers_that_are_there_and_pods_without_root():
    for document in (document for document in OBJECTS if document not in KUBERAY):
        validate(document)
    for document in KUBERAY:
        for cluster in ray_clusters(document):
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


@needs_schemas
@pytest.mark.parametrize("version", VERSIONS)
def test_kuberay_takes_each_object(version):
    whole = Draft202012Validator({"required": ["apiVersion", "kind", "metadata", "spec"]})
    for document in KUBERAY:
        errors = [*whole.iter_errors(document), *_validator(version, document["kind"]).iter_errors(document)]
        assert [f"{'/'.join(map(str, error.absolute_path))}: {error.message}" for error in errors] == []
        named = {"apiVersion": "v1", "kind": "ConfigMap", "metadata": document["metadata"]}
        validate(named)  # names and labels: KubeRay's schemas leave these to Kubernetes


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
