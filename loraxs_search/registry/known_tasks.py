"""Names of tasks that this machine knows without asking MLflow, which takes seconds to import."""

from __future__ import annotations

import contextlib
import re
import sqlite3

from loraxs_search.home import home
from loraxs_search.mlflow_uri import sqlite_path
from loraxs_search.registry._listing import ADAPTER, KIND
from loraxs_search.registry._resolved import ResolvedNames

_QUERY = "SELECT name FROM registered_model_tags WHERE key = ? AND value = ?"


def known_tasks(uri: str) -> list[str]:
    """Return the tasks of an embedded store, and those of any store that have been pulled here, sorted.

    A server is not asked: names that it alone knows are missing.
    """
    pulled = {re.split("[@:]", name)[0] for name in ResolvedNames(home() / "adapters" / "names.json", uri).names()}
    return sorted({*_registered(uri), *pulled})


def _registered(uri: str) -> list[str]:
    """Read MLflow's own table; nothing where it is not there, or is of a version that has another."""
    path = sqlite_path(uri)
    if path is None or not path.is_file():
        return []
    try:
        with contextlib.closing(sqlite3.connect(f"{path.as_uri()}?mode=ro", uri=True)) as store:
            return [str(name) for (name,) in store.execute(_QUERY, (KIND, ADAPTER))]
    except sqlite3.Error:  # a table of another name: nothing is offered
        return []
