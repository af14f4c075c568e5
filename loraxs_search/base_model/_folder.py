"""What a folder must hold to be a model."""

from __future__ import annotations

import json
from pathlib import Path

# In the order in which transformers prefers them.
SINGLE_FILES = ("model.safetensors", "pytorch_model.bin")
INDEX_FILES = ("model.safetensors.index.json", "pytorch_model.bin.index.json")
WEIGHT_FILES = tuple(name for pair in zip(SINGLE_FILES, INDEX_FILES, strict=True) for name in pair)


def weight_files(folder: Path) -> tuple[Path, ...]:
    """Return the files that hold the weights, sorted; several when sharded, none when there are none."""
    for name in WEIGHT_FILES:
        path = folder / name
        if path.is_file():
            return _shards(path) if name in INDEX_FILES else (path,)
    return ()


def is_model_folder(folder: Path) -> bool:
    """Say whether `folder` holds a configuration and all files of its weights."""
    return model_faults(folder) is None


def model_faults(folder: Path) -> str | None:
    """Say what keeps `folder` from being a model, as the end of a sentence; None when nothing does."""
    if not (folder / "config.json").is_file():
        return "has no config.json"
    files = weight_files(folder)
    if not files:
        return f"has none of {', '.join(WEIGHT_FILES)}"
    missing = [file.name for file in files if not file.is_file()]
    return f"lacks {', '.join(missing)}" if missing else None


def _shards(index: Path) -> tuple[Path, ...]:
    names = set(json.loads(index.read_text())["weight_map"].values())
    return tuple(index.parent / name for name in sorted(names))
