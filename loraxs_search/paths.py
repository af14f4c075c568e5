"""Paths and times as people write them."""

from __future__ import annotations

import errno
import os
import re
from pathlib import Path

from loraxs_search.errors import did_you_mean


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
