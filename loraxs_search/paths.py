"""Paths and times as people write them; the spaces and well-known tasks that come with the package."""

from __future__ import annotations

import errno
import os
import re
from dataclasses import dataclass
from pathlib import Path

from loraxs_search.errors import UsageError, did_you_mean, unknown_name


def user_path(text: str, folder: Path | None = None) -> Path:
    """Return the absolute path that `text` means; it need not exist.

    `~` is a home folder; a relative path starts at `folder`, by default the working directory.

    Raises:
        ValueError: no file can have that name; the message says why.
    """
    try:
        path = ((folder or Path()) / Path(text).expanduser()).resolve()
        os.lstat(path)
    except OSError as error:
        if error.errno in (errno.ENAMETOOLONG, errno.ELOOP):
            raise ValueError(f"the system says: {error.strerror}") from None
    except UnicodeEncodeError:
        raise ValueError("it holds half of a character") from None
    except ValueError:
        raise ValueError("it holds a NUL byte") from None
    except RuntimeError as error:  # of a user that does not exist, or links that go in a circle
        raise ValueError(f"the system says: {str(error).rstrip('.')}") from None
    return path


def meant_file(path: Path) -> str:
    """Return the question whether a file beside a missing one is meant; empty where none has nearly its name."""
    try:
        beside = [str(path.parent / each.name) for each in path.parent.iterdir()]
    except OSError:
        return ""
    return did_you_mean(path, beside)


_UNITS = {"d": 86400.0, "h": 3600.0, "m": 60.0, "s": 1.0}
# Each unit at most once, the largest first; what is looked for ahead keeps out blanks before it, and the empty text.
DURATION = r"(?=\d)" + "".join(rf"(?:\s*(\d+(?:\.\d+)?)\s*{unit})?" for unit in _UNITS)


def seconds_of(text: str) -> float | None:
    """Return the seconds of `90s`, `10m`, `1.5d` or `1h30m`; None for any other text."""
    match = re.fullmatch(DURATION, text)
    if match is None:
        return None
    return sum(float(number) * unit for number, unit in zip(match.groups("0"), _UNITS.values(), strict=True))


# ---- what comes with the package, in a wheel inside it, in a checkout beside it ------------------------------------
@dataclass(frozen=True)
class ShippedSpace:
    """A space that comes with the package.

    Args:
        space: Its name, as `launch` and `check` take it.
        about: What it is, in a line.
    """

    space: str
    about: str


def spaces() -> list[ShippedSpace]:
    """Return the spaces that come with the package, by name."""
    texts = {name: shipped_space_path(name).read_text(encoding="utf-8") for name in shipped_spaces()}
    return [ShippedSpace(name, text.partition("\n")[0].lstrip("# ").strip()) for name, text in texts.items()]


def shipped_spaces() -> list[str]:
    """Return the names of the shipped spaces, sorted."""
    return sorted(path.stem for path in _folder().glob("*.yaml"))


def shipped_space_path(name: str) -> Path:
    """Return the file of a shipped space; `movie-reviews` and `movie_reviews.yaml` both mean `movie_reviews`.

    Raises:
        UsageError: there is no such space; the message lists those there are.
    """
    plain = name.removesuffix(".yaml").replace("-", "_").lower()
    for known in shipped_spaces():
        if known.replace("-", "_").lower() == plain:
            return _folder() / f"{known}.yaml"
    raise UsageError(unknown_name("space", name, shipped_spaces()), hint="`loraxs-search spaces ls` lists them")


def shipped_tasks() -> list[str]:
    """Return the names of the well-known tasks, sorted."""
    return sorted(path.stem for path in (_folder() / "tasks").glob("*.yaml"))


def shipped_task_path(name: str) -> Path:
    """Return the file of a well-known task.

    Raises:
        UsageError: there is no such task; the message lists those there are, nearest first.
    """
    if name not in (known := shipped_tasks()):
        raise UsageError(unknown_name("task", name, known), hint="`loraxs-search tasks ls` says what each one is")
    return _folder() / "tasks" / f"{name}.yaml"


def schema_path() -> Path:
    """Return the file of the JSON Schema that editors check a space with."""
    return _folder() / "space.schema.json"


def _folder() -> Path:
    package = Path(__file__).resolve().parent
    installed = package / "_spaces"
    return installed if installed.is_dir() else package.parent / "search_spaces"
