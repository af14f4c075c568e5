"""The JSON Schema of a space file, made of the types that read it: editors complete and check with it.

It is more lenient than `check`: what depends on the base, the data, or several keys together it does not know. Draft 7,
which editors know best.
"""

from __future__ import annotations

import json
import math
from collections.abc import Iterable, Mapping
from typing import Any

from pydantic.json_schema import models_json_schema

from loraxs_search.methods import METHODS, ParameterSpec
from loraxs_search.samplers import SAMPLERS
from loraxs_search.schedulers import SCHEDULERS
from loraxs_search.search_space._parameter_specs import method_spec, parameter_specs
from loraxs_search.search_space._sections import BaseModelSection, PromotionSection, search_section, task_section
from loraxs_search.shipped_spaces import shipped_tasks
from loraxs_search.tasks.kinds import KINDS

Schema = dict[str, Any]
_TEXT: Schema = {"type": "string", "minLength": 1}
_WHEN = "when"
_METHOD = (
    "What is trained on the frozen base: one method, or `{choice: [lora-xs, vera]}`. Each of several methods has one"
    " of the first trials; later trials draw their method first, then its parameters. The default is `lora-xs`."
)
_START_FROM = (
    "A registered adapter that trials start from: `TASK`, `TASK@champion` or `TASK:3`. It must be on the same base,"
    " with the same `basis` and `sigma`, no more layers and no larger rank. Its head is taken too if the labels are"
    " the same."
)
_SCALAR: Schema = {"type": ["string", "number", "boolean"]}


def space_schema() -> Schema:
    """Return the schema, with the kinds, methods, schedulers and samplers that are known by now."""
    kinds = {name: task_section(kind) for name, kind in KINDS.importable().items()}
    sections = {"base_model": BaseModelSection, "search": search_section(), "promotion": PromotionSection}
    models = [(model, "validation") for model in (*kinds.values(), *sections.values())]
    made, definitions = models_json_schema(models, ref_template="#/definitions/{model}")  # type: ignore[arg-type]
    references = {id(model): schema for (model, _), schema in made.items()}
    known = definitions["$defs"]
    by_kind = {name: _definition(known, references[id(model)]) for name, model in kinds.items()}
    values, abouts = _values(), _abouts()
    own = {name: references[id(model)] for name, model in sections.items()}
    plan = _definition(known, own["search"])["properties"]
    plan["scheduler"]["enum"], plan["sampler"]["enum"] = SCHEDULERS.names(), SAMPLERS.names()
    method = schema_of_spec(method_spec())
    return {
        "$schema": "http://json-schema.org/draft-07/schema#",
        "title": "A search space of loraxs-search",
        "type": "object",
        "additionalProperties": False,
        "required": ["task", "base_model", "parameters"],
        "properties": {
            "task": _task(by_kind),
            "base_model": {"anyOf": [_TEXT, own["base_model"]]},
            "method": {"description": _METHOD, "anyOf": [method, _forms(method, with_conditions=False)]},
            "parameters": {
                "type": "object",
                "additionalProperties": False,
                "properties": {
                    name: {"description": about, **_declared(_to(f"{name}.value"), _to(f"{name}.forms"))}
                    for name, about in abouts.items()
                },
            },
            "search": _or_nothing(own["search"]),
            "promotion": _or_nothing(own["promotion"]),
            "start_from": {"description": _START_FROM, **_or_nothing(_TEXT)},
        },
        "definitions": {
            **known,
            **{f"{name}.value": value for name, value in values.items()},
            **{f"{name}.forms": _forms(_to(f"{name}.value")) for name in values},
            _WHEN: {"type": "object", "minProperties": 1, "additionalProperties": _any([_SCALAR, _list_of(_SCALAR)])},
        },
    }


def _to(definition: str) -> Schema:
    return {"$ref": f"#/definitions/{definition}"}


def schema_text() -> str:
    """Return the schema as it is shipped: a line for each definition, so that a change shows."""
    schema = space_schema()
    definitions = schema.pop("definitions")
    lines = ",\n".join(f"  {json.dumps(name)}: {json.dumps(each)}" for name, each in definitions.items())
    return f'{json.dumps(schema, indent=1)[:-2]},\n "definitions": {{\n{lines}\n }}\n}}\n'


def _definition(known: Mapping[str, Schema], reference: Schema) -> Schema:
    return known[reference["$ref"].rpartition("/")[2]]


def _or_nothing(*schemas: Schema) -> Schema:
    """Return the schema of a section whose lines may all be commented out."""
    return {"anyOf": [*schemas, {"type": "null"}]}


# ---- task ------------------------------------------------------------------------------------------------------------
def _task(by_kind: Mapping[str, Schema]) -> Schema:
    """Return the schema of the task: a name of the catalogue, one of these with changes, or one written out."""
    names = {"enum": shipped_tasks()}
    keys: dict[str, list[Schema]] = {}  # a key may have another form in another kind
    for schema in by_kind.values():
        for name, value in schema["properties"].items():
            keys.setdefault(name, []).append(value)
    everything: Schema = {name: _any(values) for name, values in keys.items()}
    kind = {"enum": list(by_kind)}
    changed = {"properties": everything | {"use": names, "kind": kind}, "additionalProperties": False}
    written = [
        {"if": {"properties": {"kind": {"const": name}}, "required": ["kind"]}, "then": schema}
        for name, schema in by_kind.items()
    ]
    out = {"properties": everything | {"kind": kind}, "required": ["kind"], "allOf": written}
    of_object = {"if": {"required": ["use"]}, "then": changed, "else": out}
    return {"type": ["string", "object"], "if": {"type": "string"}, "then": names, "else": of_object}


# ---- parameters ------------------------------------------------------------------------------------------------------
def _values() -> dict[str, Schema]:
    """Return what a value of every parameter of every method must be, as one of them takes it."""
    laws: dict[str, list[ParameterSpec]] = {}
    for method in METHODS.importable():
        for name, spec in parameter_specs(method).items():
            laws.setdefault(name, []).append(spec)
    return {name: _any(map(schema_of_spec, specs)) for name, specs in laws.items()}


def _abouts() -> dict[str, str]:
    """Return what every parameter does, as the first method that takes it says."""
    specs = [parameter_specs(method) for method in METHODS.importable()]
    return {name: spec.about for taken in reversed(specs) for name, spec in taken.items()}


def schema_of_spec(spec: ParameterSpec) -> Schema:
    """Return the schema of one value."""
    if spec.kind == "name":
        return {"enum": list(spec.names)}
    if spec.kind == "flag":
        return {"type": "boolean"}
    if spec.kind == "modules":
        return {"anyOf": [_TEXT, {"type": "array", "items": _TEXT, "minItems": 1}]}
    low = {"exclusiveMinimum" if spec.above else "minimum": spec.low}
    high = {} if spec.high == math.inf else {"exclusiveMaximum" if spec.below else "maximum": spec.high}
    return {"type": "integer" if spec.kind == "int" else "number", **low, **high}


def _declared(value: Schema, forms: Schema) -> Schema:
    """Return the schema of a parameter: a value, a form, or a list of these with conditions."""
    one: Schema = {"anyOf": [value, forms]}
    return {"anyOf": [value, forms, _list_of(one)]}


def _forms(value: Schema, *, with_conditions: bool = True) -> Schema:
    """Return the schema of a mapping with one of the forms, and what may stand beside it."""
    pair = {"type": "array", "items": value, "minItems": 2, "maxItems": 2}
    forms: dict[str, Schema] = {
        "value": value,
        "choice": _list_of(value),
        "uniform": pair,
        "log_uniform": pair,
        "int": pair,
    }
    options: dict[str, Schema] = {"step": {"type": "number", "exclusiveMinimum": 0}, "log": {"type": "boolean"}}
    conditions: dict[str, Schema] = {"when": _to(_WHEN), "else": value}
    return {
        "type": "object",
        "properties": {**forms, **options, **(conditions if with_conditions else {})},
        "oneOf": [{"required": [name]} for name in forms],
        "additionalProperties": False,
    }


def _list_of(schema: Schema) -> Schema:
    return {"type": "array", "items": schema, "minItems": 1}


def _any(schemas: Iterable[Schema]) -> Schema:
    distinct: list[Schema] = []
    for schema in schemas:
        if schema not in distinct:
            distinct.append(schema)
    return distinct[0] if len(distinct) == 1 else {"anyOf": distinct}
