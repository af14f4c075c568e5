"""Every key of a space file, from the types that read it: a JSON Schema for editors, and search_spaces/REFERENCE.md.

The schema is Draft 7, which editors know best. It is more lenient than `check`: it knows nothing that depends on the
base, the data, or several keys together. The reference is made from the schema.
"""

from __future__ import annotations

import inspect
import json
import math
import re
from collections.abc import Iterable, Iterator, Mapping
from typing import Any

from pydantic import TypeAdapter

from loraxs_search.home import shipped_tasks
from loraxs_search.methods import METHODS
from loraxs_search.plugins import ParameterSpec
from loraxs_search.records.search import PromotionRule, SearchPlan
from loraxs_search.records.task import BaseModelRef
from loraxs_search.samplers import SAMPLERS
from loraxs_search.schedulers import SCHEDULERS
from loraxs_search.search_space.document import keys_of
from loraxs_search.search_space.parameters import COMMON, method_spec, parameter_specs
from loraxs_search.search_space.sections import TaskSection, entry_keys, task_section
from loraxs_search.tasks.kinds import KINDS

Schema = dict[str, Any]
_TEXT: Schema = {"type": "string", "minLength": 1}
_METHOD = (
    "What is trained on the frozen base: one method, or `{choice: [lora-xs, lora]}`. Each of several methods has one"
    " of the first trials; later trials draw their method first, then its parameters. The default is `lora-xs`."
)
_PEFT_METHODS = (
    "Names for other methods of PEFT, as in `{vera: {peft_type: VERA, d_initial: 0.2}}`. Such a name stands wherever a"
    " method's does. `peft_type` is PEFT's, and further keys are fields of its config, the same in all trials. Numbers,"
    " texts and flags that are not fixed here may be searched in `parameters`, under PEFT's names:"
    " `r: {choice: [64, 256]}`. Dropout has no effect, and layers are chosen by `target_modules`."
)
_START_FROM = (
    "A registered adapter that trials start from: `TASK`, `TASK@champion` or `TASK:3`. It must be on the same base,"
    " with the same `basis` and `sigma`, no more layers and no larger rank. Its head is taken too if the labels are"
    " the same."
)
_NOTHING: Schema = {"type": "null"}  # of a section whose lines may all be commented out
_SCALAR: Schema = {"type": ["string", "number", "boolean"]}


def _space_schema() -> Schema:
    """Return the schema, with the kinds, methods, schedulers and samplers that are known by now."""
    sections = {name: task_section(kind) for name, kind in KINDS.importable().items()}
    models: list[Any] = [*sections.values(), BaseModelRef, SearchPlan, PromotionRule]
    adapters = [(model.__name__, "validation", TypeAdapter(model)) for model in models]
    _, made = TypeAdapter.json_schemas(adapters, ref_template="#/definitions/{model}")  # type: ignore[arg-type]
    known: dict[str, Schema] = made["$defs"]
    specs: dict[str, list[ParameterSpec]] = {}  # a parameter may have other laws in another method
    for method in METHODS.importable().values():
        for name, spec in parameter_specs(method).items():
            specs.setdefault(name, []).append(spec)
    plan = known["SearchPlan"]["properties"]
    for name in plan.keys() - set(keys_of(SearchPlan)):
        del plan[name]
    for name, key in entry_keys().items():
        plan[name] = _of_spec(key) | {"default": key.default, "description": key.about}
    plan["scheduler"]["enum"], plan["sampler"]["enum"] = SCHEDULERS.names(), SAMPLERS.names()
    registered = _of_spec(method_spec())
    named = {"anyOf": [registered, _TEXT]}
    config = {"type": "object", "required": ["peft_type"], "properties": {"peft_type": {"type": "string"}}}
    installed = {
        "method": {"anyOf": [registered, _forms(registered, with_conditions=False)]},
        "parameters": {"propertyNames": {"enum": list(specs)}},
    }
    return {
        "$schema": "http://json-schema.org/draft-07/schema#",
        "title": "A search space of loraxs-search",
        "type": "object",
        "additionalProperties": False,
        "required": ["task", "base_model", "parameters"],
        "properties": {
            "task": _task({name: known[section.__name__] for name, section in sections.items()}),
            "base_model": {"anyOf": [_TEXT, _to("BaseModelRef")]},
            "method": {"description": _METHOD, "anyOf": [named, _forms(named, with_conditions=False)]},
            "peft_methods": {
                "description": _PEFT_METHODS,
                **_any([{"type": "object", "additionalProperties": config}, _NOTHING]),
            },
            "parameters": {
                "type": "object",
                "additionalProperties": _parameter(_SCALAR, {"type": "object"}),
                "properties": {
                    name: {"description": first.about, **_parameter(_to(f"{name}.value"), _to(f"{name}.forms"))}
                    for name, (first, *_) in specs.items()
                },
            },
            "search": _any([_to("SearchPlan"), _NOTHING]),
            "promotion": _any([_to("PromotionRule"), _NOTHING]),
            "start_from": {"description": _START_FROM, **_any([_TEXT, _NOTHING])},
        },
        "if": {"not": {"required": ["peft_methods"]}},
        "then": {"properties": installed},
        "definitions": {
            **known,
            **{f"{name}.value": _any(map(_of_spec, laws)) for name, laws in specs.items()},
            **{f"{name}.forms": _forms(_to(f"{name}.value")) for name in specs},
            "when": {"type": "object", "minProperties": 1, "additionalProperties": _any([_SCALAR, _list_of(_SCALAR)])},
        },
    }


def _to(definition: str) -> Schema:
    return {"$ref": f"#/definitions/{definition}"}


def schema_text() -> str:
    """Return the schema as it is shipped: a line for each definition, so that a change shows."""
    schema = _space_schema()
    definitions = schema.pop("definitions")
    lines = ",\n".join(f"  {json.dumps(name)}: {json.dumps(each)}" for name, each in definitions.items())
    return f'{json.dumps(schema, indent=1)[:-2]},\n "definitions": {{\n{lines}\n }}\n}}\n'


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
def _of_spec(spec: ParameterSpec) -> Schema:
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


def _forms(value: Schema, *, with_conditions: bool = True) -> Schema:
    """Return the schema of a mapping with one of the forms, and what may stand beside it."""
    pair = {"type": "array", "items": value, "minItems": 2, "maxItems": 2}
    forms: dict[str, Schema] = {"value": value, "choice": _list_of(value)}
    forms |= dict.fromkeys(("uniform", "log_uniform", "int"), pair)
    options: dict[str, Schema] = {"step": {"type": "number", "exclusiveMinimum": 0}, "log": {"type": "boolean"}}
    options |= {"when": _to("when")} if with_conditions else {}
    return {
        "type": "object",
        "properties": {**forms, **options},
        "oneOf": [{"required": [name]} for name in forms],
        "additionalProperties": False,
    }


def _list_of(schema: Schema) -> Schema:
    return {"type": "array", "items": schema, "minItems": 1}


def _parameter(value: Schema, forms: Schema) -> Schema:
    """Return the schema of a parameter: a value, a form, or a list of these with conditions."""
    return {"anyOf": [value, forms, _list_of({"anyOf": [value, forms]})]}


def _any(schemas: Iterable[Schema]) -> Schema:
    distinct: list[Schema] = []
    for schema in schemas:
        if schema not in distinct:
            distinct.append(schema)
    return distinct[0] if len(distinct) == 1 else {"anyOf": distinct}


_HEAD = """\
# Reference: every key of a space

`loraxs-search spaces reference` writes this page, with the kinds, methods, samplers and schedulers that are installed.
[README.md](README.md) is the guide. A space has the sections `task`, `base_model` and `parameters`; `method`,
`peft_methods`, `search`, `promotion` and `start_from` may be left out.
"""
_PARAMETERS = """\
A parameter is a value, or a form that says what to try. `when` beside a form applies it only if other parameters have
these values. A list of forms takes the first one whose `when` holds.

| form | what it draws |
|---|---|
| `{choice: [4, 8]}` | one of the list |
| `{int: [4, 64]}`, with `step: 4` or `log: true` | a whole number; multiples of a step, or evenly on a log scale |
| `{uniform: [0.5, 4.0]}`, with `step: 0.5` | a number |
| `{log_uniform: [1.0e-4, 1.0e-2]}` | a number, evenly on a log scale |
| `{value: 8, when: {sigma: sqrt}}` | a value, under a condition |

These keys suit every method. The keys of each method stand below.
"""
_SIGNS = {"minimum": "≥", "exclusiveMinimum": ">", "maximum": "≤", "exclusiveMaximum": "<"}


def reference_text() -> str:
    """Return the page, with what is installed here, from the schema of a space file."""
    schema, places = _space_schema(), dict[str, str]()  # of definitions that have a heading: its text
    known, kinds = schema["definitions"], KINDS.importable()

    def section(path: str, own: Schema, kind: str = "") -> Iterator[str]:
        """Yield the keys of a section, then the sections in it that have no place yet."""
        inner, rows = {}, []
        for name, key in own["properties"].items():
            for definition in re.findall(r'"#/definitions/([^"]+)"', json.dumps(key)):
                place = f"{path}.{name}"
                if definition not in places:
                    places[definition] = f"{place} of {kind}" if place in places.values() else place
                    inner[definition] = places[definition]
        for name, key in own["properties"].items():
            default = "required" if name in own.get("required", ()) else _written(key.get("default"))
            rows.append((f"`{name}`", _law(key, places), default, key.get("description", "")))
        yield f"{'###' if '.' in path or kind else '##'} {f'{path} with kind: {kind}' if kind else path}\n"
        yield f"{' '.join(own['description'].split())}\n"
        yield _table(rows)
        for definition, place in inner.items():
            yield from section(place, known[definition])

    of_kinds = {name: known[f"{kind.__name__}TaskSection"] for name, kind in kinds.items()}
    shared = next(iter(of_kinds.values()))
    common = {name: key for name, key in shared["properties"].items() if name in TaskSection.model_fields}
    blocks = [_HEAD]
    blocks += section("task", {**shared, "description": inspect.getdoc(TaskSection), "properties": common})
    blocks += _entries("kind", "Kinds of task", kinds)
    for name, kind in kinds.items():
        keys = {key: it for key, it in of_kinds[name]["properties"].items() if key in kind.section.model_fields}
        metrics = f"Metrics: {', '.join(f'`{metric}`' for metric in kind.metrics)}."
        blocks += section("task", {**of_kinds[name], "description": metrics, "properties": keys}, kind=name)
    blocks += section("base_model", known["BaseModelRef"])
    words = {name: f"## {name}\n\n{key.get('description')}\n" for name, key in schema["properties"].items()}
    blocks += [words["method"], *_entries("method", "Methods", METHODS.importable()), words["peft_methods"]]
    blocks += ["## parameters\n", _PARAMETERS, _table(map(_spec_row, COMMON, COMMON.values()))]
    for name, method in METHODS.importable().items():
        if method.parameters:
            blocks.append(f"### parameters with method: {name}\n")
            blocks.append(_table(map(_spec_row, method.parameters, method.parameters.values())))
    blocks += [words["start_from"], *section("search", known["SearchPlan"])]
    blocks += _entries("scheduler", "Schedulers", SCHEDULERS.importable())
    blocks += _entries("sampler", "Samplers", SAMPLERS.importable())
    blocks += section("promotion", known["PromotionRule"])
    return "\n".join(blocks).rstrip("\n") + "\n"


def _entries(key: str, title: str, entries: Mapping[str, Any]) -> Iterator[str]:
    """Yield what the entries of a seam are, from the first paragraphs of their docstrings."""
    yield f"### {title}\n"
    rows = [(f"`{name}`", (inspect.getdoc(entry) or "").partition("\n\n")[0]) for name, entry in entries.items()]
    yield _table(rows, heads=(f"`{key}`", "meaning"))


def _spec_row(name: str, spec: ParameterSpec) -> tuple[str, ...]:
    default = "required" if spec.is_required else _written(spec.default)
    return f"`{name}`", _law(_of_spec(spec), {}), default, spec.about


def _table(rows: Iterable[tuple[str, ...]], heads: tuple[str, ...] = ("key", "type", "default", "meaning")) -> str:
    lines = [[" ".join(cell.split()).replace("|", "\\|") for cell in cells] for cells in (heads, *rows)]
    return "".join(f"| {' | '.join(cells)} |\n" for cells in (lines[0], ["---"] * len(heads), *lines[1:]))


def _written(default: Any) -> str:
    """Return a default as YAML has it; an empty text if there is none."""
    if default is None or default in ([], {}) or isinstance(default, dict):
        return ""
    text = str(default).lower() if isinstance(default, bool) else str(default)
    text = re.sub(r"^(\d+)e", r"\1.0e", text)  # YAML 1.1 reads 1e-05 as text
    return f"`{text}`"


def _law(schema: Schema, places: Mapping[str, str]) -> str:
    """Return what a value must be, in words.

    Args:
        places: Headings of sections, by the definitions that they show.
    """
    said = {"boolean": "`true`, `false`", "string": "text"}.get(str(schema.get("type")), "any")
    if "$comment" in schema:
        said = str(schema["$comment"])
    elif "$ref" in schema:
        place = places.get(schema["$ref"].rpartition("/")[2], "").lower().replace(" ", "-")
        said = f"[keys](#{re.sub(r'[^a-z0-9_-]', '', place)})"
    elif "anyOf" in schema:
        said = " or ".join(dict.fromkeys(_law(each, places) for each in schema["anyOf"] if each.get("type") != "null"))
    elif "enum" in schema or "const" in schema:
        said = ", ".join(f"`{each}`" for each in schema.get("enum", [schema.get("const")]))
    elif schema.get("type") == "array":
        said = f"list of {_law(schema.get('items', {}), places)}"
    elif schema.get("type") == "object":
        said = f"names to {_law(schema.get('additionalProperties', {}), places)}"
    elif schema.get("type") in ("integer", "number"):
        given = {sign: schema[name] for name, sign in _SIGNS.items() if name in schema}
        bounds = [f"{sign} {bound if isinstance(bound, int) else format(bound, 'g')}" for sign, bound in given.items()]
        said = " ".join([schema["type"], ", ".join(bounds)]).strip()
    return said
