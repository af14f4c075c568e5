"""API keys of a server, from a file."""

from __future__ import annotations

from pathlib import Path

from loraxs_search.errors import UsageError


def read_keys(path: Path) -> tuple[str, ...]:
    """Return the keys of a file, one in each line.

    Raises:
        UsageError: the file cannot be read, or has none.
    """
    try:
        lines = path.expanduser().read_text(encoding="utf-8-sig").splitlines()
    except (OSError, UnicodeDecodeError) as error:
        raise UsageError(f"`--api-key-file` must be a text file that can be read, but {path}: {error}.") from error
    keys = tuple(line.strip() for line in lines if line.strip())
    if not keys:
        raise UsageError(f"`--api-key-file` must have a key at least, but {path} has none.")
    if not all(key.isascii() and key.isprintable() and " " not in key for key in keys):
        raise UsageError(f"Keys of `--api-key-file` must be printable ASCII without spaces, but one of {path} is not.")
    return keys
