"""Files of the state folder that nobody has used for long."""

from __future__ import annotations

import hashlib
import json
import os
import time
from pathlib import Path

DAY_S = 24 * 3600.0


def age(path: Path, days: float = 60.0) -> None:
    """Have a file, or all of a folder, be unused for so long."""
    at = time.time() - days * DAY_S
    for file in (path, *path.rglob("*")):
        os.utime(file, (at, at))


def pulled(home: Path, name: str, digest: str) -> None:
    """Note that a name meant a digest when it was pulled."""
    path = home / "adapters" / "names.json"
    path.parent.mkdir(parents=True, exist_ok=True)
    names = json.loads(path.read_text()) if path.exists() else {}
    path.write_text(json.dumps(names | {f"sqlite:///x.db {name}": {"digest": digest}}))


def base_name(name: str) -> str:
    """Return how the folder of a base model is called that `base` makes."""
    return hashlib.sha256(name.encode()).hexdigest()[:16]
