"""A space file: found, and read into plain values with the line of every key, which a fault needs to say its place.

Only plain YAML is read: no tags that build objects, no merge keys, no duplicate keys. Where YAML 1.1 would quietly turn
a word into something else (dates, `1:30`, `010`, `1_6`) the word stays text; booleans stay booleans, and the text as
written is kept so that a fault can show it. Faults are collected, and all are reported at once, in file order.
"""

from __future__ import annotations

import dataclasses
import json
import re
from collections.abc import Callable, Collection, Iterable, Iterator
from dataclasses import dataclass, field
from functools import cache
from typing import Any, NoReturn, TypeVar, get_args, get_type_hints

import yaml
from pydantic import TypeAdapter, ValidationError
from pydantic_core import ErrorDetails
from yaml.constructor import SafeConstructor

from loraxs_search.errors import UsageError, must_be, one_of

KeyPath = tuple[str | int, ...]
_BEHIND_FILES = 1_000_000_000  # no file has so many lines
_SHORTHANDS = {"task": "use", "base_model": "id"}  # `task: sst2` is `task: {use: sst2}`
_CHECK = "`loraxs-search check FILE` looks at a space without searching it"

_TAG = "tag:yaml.org,2002:"
_TEXT_TAGS = {"str", "timestamp", "value"}
_SCALARS = SafeConstructor()
_MAX_VALUES = 20_000  # aliases can make a short text unfold into any number of values
_MAX_DEPTH = 30
Place = tuple[int, int, str]  # line and column, which sort places in reading order, and how messages name it


@dataclass
class Document:
    """A space file as read, and what is wrong with it.

    Args:
        source: The file as people name it.
        data: Mappings, lists, text, numbers, booleans and None.
        places: Where each key or list item stands; the root is at ().
        written: Each scalar's text as written.
        faults: The key, a sentence with the broken law and the value, and the place where it differs from the key's.
        unread: Keys whose value could not be read: no other fault of theirs is reported.
        left: How many values may still be read.
    """

    source: str
    data: Any = None
    places: dict[KeyPath, Place] = field(default_factory=dict)
    written: dict[KeyPath, str] = field(default_factory=dict)
    faults: list[tuple[KeyPath, str, Place | None]] = field(default_factory=list)
    unread: set[KeyPath] = field(default_factory=set)
    left: int = _MAX_VALUES

    def fault(self, path: KeyPath, message: str, place: Place | None = None) -> None:
        """Collect a fault, so that one error can report all of them."""
        if not any(path[: len(known)] == known for known in self.unread):
            self.faults.append((path, message, place))

    def refuse(self, path: KeyPath, law: str, value: object, remedy: str = "") -> None:
        """Collect the fault that a value breaks a law."""
        self.fault(path, f"{law}, but got {self.got(path, value)}{remedy}.")

    def is_faulty(self, *path: str | int) -> bool:
        """Whether something at this key or inside it is known to be wrong."""
        return any(known[: len(path)] == path for known, _, _ in self.faults)

    def place(self, path: KeyPath) -> Place:
        """Return the place of a key, or of the nearest key around it that was written down."""
        around = (path[:length] for length in range(len(path), -1, -1))
        return next((self.places[key] for key in around if key in self.places), (0, 0, ""))

    def fail(self) -> NoReturn:
        """Raise one `UsageError` with every fault on a line, in reading order."""
        located = sorted({(place or self.place(path), dotted(path), message) for path, message, place in self.faults})
        lines = [": ".join(part for part in (place[2], key, message) if part) for place, key, message in located]
        fail_with(self.source, lines, hint=_CHECK)

    def got(self, path: KeyPath, value: object) -> str:
        """Return a value for a fault, with a word on what YAML makes of `no` and `on`, and on digits joined by `_`."""
        written = self.written.get(path)
        if isinstance(value, str) and re.fullmatch(r"[-+\d.]+(_[\d.]+)+", value):
            return f"{shown(value)} (a number is written without _)"
        if isinstance(value, bool) and written and written.lower() not in ("true", "false"):
            return f"{shown(value)} (so YAML reads an unquoted {written})"
        return shown(value)

    def put(self, override: str, index: int) -> None:
        """Put `dotted.path=YAML value` into the data; faults are at the override, which sorts behind the whole file."""
        place = (_BEHIND_FILES, index, f"--set {override}")
        path, equals, text = override.partition("=")
        keys: KeyPath = tuple(path.strip().split("."))
        if not equals or not all(keys):
            self.fault((), f"must be path.to.key=value, but got {shown(override)}.", place)
            return
        if not isinstance(parent := self.data, dict):
            return
        for depth, key in enumerate(keys[:-1], start=1):
            inner = parent.setdefault(key, {})
            if depth == 1 and isinstance(inner, str) and key in _SHORTHANDS:
                inner = parent[key] = {_SHORTHANDS[str(key)]: inner}
            if not isinstance(inner, dict):
                self.fault(keys, f"must lead through keys, but {dotted(keys[:depth])} holds {shown(inner)}.", place)
                return
            self.places.setdefault(keys[:depth], place)
            parent = inner
        for table in (self.places, self.written):  # of the value that is replaced
            for known in [known for known in table if known[: len(keys)] == keys]:
                del table[known]
        self.unread = {known for known in self.unread if known[: len(keys)] != keys}
        self.places[keys] = place
        parent[keys[-1]] = self.read(_compose(text, place[2]), keys, place)

    def read(self, node: yaml.Node | None, path: KeyPath, all_at: Place | None = None) -> Any:
        """Turn a node of YAML into plain values, and note where they stand.

        Args:
            all_at: The place of all of them, if they are not of the file.
        Raises:
            UsageError: it is too large or too deep.
        """
        place = all_at or self._place_of(node)
        self.places.setdefault(path, place)
        if node is None:
            return None
        self.left -= 1
        if self.left < 0 or len(path) > _MAX_DEPTH:
            law = f"must hold at most {_MAX_VALUES} values, at most {_MAX_DEPTH} levels deep"
            hint = "write values out: aliases (`*name`) can unfold into any number of them"
            fail_with(self.source, [f"{place[2]}: {dotted(path[:5])}: {law}."], hint=hint)
        if isinstance(node, yaml.SequenceNode) and node.tag == f"{_TAG}seq":
            return [self.read(item, (*path, index), all_at) for index, item in enumerate(node.value)]
        if not isinstance(node, yaml.MappingNode) or node.tag != f"{_TAG}map":
            return self._scalar(node, path, place)
        values, seen = dict[str, Any](), dict[str, Place]()
        for key_node, value_node in node.value:
            key, at = (
                key_node.value if isinstance(key_node, yaml.ScalarNode) else None,
                all_at or self._place_of(key_node),
            )
            if key_node.tag == f"{_TAG}merge":
                self.fault(path, "merge keys (`<<`) are not read: write the keys out.", at)
            elif not isinstance(key, str) or key_node.tag != f"{_TAG}str":
                self.fault(path, f"a key must be text, but got {key or 'a list or mapping'}: quote it.", at)
            elif key in seen:
                self.fault((*path, key), f"must be given once, but stands at {seen[key][2]} already.", at)
            else:
                seen[key] = self.places[(*path, key)] = at
                values[key] = self.read(value_node, (*path, key), all_at)
        return values

    def _place_of(self, node: yaml.Node | None) -> Place:
        if node is None:  # an empty file
            return 0, 0, f"{self.source}:1"
        line = node.start_mark.line + 1
        return line, node.start_mark.column + 1, f"{self.source}:{line}"

    def _scalar(self, node: yaml.Node, path: KeyPath, place: Place) -> Any:
        text = self.written[path] = str(node.value)
        kind = node.tag.removeprefix(_TAG) if isinstance(node, yaml.ScalarNode) else "other"
        if kind == "null":
            return None
        digits = text.lstrip("+-")
        # Only YAML 1.1 reads these as a number: in base 60 (`1:30`), as 16 (`1_6`), or in base 8 (`010`).
        is_trap = ":" in text or "_" in text or (len(digits) > 1 and digits[0] == "0" and digits.isdigit())
        readable = None
        if kind in _TEXT_TAGS or (kind in ("int", "float") and is_trap):
            readable = text.encode(errors="replace").decode()
            if readable == text:
                return text
            law = "must be valid Unicode, but holds half of a character."
        elif kind in ("bool", "int", "float"):
            try:
                return getattr(_SCALARS, f"construct_yaml_{kind}")(node)
            except (ValueError, KeyError):
                law = f"must be what its tag says ({kind}), but got {text!r}."
        else:
            allowed = one_of(["text", "a number", "a boolean", "a list", "a mapping"])
            law = f"must be plain YAML ({allowed}), but has the tag {node.tag.replace(_TAG, '!!')}."
        self.fault(path, law, place)
        self.unread.add(path)
        return readable


def fail_with(source: str, lines: Iterable[str], *, hint: str) -> NoReturn:
    """Raise `UsageError` listing `lines`, one fault each."""
    faults = list(lines)
    count = "1 fault" if len(faults) == 1 else f"{len(faults)} faults"
    raise UsageError("\n".join([f"{source} has {count}:", *faults]), hint=hint)


def as_mapping(value: object) -> dict[Any, Any]:
    """Return a mapping as it is, and an empty one for anything else."""
    return value if isinstance(value, dict) else {}


def dotted(path: KeyPath) -> str:
    """Return a key path as people write it: `parameters.rank.choice[2]`."""
    text = ""
    for part in path:
        text += f"[{part}]" if isinstance(part, int) else f".{part}" if text else part
    return text


def shown(value: object) -> str:
    """Return a value as it would be written in the file, shortened when it is long."""
    text = json.dumps(value, ensure_ascii=False, default=str)
    return text if len(text) <= 80 else f"{text[:77]}..."


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


def parse_document(text: str, source: str) -> Document:
    """Read YAML text.

    Faults that leave the rest readable (duplicate keys, tags) are collected in the document.

    Raises:
        UsageError: the text is not YAML, or too large or too deep to be a space.
    """
    document = Document(source)
    document.data = document.read(_compose(text, source), ())
    return document


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


# ---- sections with fixed keys, read into records by pydantic; its faults in our words ----
SectionT = TypeVar("SectionT")

# What pydantic finds, by the beginning of its name for it. The constraint and the value stand in braces.
_LAWS = {
    "greater_than_equal": "must be at least {ge}",
    "greater_than": "must be above {gt}",
    "less_than_equal": "must be at most {le}",
    "less_than": "must be below {lt}",
    "int_": "must be an integer",
    "float_": "must be a number",
    "finite_number": "must be a finite number",
    "string_too_short": "must not be empty",
    "string_": "must be text",
    "list_type": "must be a list",
    "tuple_type": "must be a list",
    "model_": "must be a mapping",
    "dataclass_type": "must be a mapping",
    "mapping_type": "must be a mapping",
    "dict_type": "must be a mapping",
    "value_error": "{error}",
}


_adapter: Callable[[Any], TypeAdapter[Any]] = cache(TypeAdapter)


def keys_of(model: Any) -> list[str]:
    """Return the keys that a file may write of a section."""
    if dataclasses.is_dataclass(model):
        return [each.name for each in dataclasses.fields(model) if not each.metadata]
    return list(model.model_fields)


def read_section(
    document: Document, path: KeyPath, model: type[SectionT], given: object, also: Collection[str] = ()
) -> SectionT | None:
    """Validate one section; faults go to the document, and None comes back if there was one.

    Args:
        also: Keys that the section has beside the model's, which are read elsewhere.
    """
    if not isinstance(given, dict):
        document.refuse(path, f"must hold keys (one of: {one_of([*keys_of(model), *also])})", given)
        return None
    known = [*keys_of(model), *also]
    for key in given.keys() - set(known):
        document.fault((*path, key), f"{must_be(key, known)}, but got {key!r}.")
    written = {key: value for key, value in given.items() if key in known and key not in also}
    try:
        read = _adapter(model).validate_json(json.dumps(written))  # as JSON, in which lists may be tuples
    except ValidationError as error:
        for detail in error.errors(include_url=False):
            where = (*path, *(part for part in detail["loc"] if part != "[key]"))  # of a mapping's key: its name
            document.fault(where, _in_our_words(document, where, model, detail))
        return None
    return None if given.keys() - set(known) else read


def _in_our_words(document: Document, path: KeyPath, model: Any, detail: ErrorDetails) -> str:
    kind, context, value = detail["type"], detail.get("ctx", {}), detail["input"]
    if kind in ("missing", "missing_argument"):
        return "is required."
    if kind in ("extra_forbidden", "unexpected_keyword_argument"):
        for part in detail["loc"][:-1]:
            if isinstance(part, str):  # a number is an item of a list
                fields = getattr(model, "__pydantic_fields__", None)
                model = next(_sections_in(fields[part].annotation if fields else get_type_hints(model)[part]))
        return f"{must_be(path[-1], keys_of(model))}, but got {str(path[-1])!r}."
    if kind == "literal_error":
        law = must_be(value, re.findall(r"'([^']*)'", context["expected"]))
    elif kind == "too_short":
        least = context["min_length"]
        law = f"must hold at least {'one item' if least == 1 else f'{least} items'}"
    else:
        found = (law for beginning, law in _LAWS.items() if kind.startswith(beginning))
        law = next(found, f"must be valid ({kind})").format(**context)
    remedy = "; quote it to mean the text" if kind == "string_type" and isinstance(value, bool | int | float) else ""
    return f"{law}, but got {document.got(path, value)}{remedy}."


def _sections_in(annotation: Any) -> Iterator[Any]:
    if dataclasses.is_dataclass(annotation) or hasattr(annotation, "model_fields"):
        yield annotation
    for part in get_args(annotation):
        yield from _sections_in(part)
