"""A space file's text, fit to be put into another folder."""

from __future__ import annotations

import json
import re
from collections.abc import Iterator
from pathlib import Path

import yaml

_SCHEMA = re.compile(r"(?m)^(# yaml-language-server: \$schema=)(?!/|\w+:)(\S+)$")
_PLAIN = re.compile(r"[\w./+-]+")


def portable_text(path: Path) -> str:
    """Return a space file's text with its relative paths made absolute, comments and layout kept.

    Data files, a base model given as a folder, and the schema for editors are then found from any folder the text is
    put into.
    """
    text = path.read_text(encoding="utf-8")
    nodes = sorted(_relative_paths(yaml.compose(text)), key=lambda node: int(node.start_mark.index), reverse=True)
    for node in nodes:  # the last one first, so that the places of the others hold
        absolute = str((path.parent / node.value).resolve())
        written = absolute if _PLAIN.fullmatch(absolute) else json.dumps(absolute, ensure_ascii=False)
        text = text[: node.start_mark.index] + written + text[node.end_mark.index :]
    return _SCHEMA.sub(lambda line: f"{line[1]}{(path.parent / line[2]).resolve()}", text)


def _relative_paths(root: yaml.Node | None) -> Iterator[yaml.ScalarNode]:
    base = _get(root, "base_model")
    base = _get(base, "id") or base
    if isinstance(base, yaml.ScalarNode) and base.value.startswith("."):  # else a hub id, or absolute
        yield base
    files = _get(_get(_get(root, "task"), "data"), "data_files")
    for _, file in files.value if isinstance(files, yaml.MappingNode) else ():
        if isinstance(file, yaml.ScalarNode) and not file.value.startswith(("/", "~")):
            yield file


def _get(node: yaml.Node | None, key: str) -> yaml.Node | None:
    pairs = node.value if isinstance(node, yaml.MappingNode) else ()
    return next((value for name, value in pairs if name.value == key), None)
