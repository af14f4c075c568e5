"""The files of cluster/, and what stands in them."""

from __future__ import annotations

from collections.abc import Iterator
from typing import Any

import yaml

from loraxs_search.search.cluster.connection import _RAY_ENVIRONMENT
from support.pages import ROOT

CLUSTER = ROOT / "cluster"
FILES = sorted(path for path in CLUSTER.rglob("*") if path.is_file() and path.name != "README.md")
LAUNCHERS = ("aws.yaml", "gcp.yaml", "on-prem.yaml")
SCRIPTS = ("local/start.sh", "local/stop.sh", "mlflow/serve.sh", "slurm.sbatch")
MANIFESTS = tuple(sorted(str(path.relative_to(CLUSTER)) for path in CLUSTER.glob("kuberay/*.yaml")))

# A node started without these would not be as `launch` starts its own (`_RAY_ENVIRONMENT` says why each matters).
NODE_ENVIRONMENT = {
    name: _RAY_ENVIRONMENT[name]
    for name in ("RAY_worker_niceness", "RAY_ACCEL_ENV_VAR_OVERRIDE_ON_ZERO", "RAY_USAGE_STATS_ENABLED")
}


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
    found: dict[str, Any] = {}
    for template in pod_templates(document):
        for container in template["spec"]["containers"]:
            found |= {entry["name"]: entry for entry in container.get("env", ())}
    return found
