"""Files of base models: what a folder must hold, digests of weights, and folders that are made once in the home.

A digest is remembered per unchanged file: hashing gigabytes at every start would be felt.
"""

from __future__ import annotations

import contextlib
import hashlib
import json
import shutil
import uuid
from collections import Counter
from collections.abc import Callable
from pathlib import Path

from loraxs_search import safetensors_header
from loraxs_search.errors import HomeError
from loraxs_search.home import disk_faults, file_sha256, home, mark_used, write_atomic

# In the order in which transformers prefers them.
WEIGHT_FILES = (
    "model.safetensors",
    "model.safetensors.index.json",
    "pytorch_model.bin",
    "pytorch_model.bin.index.json",
)


def _weight_files(folder: Path) -> tuple[Path, ...]:
    """Return the files that hold the weights, sorted; several when sharded, none when there are none."""
    for name in WEIGHT_FILES:
        path = folder / name
        if path.is_file():
            if path.suffix != ".json":
                return (path,)
            shards = set(json.loads(path.read_text())["weight_map"].values())
            return tuple(folder / shard for shard in sorted(shards))
    return ()


def is_model_folder(folder: Path) -> bool:
    """Say whether `folder` holds a configuration and all files of its weights."""
    return model_faults(folder) is None


def model_faults(folder: Path) -> str | None:
    """Say what keeps `folder` from being a model, as the end of a sentence; None when nothing does."""
    if not (folder / "config.json").is_file():
        return "has no config.json"
    files = _weight_files(folder)
    if not files:
        return f"has none of {', '.join(WEIGHT_FILES)}"
    missing = [file.name for file in files if not file.is_file()]
    return f"lacks {', '.join(missing)}" if missing else None


def weight_digest(folder: Path) -> str:
    """Return the sha256 of a model's weight file.

    Sharded weights: sha256 over one line `<name> <sha256>` per shard, sorted by name, each ended by a newline.
    """
    files = _weight_files(folder)
    digests = [file_digest(file) for file in files]
    if len(files) == 1:
        return digests[0]
    lines = "".join(f"{file.name} {digest}\n" for file, digest in zip(files, digests, strict=True))
    return hashlib.sha256(lines.encode()).hexdigest()


def weight_bytes(folder: Path) -> int:
    """Return the size of a model's weight files."""
    return sum(file.stat().st_size for file in _weight_files(folder))


def numbers_by_dtype(folder: Path) -> dict[str, int]:
    """Return how many numbers of each type a model's weight files have, by the type's name in safetensors (`BF16`).

    Empty where a file is no safetensors, or a damaged one: loading says what is wrong with it.
    """
    numbers: Counter[str] = Counter()
    for file in _weight_files(folder):
        try:
            numbers.update(safetensors_header.numbers_by_dtype(file))
        except ValueError:
            return {}
    return dict(numbers)


def file_digest(path: Path) -> str:
    """Return the sha256 of a file, from memory when path, size, inode and both of its times are as before.

    A file that is replaced with its time kept (`rsync -t`, an archive) has another inode or another change time.
    """
    real = path.resolve()
    stat = real.stat()
    times = {"mtime_ns": stat.st_mtime_ns, "ctime_ns": stat.st_ctime_ns}
    identity = {"path": str(real), "size": stat.st_size, "inode": stat.st_ino, **times}
    note = home() / "base_models" / "digests" / f"{hashlib.sha256(str(real).encode()).hexdigest()[:32]}.json"
    with contextlib.suppress(OSError, ValueError, LookupError, TypeError):  # no note, or a damaged one
        remembered = json.loads(note.read_bytes())
        if {key: remembered[key] for key in identity} == identity and isinstance(remembered["sha256"], str):
            return remembered["sha256"]
    digest = file_sha256(real)
    with contextlib.suppress(HomeError):  # only an acceleration: a home that cannot be written is not the model's fault
        write_atomic(note, json.dumps({**identity, "sha256": digest}))
    return digest


_ABANDONED_AFTER_S = 3600.0


def made_once(final: Path, make: Callable[[Path], None]) -> Path:
    """Return a model's folder, made on first use: in a private folder beside it, then renamed.

    Of two at once, the first one stays. What a killed process left behind is removed an hour later.

    Args:
        final: Named after the content that it is made from.
        make: Writes the model into an empty folder; what it raises is passed on, and nothing stays.
    Raises:
        HomeError: the disk is full or cannot be written.
    """
    if is_model_folder(final):
        mark_used(final)
        return final
    with disk_faults(final):
        work = final.with_name(f".{final.name}.{uuid.uuid4().hex}")
        work.mkdir(parents=True)
        now = work.stat().st_mtime  # the disk's time, which may be another machine's
        for left in final.parent.glob(f".{final.name}.*"):
            with contextlib.suppress(FileNotFoundError):
                if now - left.stat().st_mtime > _ABANDONED_AFTER_S:
                    shutil.rmtree(left, ignore_errors=True)
        try:
            make(work)
            if not is_model_folder(final):
                shutil.rmtree(final, ignore_errors=True)  # a user removed files from it
            with contextlib.suppress(OSError):  # not empty: another process was first
                work.rename(final)
        finally:
            shutil.rmtree(work, ignore_errors=True)
    return final
