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


_UNITS = {"s": 1.0, "m": 60.0, "h": 3600.0, "d": 86400.0}
_TIME = re.compile(r"(\d+(?:\.\d+)?)\s*([smhd])")


def seconds_of(text: str) -> float | None:
    """Return the seconds of `90s`, `10m`, `2h` or `1.5d`; None for any other text."""
    match = _TIME.fullmatch(text)
    return float(match[1]) * _UNITS[match[2]] if match else None
