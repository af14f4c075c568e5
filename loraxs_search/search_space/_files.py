"""Finding and reading a space file."""

from __future__ import annotations

from pathlib import Path

from loraxs_search.errors import SpaceError, UsageError, did_you_mean
from loraxs_search.paths import meant_file, user_path
from loraxs_search.search_space._faults import one_of, shown
from loraxs_search.shipped_spaces import shipped_space_path, shipped_spaces

_MAX_BYTES = 1_000_000
_ROWS = {".csv", ".tsv", ".jsonl", ".parquet"}  # JSON is YAML


def find_file(path_or_name: str) -> tuple[Path, str]:
    """Return the file, and what to call it: a path as given, or the whole path of a shipped space.

    Raises:
        SpaceError: there is no such file and no such shipped space.
    """
    try:
        path = user_path(path_or_name)
    except ValueError as error:
        raise SpaceError(
            f"`space` must be a YAML file or the name of a shipped space, but got {shown(path_or_name)}: {error}.",
            hint=_hint(""),
        ) from None
    if path.is_file():
        if _ROWS & {ending.lower() for ending in path.suffixes}:
            raise SpaceError(
                f"`space` must be a YAML file, but {path_or_name} holds rows.",
                hint=f"`loraxs-search init {path_or_name}` writes a space for them",
            )
        return Path(path_or_name).expanduser(), path_or_name
    if path.is_dir():
        raise SpaceError(f"`space` must be a YAML file, but {path_or_name} is a folder.", hint=_hint(path_or_name))
    if Path(path_or_name).name == path_or_name:  # no folder in it: may be a shipped space's name
        try:
            shipped = shipped_space_path(path_or_name)
        except UsageError:
            pass
        else:
            return shipped, str(shipped)
    first = meant_file(Path(path_or_name)) or did_you_mean(Path(path_or_name).stem, shipped_spaces())
    raise SpaceError(
        f"{first}`space` must be a YAML file or the name of a shipped space, but there is no {path_or_name}.",
        hint=_hint(path_or_name),
    )


def _hint(wanted: str) -> str:
    return f"shipped spaces: {one_of(shipped_spaces(), Path(wanted).stem)}"


def read_file(path: Path, source: str) -> str:
    """Return the file's text.

    Raises:
        SpaceError: it cannot be read, is too large to be a space, or is not text.
    """
    try:
        content = path.read_bytes()
    except OSError as error:
        raise SpaceError(
            f"{source} must be readable, but the system says: {error.strerror}.", hint=_hint(source)
        ) from error
    if len(content) > _MAX_BYTES:
        raise SpaceError(
            f"{source} must be at most {_MAX_BYTES} bytes, but has {len(content)}: is it a space file?",
            hint=_hint(source),
        )
    try:
        return content.decode("utf-8-sig")
    except UnicodeDecodeError as error:
        line = content.count(b"\n", 0, error.start) + 1
        raise SpaceError(
            f"{source}:{line}: must be text in UTF-8, but byte {error.start} is not.", hint="save the file as UTF-8"
        ) from error
