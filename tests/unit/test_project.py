"""What pyproject.toml promises: the packages of `make env`, and how much code there is."""

from __future__ import annotations

import ast
import io
import re
import tokenize
import tomllib
from collections import defaultdict
from pathlib import Path

import pytest
from packaging.requirements import Requirement

ROOT = Path(__file__).parents[2]
PROJECT = tomllib.loads((ROOT / "pyproject.toml").read_text())


def test_requirements_pin_each_dependency_by_hash_and_name_no_address():
    text = (ROOT / "requirements.txt").read_text()
    pinned: dict[str, set[str]] = defaultdict(set)
    for name, version in re.findall(r"^([\w.-]+)==(\S+).* \\\n    --hash=sha256:\w{64}", text, re.MULTILINE):
        pinned[name].add(version)
    assert len(re.findall("^[^ ]", text, re.MULTILINE)) == sum(map(len, pinned.values()))
    assert "://" not in text and "-index" not in text and "-links" not in text
    declared = [PROJECT["project"]["dependencies"], *PROJECT["project"]["optional-dependencies"].values()]
    for wanted in (Requirement(line) for lines in declared for line in lines):
        name = wanted.name.lower().replace("_", "-")
        if name not in ("torch", "loraxs-search"):  # a machine's own build; the package's extras
            assert pinned[name] and all(map(wanted.specifier.contains, pinned[name])), name


def size(folder: Path) -> dict[str, int]:
    """Count lines of code and statements, without blanks, comments and docstrings."""
    nothing = {tokenize.COMMENT, tokenize.NL, tokenize.NEWLINE, tokenize.INDENT, tokenize.DEDENT, tokenize.ENDMARKER}
    lines = statements = 0
    for path in folder.rglob("*.py"):
        text = path.read_text()
        parts = [node for node in ast.walk(ast.parse(text)) if isinstance(node, ast.stmt)]
        bare = [part for part in parts if isinstance(part, ast.Expr) and isinstance(part.value, ast.Constant)]
        strings = [part for part in bare if isinstance(part.value.value, str)]  # type: ignore[attr-defined]
        tokens = [it for it in tokenize.generate_tokens(io.StringIO(text).readline) if it.type not in nothing]
        code = {line for it in tokens for line in range(it.start[0], it.end[0] + 1)}
        lines += len(code - {line for part in strings for line in range(part.lineno, part.end_lineno + 1)})
        statements += len(parts) - len(bare)
    return {"lines": lines, "statements": statements}


@pytest.mark.parametrize("folder", PROJECT["tool"]["size"])
def test_code_grows_on_purpose_and_what_shrinks_stays_small(folder):
    for what, count in size(ROOT / folder).items():
        most = PROJECT["tool"]["size"][folder][what]
        assert most - 300 <= count <= most, f"{folder} has {count} {what}: write it into pyproject.toml if it is meant"
