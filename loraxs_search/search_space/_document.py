"""YAML text -> plain values, with the line of every key: what a fault needs to say where it is.

Only plain YAML is read: no tags that build objects, no merge keys, no duplicate keys. Where YAML 1.1 would quietly turn
a word into something else (dates, `1:30`, `010`, `1_6`) the word stays text; booleans stay booleans, and the text as
written is kept so that a fault can show it.
"""

from __future__ import annotations

import re
from collections.abc import Iterator
from dataclasses import dataclass, field
from typing import Any

import yaml
from yaml.constructor import SafeConstructor

from loraxs_search.search_space._faults import Faults, KeyPath, SourceLocation, dotted, fail_with, one_of, shown

_TAG = "tag:yaml.org,2002:"
_TEXT_TAGS = {"str", "timestamp", "value"}
_MAX_VALUES = 20_000  # aliases can make a short text unfold into any number of values
_MAX_DEPTH = 30
_REMEDIES = {  # by what PyYAML says
    "character '\\t'": "indent with spaces: YAML allows no tabs there",
    "that cannot start any token": "a text that begins with a special character must stand in quotes",
    " alias": "a text that begins with * must stand in quotes",
    "mapping values are not allowed": "quote a text that has a colon in it; keys of one section begin in one column",
    "<stream end>": "a bracket that is opened must be closed",
    "unexpected end of stream": "a quote that is opened must be closed",
    "could not find expected ':'": "a key and its value have a colon and a space between them",
    "another document": "a space is one document: leave out the line ---",
}


@dataclass
class Document:
    """A space file as read.

    Args:
        source: The file as people name it.
        data: Mappings, lists, text, numbers, booleans and None.
        locations: Where each key or list item stands; the root is at ().
        written: Each scalar's text as written.
    """

    source: str
    data: Any = None
    locations: dict[KeyPath, SourceLocation] = field(default_factory=dict)
    written: dict[KeyPath, str] = field(default_factory=dict)
    faults: Faults = field(default_factory=Faults)


def parse_document(text: str, source: str) -> Document:
    """Read YAML text.

    Faults that leave the rest readable (duplicate keys, tags) are collected in the document.

    Raises:
        SpaceError: the text is not YAML, or too large or too deep to be a space.
    """
    document = Document(source)
    document.data = _Reader(document).read(_compose(text, source), ())
    return document


def parse_value(document: Document, text: str, path: KeyPath, location: SourceLocation) -> Any:
    """Read an override's YAML value, noting every part of it at `location`."""
    return _Reader(document, location).read(_compose(text, location.text), path)


def forget(document: Document, path: KeyPath) -> None:
    """Drop the locations and texts at and below `path`: the value there is about to be replaced."""
    for table in (document.locations, document.written):
        for known in [p for p in table if p[: len(path)] == path]:
            del table[known]


def as_written(document: Document, path: KeyPath, value: object) -> str:
    """Return a value for a fault, with a word on what YAML makes of `no` and `on`, and on digits joined by `_`."""
    written = document.written.get(path)
    if isinstance(value, str) and re.fullmatch(r"[-+\d.]+(_[\d.]+)+", value):
        return f"{shown(value)} (a number is written without _)"
    if isinstance(value, bool) and written and written.lower() not in ("true", "false"):
        return f"{shown(value)} (so YAML reads an unquoted {written})"
    return shown(value)


def _compose(text: str, source: str) -> yaml.Node | None:
    try:
        return yaml.compose(text, Loader=yaml.SafeLoader)
    except yaml.reader.ReaderError as error:
        where = f"{source}:{text.count(chr(10), 0, error.position) + 1}"
        fail_with(
            source,
            [f"{where}: must be text, but holds the character {chr(error.character)!r}."],
            hint="a space is a YAML file: `loraxs-search spaces copy movie_reviews mine.yaml` gives one to begin with",
        )
    except yaml.MarkedYAMLError as error:
        mark = error.problem_mark or error.context_mark
        where = f"{source}:{mark.line + 1}:{mark.column + 1}" if mark else source
        reason = ", ".join(part for part in (error.context, error.problem) if part)
        remedy = next((remedy for part, remedy in _REMEDIES.items() if part in reason), "see the line before it, too")
        fail_with(source, [f"{where}: must be valid YAML, but {reason}."], hint=remedy)
    except RecursionError:
        fail_with(
            source, [f"{source}: must nest at most {_MAX_DEPTH} levels deep."], hint="no key of a space needs more"
        )


class _Reader:
    def __init__(self, document: Document, location: SourceLocation | None = None) -> None:
        self._document = document
        self._location = location
        self._scalars = SafeConstructor()
        self._left = _MAX_VALUES

    def read(self, node: yaml.Node | None, path: KeyPath) -> Any:
        if node is None:
            self._document.locations[path] = self._location or SourceLocation((0, 0), f"{self._document.source}:1")
            return None
        self._left -= 1
        if self._left < 0 or len(path) > _MAX_DEPTH:
            law = f"must hold at most {_MAX_VALUES} values, at most {_MAX_DEPTH} levels deep"
            fail_with(
                self._document.source,
                [f"{self._location_of(node).text}: {dotted(path[:5])}: {law}."],
                hint="write values out: aliases (`*name`) can unfold into any number of them",
            )
        self._document.locations.setdefault(path, self._location_of(node))
        if isinstance(node, yaml.MappingNode) and node.tag == f"{_TAG}map":
            return {key: self.read(value, (*path, key)) for key, value in self._items(node, path)}
        if isinstance(node, yaml.SequenceNode) and node.tag == f"{_TAG}seq":
            return [self.read(item, (*path, index)) for index, item in enumerate(node.value)]
        return self._scalar(node, path)

    def _items(self, node: yaml.MappingNode, path: KeyPath) -> Iterator[tuple[str, yaml.Node]]:
        seen: dict[str, yaml.Node] = {}
        for key_node, value_node in node.value:
            key = key_node.value if isinstance(key_node, yaml.ScalarNode) else None
            if key_node.tag == f"{_TAG}merge":
                self._fault(key_node, path, "merge keys (`<<`) are not read: write the keys out.")
            elif not isinstance(key, str) or key_node.tag != f"{_TAG}str":
                self._fault(key_node, path, f"a key must be text, but got {key or 'a list or mapping'}: quote it.")
            elif key in seen:
                first = self._location_of(seen[key]).text
                self._fault(key_node, (*path, key), f"must be given once, but stands at {first} already.")
            else:
                seen[key] = key_node
                self._document.locations[(*path, key)] = self._location_of(key_node)
                yield key, value_node

    def _scalar(self, node: yaml.Node, path: KeyPath) -> Any:
        kind = node.tag.removeprefix(_TAG)
        if not isinstance(node, yaml.ScalarNode):
            kind = "other"
        self._document.written[path] = str(node.value)
        if kind == "null":
            return None
        if kind in _TEXT_TAGS or (kind in ("int", "float") and _is_trap(node.value)):
            return node.value
        if kind in ("bool", "int", "float"):
            try:
                return getattr(self._scalars, f"construct_yaml_{kind}")(node)
            except (ValueError, KeyError):
                self._fault(node, path, f"must be what its tag says ({kind}), but got {node.value!r}.")
                return None
        allowed = one_of(["text", "a number", "a boolean", "a list", "a mapping"])
        self._fault(node, path, f"must be plain YAML ({allowed}), but has the tag {node.tag.replace(_TAG, '!!')}.")
        return None

    def _location_of(self, node: yaml.Node) -> SourceLocation:
        if self._location is not None:
            return self._location
        line, column = node.start_mark.line + 1, node.start_mark.column + 1
        return SourceLocation((line, column), f"{self._document.source}:{line}")

    def _fault(self, node: yaml.Node, path: KeyPath, message: str) -> None:
        self._document.faults.add(path, message, self._location_of(node))


def _is_trap(text: str) -> bool:
    """Whether only YAML 1.1 reads `text` as a number: in base 60 (`1:30`), in base 8 (`010`), or as 16 (`1_6`)."""
    digits = text.lstrip("+-")
    return ":" in text or "_" in text or (len(digits) > 1 and digits[0] == "0" and digits.isdigit())
