"""Clocks that are wrong, for processes that are started with one; Debian's libfaketime makes them."""

from __future__ import annotations

from pathlib import Path

_LIBRARIES = sorted(Path("/usr/lib").glob("*/faketime/libfaketimeMT.so.1"))


def no_wrong_clock() -> str | None:
    """Say why no clock can be wrong here; None when one can."""
    return None if _LIBRARIES else "libfaketime (Debian package faketime) is not installed"


def wrong_clock(offset: str) -> dict[str, str]:
    """Return the environment of a process whose time of day is off by so much, such as `+9d` or `-5h`.

    Clocks that nobody sets stay right, and so do the times of files, which are another machine's on a shared disk.
    """
    return {
        "LD_PRELOAD": str(_LIBRARIES[0]),
        "FAKETIME": offset,
        "FAKETIME_DONT_FAKE_MONOTONIC": "1",
        "FAKETIME_DISABLE_SHM": "1",  # a box has another /dev/shm than the process that starts it
        "NO_FAKE_STAT": "1",
    }
