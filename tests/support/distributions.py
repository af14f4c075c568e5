"""Tiny distributions, as they lie where pip has installed them: for what is found by its entry point."""

from __future__ import annotations

import shutil
from pathlib import Path


def install(folder: Path, module: Path, group: str, name: str, attribute: str) -> Path:
    """Write a distribution of one module into a folder, which then has to be on the path of whoever is to find it.

    Args:
        module: The module's file; its stem is the distribution's name.
        group, name: Of the entry point, which loads `attribute` of the module.
    """
    folder.mkdir(parents=True, exist_ok=True)
    shutil.copy(module, folder)
    info = folder / f"{module.stem}-1.0.dist-info"
    info.mkdir()
    (info / "METADATA").write_text(f"Metadata-Version: 2.1\nName: {module.stem}\nVersion: 1.0\n")
    (info / "entry_points.txt").write_text(f"[{group}]\n{name} = {module.stem}:{attribute}\n")
    return folder
