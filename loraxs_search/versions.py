"""The packages whose versions are recorded: beside an adapter, a study and a run, and compared between nodes.

Standard library only: `search.cluster` sends this module to nodes as code.
"""

from __future__ import annotations

import contextlib
import importlib.metadata
import platform
from collections.abc import Sequence

TRAINING = ("loraxs-search", "torch", "transformers", "peft")  # what decides the numbers of a trial
SEARCH = (*TRAINING, "datasets", "ray", "optuna", "mlflow")


def installed(packages: Sequence[str] = SEARCH) -> dict[str, str]:
    """Return the version of each of these packages that is installed."""
    versions = {}
    for package in packages:
        with contextlib.suppress(importlib.metadata.PackageNotFoundError):
            versions[package] = importlib.metadata.version(package)
    return versions


def with_python() -> dict[str, str]:
    """Return the versions of Python and of the packages that a search needs, as this process would import them."""
    return {"python": platform.python_version()} | installed()
