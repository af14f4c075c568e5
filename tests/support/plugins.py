"""Distributions that bring entries of a seam from outside the package."""

from __future__ import annotations

from pathlib import Path


def write_distribution(folder: Path, name: str, code: str, entry_points: dict[str, dict[str, str]]) -> None:
    """Write a module, and the metadata of a distribution that brings it; it is installed where `folder` is on the path.

    Args:
        name: Of the distribution and its module.
        entry_points: Group to entry's name to the attribute of the module.
    """
    folder.mkdir(parents=True, exist_ok=True)
    (folder / f"{name}.py").write_text(code)
    info = folder / f"{name}-1.0.dist-info"
    info.mkdir()
    (info / "METADATA").write_text(f"Metadata-Version: 2.1\nName: {name}\nVersion: 1.0\n")
    lines = [
        line
        for group, entries in entry_points.items()
        for line in (f"[{group}]", *(f"{entry} = {name}:{attribute}" for entry, attribute in entries.items()))
    ]
    (info / "entry_points.txt").write_text("\n".join(lines) + "\n")
