"""The schema that editors check spaces with: shipped as generated, and no stricter than `check`."""

from __future__ import annotations

import json
import re
from typing import Any

import yaml
from jsonschema import Draft7Validator

from loraxs_search.home import SHIPPED, shipped_space_path, shipped_spaces
from loraxs_search.records.search import seconds_of
from loraxs_search.search_space.document import parse_document
from loraxs_search.search_space.schema import reference_text, schema_text

LINE = "# yaml-language-server: $schema="
SCHEMA = json.loads(schema_text())
VALIDATOR = Draft7Validator(SCHEMA)
BASE = {"task": "sst2", "base_model": "org/base", "parameters": {"rank": 4, "learning_rate": 0.001}}


def faults(data) -> list[str]:
    return [".".join(map(str, error.absolute_path)) for error in VALIDATOR.iter_errors(data)]


def space(**changes):
    return {**BASE, **changes}


def test_what_is_shipped_is_what_is_generated_and_printed(capsys):
    from loraxs_search.cli._main import run

    pages = {"schema": ("space.schema.json", schema_text()), "reference": ("REFERENCE.md", reference_text())}
    for verb, (name, text) in pages.items():
        shipped = (SHIPPED / name).read_text()
        assert shipped == text, f"loraxs-search spaces {verb} > search_spaces/{name}"
        assert run(["spaces", verb]) == 0
        assert capsys.readouterr().out == shipped
    Draft7Validator.check_schema(SCHEMA)


def test_a_shipped_space_validates_and_leads_to_the_schema():
    for name in shipped_spaces():
        path = shipped_space_path(name)
        assert faults(parse_document(path.read_text(), name).data) == []
        (line,) = (line for line in path.read_text().splitlines() if line.startswith(LINE))
        assert (path.parent / line.removeprefix(LINE)).is_file()


def test_a_time_is_one_to_editors_where_check_takes_it():
    for written in ("90s", "1.5 h", "1d 2h 3m 4.5s", "", "h", " 1h", "1h ", "30m1h", "1_0s", "1.h", "90"):
        assert (faults(space(search={"time_budget": written})) == []) == (seconds_of(written) is not None)


TAKEN: list[dict[str, Any]] = [
    {"search": None, "promotion": None, "start_from": None},
    {"task": {"use": "sst2", "max_length": 64, "columns": {"text": "a", "label": "b"}}},
    {"search": {"time_budget": "2h", "pack_size": "auto", "metric": "f1"}},
    {"parameters": {"rank": {"int": [4, 64], "step": 4}, "target_modules": ["query", "value"]}},
    {"parameters": {"rank": [{"choice": [4], "when": {"method": "lora"}}, 8], "scale": {"value": 1.5}}},
]
REFUSED: list[tuple[dict[str, Any], str]] = [
    ({"task": "ssst2"}, "task"),
    ({"task": {"kind": "sequence-classificaton", "name": "a"}}, "task.kind"),
    ({"task": {"use": "sst2", "max_lenght": 64}}, "task"),
    ({"base_model": {"id": "a", "sha256": "short"}}, "base_model"),
    ({"parameters": {"rank": {"choice": [4], "int": [1, 2]}}}, "parameters.rank"),
    ({"search": {"trials": 0}}, "search"),
    ({"serch": {}}, ""),
]


def test_editors_mark_what_check_refuses_and_nothing_else():
    assert [faults(space(**changes)) for changes in TAKEN] == [[]] * len(TAKEN)
    for changes, place in REFUSED:
        assert place in faults(space(**changes))


# ---- the reference ---------------------------------------------------------------------------------------------------
def rows() -> list[list[str]]:
    """Return the cells of each key in the reference."""
    tables = re.findall(r"^\| key .*\n\| --- .*\n((?:\|.*\n)+)", reference_text(), re.MULTILINE)
    return [re.split(r" ?(?<!\\)\| ?", line)[1:-1] for table in tables for line in table.splitlines()]


def test_every_key_has_a_type_and_a_meaning():
    """A key's meaning is the docstring behind it, a parameter's is its `about`."""
    assert [key for key, law, _, meaning in rows() if not meaning.endswith(".") or law == "any"] == []


def test_every_default_is_one_that_a_space_may_write():
    numbers = [(key, cell.strip("`")) for key, law, cell, _ in rows() if law.startswith(("number", "integer"))]
    given = {key: yaml.safe_load(cell) for key, cell in numbers if cell not in ("", "required", "auto")}
    assert len(given) > 10
    assert [key for key, default in given.items() if not isinstance(default, int | float)] == []
