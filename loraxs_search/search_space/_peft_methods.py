"""`peft_methods`: names that a space gives to methods of PEFT's. PEFT is imported where the section is there."""

from __future__ import annotations

import re
from collections.abc import Mapping
from dataclasses import replace
from typing import Any

from loraxs_search.errors import must_be
from loraxs_search.methods import METHODS, get_method
from loraxs_search.methods._base import Method
from loraxs_search.records.trial import PeftSettings
from loraxs_search.search_space.document import Document, KeyPath, as_mapping, shown

PEFT_METHODS = "peft_methods"


def read_peft_methods(document: Document) -> dict[str, PeftSettings]:
    """Return what the section says, by name, with all that `parameters` may search; faults go to the document."""
    section = as_mapping(document.data).get(PEFT_METHODS)
    if not isinstance(section, dict | None):
        message = f"must map names to configs of PEFT, as in {{vera: {{peft_type: VERA}}}}, but got {shown(section)}."
        document.fault((PEFT_METHODS,), message)
    read = {name: _settings(document, name, given) for name, given in as_mapping(section).items()}
    return {name: settings for name, settings in read.items() if settings is not None}


def known_methods(document: Document) -> dict[str, Method]:
    """Return the methods that a space may name, as far as they are sound."""
    named = read_peft_methods(replace(document, faults=[]))
    registered: dict[str, Method] = {name: entry() for name, entry in METHODS.importable().items()}
    return registered | {name: get_method(name, settings) for name, settings in named.items()}


def _settings(document: Document, name: str, given: object) -> PeftSettings | None:
    from loraxs_search.methods.peft_methods import REFUSED_FIELDS, config_fields, peft_types, refused_type

    path, before = (PEFT_METHODS, name), len(document.faults)
    if not re.fullmatch(r"[a-z0-9]+(-[a-z0-9]+)*", name) or name in METHODS.names():
        law = "must be a name of its own, in lower case, of letters, digits and hyphens"
        document.fault(path, f"{law}, but got {shown(name)}.")
    config = as_mapping(given)
    peft_type = config.get("peft_type")
    if peft_type not in (known := list(peft_types())):
        reason = refused_type(str(peft_type))
        law = f"must be another type: PEFT's {peft_type} {reason}" if reason else must_be(peft_type, known)
        document.fault((*path, "peft_type"), f"{law}, but got {shown(peft_type)}.")
        return None
    fields = config_fields(peft_type)
    for field, value in config.items():
        if field in REFUSED_FIELDS:
            document.fault((*path, field), f"{REFUSED_FIELDS[field]}.")
        elif field.endswith("dropout") and value:
            document.fault((*path, field), "must be left out: trials train without dropout.")
        elif field not in fields and field != "peft_type":
            document.fault((*path, field), f"{must_be(field, fields)}, but got {field!r}.")
    fixed = {
        field: _value(document, (*path, field), fields, value) for field, value in config.items() if field in fields
    }
    searched = {
        field: spec.kind
        for field, spec in fields.items()
        if spec and field not in fixed and not field.endswith("dropout")
    }
    return PeftSettings(peft_type, fixed, searched) if len(document.faults) == before else None


def _value(document: Document, path: KeyPath, fields: Mapping[str, Any], value: object) -> object:
    """Return a field's value in its own type; lists, mappings and null are PEFT's to judge."""
    spec = fields[str(path[-1])]
    if spec is None or value is None:
        return value
    try:
        return spec.check(value)
    except ValueError as error:
        form = "; search it in `parameters`" if isinstance(value, dict) else ""
        document.fault(path, f"{error}, but got {document.got(path, value)}{form}.")
        return value
