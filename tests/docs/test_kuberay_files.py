"""The manifests of cluster/kuberay: each object against the schema that its server has, and all of them together."""

from __future__ import annotations

import copy
import re
from typing import Any

import pytest
import yaml
from support import kuberay
from support.cluster_files import MANIFESTS, NODE_ENVIRONMENT, documents, environment, pod_templates, read

pytestmark = pytest.mark.long(part="cluster")
KUBERNETES = "1.34"  # of the schemas; any version that knows these kinds would do
OBJECTS = [
    pytest.param(document, id=f"{document['kind']}-{document['metadata']['name']}")
    for name in MANIFESTS
    for document in documents(name)
]
OURS = [o for o in OBJECTS if not o.values[0]["apiVersion"].startswith("ray.io/")]  # type: ignore[index]
KUBERAY = [o for o in OBJECTS if o.values[0]["apiVersion"].startswith("ray.io/")]  # type: ignore[index]


def validate(document: dict[str, Any]) -> None:
    import kubernetes_validate

    kubernetes_validate.validate(document, KUBERNETES, strict=True)


@pytest.mark.parametrize("document", OURS)
def test_a_kubernetes_object_fits_its_published_schema(document):
    validate(document)


@pytest.mark.parametrize("document", KUBERAY)
def test_a_ray_cluster_has_a_token_and_workers_that_are_there_and_sound_pods(document):
    for cluster in ray_clusters(document):
        assert cluster["authOptions"] == {"mode": "token"}
        for group in cluster["workerGroupSpecs"]:
            assert group["minReplicas"] == group["replicas"] == group["maxReplicas"]
    templates = list(pod_templates(document))
    assert templates
    for template in templates:
        validate({"apiVersion": "v1", "kind": "PodTemplate", "metadata": {"name": "x"}, "template": template})


def ray_clusters(document: dict[str, Any]) -> list[dict[str, Any]]:
    """Return the cluster that an object of KubeRay makes; none for a job on a cluster that is there."""
    key = {"RayService": "rayClusterConfig", "RayJob": "rayClusterSpec"}.get(document["kind"])
    cluster = document["spec"] if key is None else document["spec"].get(key)
    return [cluster] if cluster else []


# ---- KubeRay's schemas -----------------------------------------------------------------------------------------------
needs_schemas = pytest.mark.skipif(not kuberay.is_here(), reason="KubeRay's schemas are not in ../shared/data/kuberay")


@needs_schemas
@pytest.mark.parametrize("version", kuberay.VERSIONS)
@pytest.mark.parametrize("document", KUBERAY)
def test_kuberay_takes_the_object(document, version):
    assert kuberay.faults(document, version) == []
    named = {"apiVersion": "v1", "kind": "ConfigMap", "metadata": document["metadata"]}
    validate(named)  # names and labels: KubeRay's schemas leave these to Kubernetes


def cluster() -> dict[str, Any]:
    return next(copy.deepcopy(d) for d in documents("kuberay/raycluster.yaml") if d["kind"] == "RayCluster")


def job() -> dict[str, Any]:
    return copy.deepcopy(documents("kuberay/rayjob.yaml")[0])


def head(document: dict[str, Any]) -> dict[str, Any]:
    (container,) = document["spec"]["headGroupSpec"]["template"]["spec"]["containers"]
    return container


MUTANTS = {
    "a field that is misspelt": (cluster, lambda d: d["spec"]["headGroupSpec"].update(rayStart={}), "rayStart"),
    "a number as a text": (cluster, lambda d: d["spec"]["workerGroupSpecs"][0].update(replicas="2"), "replicas"),
    "a mode that there is not": (cluster, lambda d: d["spec"]["authOptions"].update(mode="secret"), "authOptions/mode"),
    "no quantity": (cluster, lambda d: head(d)["resources"]["limits"].update(cpu="two"), "limits/cpu"),
    "no spec": (cluster, lambda d: d.pop("spec"), "spec"),
    "a number in a selector": (job, lambda d: d["spec"]["clusterSelector"].update(a=1), "clusterSelector/a"),
}


@needs_schemas
@pytest.mark.parametrize("version", kuberay.VERSIONS)
@pytest.mark.parametrize("mutant", MUTANTS)
def test_a_fault_in_an_object_is_found_at_its_place(mutant, version):
    make, change, said = MUTANTS[mutant]
    change(document := make())
    (fault,) = kuberay.faults(document, version)
    assert said in fault


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
    clusters = [cluster for o in KUBERAY for cluster in ray_clusters(o.values[0])]
    assert clusters
    for cluster in clusters:
        for group in (cluster["headGroupSpec"], *cluster["workerGroupSpecs"]):
            found = {name: entry.get("value") for name, entry in environment(group).items()}
            assert NODE_ENVIRONMENT.items() <= found.items()


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
