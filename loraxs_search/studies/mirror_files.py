"""What of a study folder is copied to a storage, and which of the two is ahead."""

from __future__ import annotations

import re
from collections.abc import Iterable, Iterator
from pathlib import Path

from loraxs_search.errors import StudyError
from loraxs_search.studies.storage import Storage

# What is copied, in this order: a copy that was cut short is one of an earlier moment. What belongs to one machine is
# not among it.
_ORDER = (
    *("tracking.", "space.", "identity.json", "assets/", "assets.json", "yardsticks."),
    *("snapshots/", "adapters/", "candidates-", "round.json", "journal.jsonl", "mlflow.offset", "confirmed/"),
    *("candidates.json", "study.json"),
)
# These grow while they are copied. Read before the others, they speak of nothing that is not copied with them; the
# offset before the events, as it may lag behind them and never run ahead.
READ_FIRST = ("tracking.offset", "tracking.jsonl", "mlflow.offset", "journal.jsonl")
_GROWING = (
    "tracking.jsonl",
    "journal.jsonl",
)  # lines are only ever appended: copied in parts, of which the last changes
PART_BYTES = 1 << 17
_IN_PARTS = b'"This file is copied in parts."\n'
_PART = re.compile(r"(?P<file>.+\.jsonl)\.\d{6}")


def _copy_order(key: str) -> int | None:
    """Return a file's place in the order of copying; None when it is not copied."""
    if any(part.startswith(".") for part in key.split("/")):
        return None
    return next((index for index, start in enumerate(_ORDER) if key.startswith(start)), None)


def files(path: Path) -> list[str]:
    """Return the keys of what is copied, in the order of copying."""
    return in_copy_order(str(file.relative_to(path)) for file in path.rglob("*") if file.is_file())


def in_copy_order(keys: Iterable[str]) -> list[str]:
    """Return those of the keys that are copied, in the order of copying."""
    places = {key: place for key in keys if (place := _copy_order(key)) is not None}
    return sorted(places, key=lambda key: (places[key], key))


def parts(key: str, content: bytes, copied: int) -> Iterator[tuple[str, bytes]]:
    """Yield the objects that a file's content goes to, in order, of those behind what was copied before.

    One that grows beyond a part is in parts from then on, and its own object says so: cut short before that, the copy
    is one of an earlier moment. Version 0.1 takes that object for a damaged journal, and does not go on from a part.
    """
    whole = content[: content.rfind(b"\n") + 1]
    if key not in _GROWING or len(whole) <= PART_BYTES:
        yield key, content
        return
    are_there = copied if copied > PART_BYTES else 0
    for number in range(are_there // PART_BYTES, -(-len(whole) // PART_BYTES)):
        yield f"{key}.{number:06d}", whole[number * PART_BYTES : (number + 1) * PART_BYTES]
    if not are_there:
        yield key, _IN_PARTS


def file_of(key: str) -> str:
    """Return the file that an object is of, or a part of."""
    return part["file"] if (part := _PART.fullmatch(key)) else key


def read_copy(storage: Storage, name: str, key: str) -> bytes | None:
    """Return a file of a study from its copy; None when there is none."""
    content = storage.get(f"{name}/{key}")
    if key not in _GROWING or content != _IN_PARTS:
        return content
    content, number = b"", 0
    while len(content) == number * PART_BYTES and (part := storage.get(f"{name}/{key}.{number:06d}")):
        content, number = content + part, number + 1
    return content


def is_behind(path: Path, storage: Storage, name: str) -> bool:
    """Say whether the folder is behind the storage; a journal only ever grows.

    Raises:
        StudyError: each side holds what the other lacks.
    """
    here, there = _read(path / "journal.jsonl") or b"", read_copy(storage, name, "journal.jsonl") or b""
    here, there = here[: here.rfind(b"\n") + 1], there[: there.rfind(b"\n") + 1]
    if here.startswith(there):
        return (
            here == there and not (path / "candidates.json").exists() and bool(storage.get(f"{name}/candidates.json"))
        )
    if there.startswith(here):
        return True
    raise StudyError(
        f"Of study {name!r} one side must be ahead, but {path} and {storage.uri} each hold what the other lacks.",
        hint="keep one: move the folder away to go on with the storage's",
    )


def _read(path: Path) -> bytes | None:
    try:
        return path.read_bytes()
    except FileNotFoundError:
        return None
