"""API keys of a server, from a file, and which tasks each may ask."""

from __future__ import annotations

from pathlib import Path

from loraxs_search.errors import UsageError

ENV_KEY = "LORAXS_FALLBACK_KEY"  # the key that this server shows to a fallback


def read_keys(path: Path) -> dict[str, frozenset[str]]:
    """Return the keys of a file, one in each line, with the tasks named behind it; without any, it may ask all.

    Raises:
        UsageError: the file cannot be read, has no key, or one twice.
    """
    try:
        lines = path.expanduser().read_text(encoding="utf-8-sig").splitlines()
    except (OSError, UnicodeDecodeError) as error:
        raise UsageError(f"`--api-key-file` must be a text file that can be read, but {path}: {error}.") from error
    keys = dict[str, frozenset[str]]()
    for number, line in enumerate(lines, 1):
        if not line.strip():
            continue
        key, *tasks = line.split()
        if not (key.isascii() and key.isprintable()) or key in keys:
            law = "Keys of `--api-key-file` must be printable ASCII, and differ from each other"
            raise UsageError(f"{law}, but one does not: {path}, line {number}.", hint="a line is KEY, or KEY TASK TASK")
        keys[key] = frozenset(tasks)
    if not keys:
        raise UsageError(f"`--api-key-file` must have a key at least, but {path} has none.")
    return keys
