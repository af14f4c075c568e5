"""search_spaces/REFERENCE.md, made of what reads a space: every key with its type, default and description."""

from __future__ import annotations

import inspect
import re
from collections.abc import Iterable, Iterator, Mapping
from typing import Any

from loraxs_search.methods import METHODS, ParameterSpec
from loraxs_search.samplers import SAMPLERS
from loraxs_search.schedulers import SCHEDULERS
from loraxs_search.search_space._json_schema import Schema, schema_of_spec, space_schema
from loraxs_search.search_space._parameter_specs import COMMON
from loraxs_search.search_space._sections import TaskSection
from loraxs_search.tasks.kinds import KINDS

_HEAD = """\
# Reference: every key of a space

`loraxs-search spaces reference` writes this page, with the kinds, methods, samplers and schedulers that are installed.
[README.md](README.md) is the guide. A space has the sections `task`, `base_model` and `parameters`; `method`, `search`,
`promotion` and `start_from` may be left out.
"""
_PARAMETERS = """\
A parameter is a value, or a form that says what to try. `when` beside a form applies it only if other parameters have
these values; `else` is the value otherwise. A list of forms takes the first one whose `when` holds.

| form | what it draws |
|---|---|
| `{choice: [4, 8]}` | one of the list |
| `{int: [4, 64]}`, with `step: 4` or `log: true` | a whole number; multiples of a step, or evenly on a log scale |
| `{uniform: [0.5, 4.0]}`, with `step: 0.5` | a number |
| `{log_uniform: [1.0e-4, 1.0e-2]}` | a number, evenly on a log scale |
| `{value: 8, when: {sigma: sqrt}, else: 4}` | a value, under a condition |

These keys suit every method. The keys of each method stand below.
"""
_SIGNS = {"minimum": "≥", "exclusiveMinimum": ">", "maximum": "≤", "exclusiveMaximum": "<"}


def reference_text() -> str:
    """Return the page, with what is installed here."""
    return "\n".join([_HEAD, *_Reference(space_schema()).blocks()]).rstrip("\n") + "\n"


class _Reference:
    """The page of a schema, block by block.

    Args:
        schema: Of a space file.
    """

    def __init__(self, schema: Schema) -> None:
        self._schema, self._known = schema, schema["definitions"]
        self._places: dict[str, str] = {}  # of definitions that have a heading: its text

    def blocks(self) -> Iterator[str]:
        """Yield headings, sentences and tables from top to bottom."""
        yield from self._task()
        yield from self._section("base_model", self._known["BaseModelSection"])
        yield from self._key("method")
        yield from _entries("method", "Methods", METHODS.importable())
        yield from self._parameters()
        yield from self._key("start_from")
        yield from self._section("search", self._known["SearchSection"])
        yield from _entries("scheduler", "Schedulers", SCHEDULERS.importable())
        yield from _entries("sampler", "Samplers", SAMPLERS.importable())
        yield from self._section("promotion", self._known["PromotionSection"])

    def _task(self) -> Iterator[str]:
        kinds = KINDS.importable()
        names = {name: f"{kind.__name__}TaskSection" for name, kind in kinds.items()}
        shared = self._known[next(iter(names.values()))]
        own = {name: key for name, key in shared["properties"].items() if name in TaskSection.model_fields}
        yield from self._section("task", {**shared, "description": inspect.getdoc(TaskSection), "properties": own})
        yield from _entries("kind", "Kinds of task", kinds)
        for name, kind in kinds.items():
            schema = self._known[names[name]]
            keys = {key: each for key, each in schema["properties"].items() if key in kind.section.model_fields}
            metrics = f"Metrics: {', '.join(f'`{metric}`' for metric in kind.metrics)}."
            section = {**schema, "description": metrics, "properties": keys}
            yield from self._section("task", section, kind=name)

    def _key(self, name: str) -> Iterator[str]:
        yield f"## {name}\n"
        yield f"{self._schema['properties'][name]['description']}\n"

    def _parameters(self) -> Iterator[str]:
        yield "## parameters\n"
        yield _PARAMETERS
        yield _table(map(_spec_row, COMMON, COMMON.values()))
        for name, method in METHODS.importable().items():
            if method.parameters:
                yield f"### parameters with method: {name}\n"
                yield _table(map(_spec_row, method.parameters, method.parameters.values()))

    def _section(self, path: str, schema: Schema, kind: str = "") -> Iterator[str]:
        """Yield the keys of a section, then the sections in it that have no place yet."""
        inner = {}
        for name, key in schema["properties"].items():
            for definition in _references(key):
                place = f"{path}.{name}"
                if definition not in self._places:
                    self._places[definition] = f"{place} of {kind}" if place in self._places.values() else place
                    inner[definition] = self._places[definition]
        yield f"{'###' if '.' in path or kind else '##'} {f'{path} with kind: {kind}' if kind else path}\n"
        yield f"{_sentence(schema['description'])}\n"
        yield _table(self._rows(schema))
        for definition, place in inner.items():
            yield from self._section(place, self._known[definition])

    def _rows(self, schema: Schema) -> Iterator[tuple[str, ...]]:
        for name, key in schema["properties"].items():
            default = "required" if name in schema.get("required", ()) else _written(key.get("default"))
            yield f"`{name}`", _law(key, self._places), default, _sentence(key.get("description", ""))


def _entries(key: str, title: str, entries: Mapping[str, Any]) -> Iterator[str]:
    """Yield what the entries of a seam are, from the first paragraphs of their docstrings."""
    yield f"### {title}\n"
    rows = [
        (f"`{name}`", _sentence((inspect.getdoc(entry) or "").partition("\n\n")[0])) for name, entry in entries.items()
    ]
    yield _table(rows, heads=(f"`{key}`", "meaning"))


def _spec_row(name: str, spec: ParameterSpec) -> tuple[str, ...]:
    default = "required" if spec.default is None and name != "head_learning_rate" else _written(spec.default)
    return f"`{name}`", _law(schema_of_spec(spec), {}), default, _sentence(spec.about)


def _table(rows: Iterable[tuple[str, ...]], heads: tuple[str, ...] = ("key", "type", "default", "meaning")) -> str:
    lines = [heads, ("---",) * len(heads), *rows]
    return "".join(f"| {' | '.join(cell.replace('|', chr(92) + '|') for cell in cells)} |\n" for cells in lines)


def _sentence(text: str) -> str:
    return " ".join(text.split())


def _written(default: Any) -> str:
    """Return a default as YAML has it; nothing where there is none."""
    if default is None or default in ([], {}) or isinstance(default, dict):
        return ""
    text = str(default).lower() if isinstance(default, bool) else str(default)
    text = re.sub(r"^(\d+)e", r"\1.0e", text)  # YAML 1.1 reads 1e-05 as text
    return f"`{text}`"


def _references(schema: Any) -> Iterator[str]:
    """Yield the definitions that a key leads to."""
    if isinstance(schema, dict):
        if "$ref" in schema:
            yield schema["$ref"].rpartition("/")[2]
        for inner in schema.values():
            yield from _references(inner)
    elif isinstance(schema, list):
        for inner in schema:
            yield from _references(inner)


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
