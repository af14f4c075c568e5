"""What the files beside the package promise: the packages of `make env`."""

from __future__ import annotations

import re
import tomllib
from collections import defaultdict
from pathlib import Path

from packaging.requirements import Requirement

ROOT = Path(__file__).parents[2]
PROJECT = tomllib.loads((ROOT / "pyproject.toml").read_text())


def test_requirements_pin_each_dependency_by_hash_and_name_no_address() -> None:
    text = (ROOT / "requirements.txt").read_text()
    pinned: dict[str, set[str]] = defaultdict(set)
    for name, version in re.findall(r"^([\w.-]+)==(\S+).* \\\n    --hash=sha256:\w{64}", text, re.MULTILINE):
        pinned[name].add(version)
    assert len(re.findall("^[^ ]", text, re.MULTILINE)) == sum(map(len, pinned.values()))
    assert "://" not in text and "-index" not in text and "-links" not in text
    extras = PROJECT["project"]["optional-dependencies"].values()
    for wanted in map(
        Requirement, [*PROJECT["project"]["dependencies"], *(line for extra in extras for line in extra)]
    ):
        name = wanted.name.lower().replace("_", "-")
        if name not in ("torch", "loraxs-search"):  # a machine's own build; the package's extras
            assert pinned[name] and all(map(wanted.specifier.contains, pinned[name])), name
