"""KubeRay's own schemas of its kinds, applied as strictly as `kubectl apply --validate=strict` has them applied."""

from __future__ import annotations

import gzip
import json
from collections.abc import Mapping
from functools import cache
from typing import Any

from jsonschema import Draft202012Validator

from support.pages import ROOT

FOLDER = ROOT.parent / "shared" / "data" / "kuberay"
VERSIONS = ("1.5.1", "1.7.0")  # the oldest that cluster/README.md names, and the newest there is
Schema = dict[str, Any]


def is_here() -> bool:
    """Return whether there are schemas to compare with."""
    return FOLDER.is_dir()


def faults(document: Mapping[str, Any], version: str) -> list[str]:
    """Return what the API server would say of an object, with the places; nothing if it would take it."""
    errors = Draft202012Validator({"required": ["apiVersion", "kind", "metadata", "spec"]}).iter_errors(document)
    errors = [*errors, *_validator(version, document["kind"]).iter_errors(document)]
    return [f"{'/'.join(map(str, error.absolute_path))}: {error.message}" for error in errors]


@cache
def _schemas(version: str) -> Schema:
    with gzip.open(FOLDER / f"kuberay-v{version}.json.gz", "rt") as file:
        return json.load(file)


@cache
def _validator(version: str, kind: str) -> Any:
    schema = _strict(_schemas(version)[kind])
    schema["properties"]["metadata"]["additionalProperties"] = True  # Kubernetes' own, the same for every kind
    return Draft202012Validator(schema)


def _strict(schema: Schema) -> Schema:
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
