"""State folders that earlier versions left, as `tests/fixtures` has them."""

from __future__ import annotations

import os
import shutil
import sqlite3
from contextlib import closing
from pathlib import Path

import pytest


def take_up(recorded: Path, recorded_at: str, home: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """Make a recorded state folder this test's home, with the data beside it and its bases installed.

    Args:
        recorded_at: Where it was made; recordings have this path in them.
    """
    place = str(home.parent)
    shutil.copytree(recorded / "home", home)
    shutil.copytree(recorded / "data", home.parent / "data")
    for study in home.glob("studies/*"):
        info, events, offset = (study / name for name in ("study.json", "tracking.jsonl", "tracking.offset"))
        info.write_text(info.read_text().replace(recorded_at, place))
        sent = int(offset.read_text())
        parts = [part.replace(recorded_at.encode(), place.encode()) for part in _split(events.read_bytes(), sent)]
        events.write_bytes(b"".join(parts))
        offset.write_text(str(len(parts[0])))
    with closing(sqlite3.connect(home / "mlflow.db")) as store:
        store.executescript((recorded / "store.sql").read_text().replace(recorded_at, place))
    monkeypatch.syspath_prepend(recorded / "base")
    path = filter(None, (str(recorded / "base"), os.environ.get("PYTHONPATH")))
    monkeypatch.setenv("PYTHONPATH", os.pathsep.join(path))  # for Ray's processes


def _split(content: bytes, at: int) -> tuple[bytes, bytes]:
    return content[:at], content[at:]
