"""KubeRay's own schemas of its kinds, applied as strictly as `kubectl apply --validate=strict` has them applied."""

from __future__ import annotations

import gzip
import json
import re
from collections.abc import Iterator, Mapping
from functools import cache
from typing import Any

from jsonschema import Draft202012Validator
from jsonschema.exceptions import ValidationError
from jsonschema.validators import extend

from support.pages import ROOT

FOLDER = ROOT.parent / "shared" / "data" / "kuberay"
VERSIONS = ("1.5.1", "1.7.0")  # the oldest that cluster/README.md names, and the newest there is
_WHOLE = {"int32": 2**31, "int64": 2**63}
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
    return extend(Draft202012Validator, _KEYWORDS)(schema)


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


# ---- what JSON Schema does not know ----------------------------------------------------------------------------------
def _list_type(_: object, kind: str, items: object, schema: Schema) -> Iterator[ValidationError]:
    if not isinstance(items, list) or kind == "atomic":
        return
    keys = schema.get("x-kubernetes-list-map-keys", ()) if kind == "map" else ()
    fields = schema["items"].get("properties", {})
    seen = []
    for item in items:
        identity = [item.get(key, fields[key].get("default")) for key in keys] if keys else item
        if identity in seen:
            yield ValidationError(f"must be unique in its list: {identity!r}")
        seen.append(identity)


def _rules(_: object, rules: list[dict[str, str]], value: object, schema: Schema) -> Iterator[ValidationError]:
    """Refuse what rules in CEL speak of, which only a server can read; those of later changes aside."""
    for rule in rules:
        if "oldSelf" not in rule["rule"]:
            yield ValidationError(f"only KubeRay can check {rule['rule']!r}")


def _format(_: object, name: str, value: object, schema: Schema) -> Iterator[ValidationError]:
    if name in _WHOLE and isinstance(value, int) and not -_WHOLE[name] <= value < _WHOLE[name]:
        yield ValidationError(f"{value} must be of 32 or 64 bits, as {name} says")
    if name == "date-time" and not re.fullmatch(r"\d{4}-\d\d-\d\dT[\d:.]+(Z|[+-]\d\d:\d\d)", str(value)):
        yield ValidationError(f"{value!r} must be a date-time")


_KEYWORDS = {"format": _format, "x-kubernetes-list-type": _list_type, "x-kubernetes-validations": _rules}
