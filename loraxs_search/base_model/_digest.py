"""sha256 of weight files, remembered per unchanged file: hashing gigabytes at every start would be felt."""

from __future__ import annotations

import contextlib
import hashlib
import json
from collections import Counter
from pathlib import Path

from loraxs_search import safetensors_header
from loraxs_search.base_model._folder import weight_files
from loraxs_search.errors import HomeError
from loraxs_search.home import home, write_atomic


def weight_digest(folder: Path) -> str:
    """Return the sha256 of a model's weight file.

    Sharded weights: sha256 over one line `<name> <sha256>` per shard, sorted by name, each ended by a newline.
    """
    files = weight_files(folder)
    digests = [file_digest(file) for file in files]
    if len(files) == 1:
        return digests[0]
    lines = "".join(f"{file.name} {digest}\n" for file, digest in zip(files, digests, strict=True))
    return hashlib.sha256(lines.encode()).hexdigest()


def weight_bytes(folder: Path) -> int:
    """Return the size of a model's weight files."""
    return sum(file.stat().st_size for file in weight_files(folder))


def numbers_by_dtype(folder: Path) -> dict[str, int]:
    """Return how many numbers of each type a model's weight files have, by the type's name in safetensors (`BF16`).

    Empty where a file is no safetensors, or a damaged one: loading says what is wrong with it.
    """
    numbers: Counter[str] = Counter()
    for file in weight_files(folder):
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
    remembered = _read(note)
    if {key: remembered.get(key) for key in identity} == identity and isinstance(remembered.get("sha256"), str):
        return str(remembered["sha256"])
    with real.open("rb") as file:
        digest = hashlib.file_digest(file, "sha256").hexdigest()
    with contextlib.suppress(HomeError):  # only an acceleration: a home that cannot be written is not the model's fault
        write_atomic(note, json.dumps({**identity, "sha256": digest}))
    return digest


def _read(note: Path) -> dict[str, object]:
    try:
        value = json.loads(note.read_bytes())
    except (OSError, ValueError):
        return {}
    return value if isinstance(value, dict) else {}
