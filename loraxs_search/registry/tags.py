"""Tags that hold records. MLflow's pages hide tags that begin with `mlflow.`; programs read them, people need not."""

from __future__ import annotations

from collections.abc import Mapping

_HIDDEN = "mlflow."
CANDIDATE, DECISION = f"{_HIDDEN}loraxs.candidate", f"{_HIDDEN}loraxs.decision"  # of a version
DECISIONS = f"{DECISION}."  # of a registered model, with the time of each decision behind it
SUMMARY = f"{_HIDDEN}loraxs.champion"  # of a registered model
PAGE = f"{_HIDDEN}loraxs.page"  # sha256 of the description that we wrote


def record(tags: Mapping[str, str], name: str) -> str:
    """Return the record under `name`, or under the name that version 0.1 gave it, in sight.

    Raises:
        KeyError: there is neither.
    """
    return tags[name] if name in tags else tags[name.removeprefix(_HIDDEN)]


def records(tags: Mapping[str, str], prefix: str) -> list[str]:
    """Return the records whose names begin so, today's and those of version 0.1, in the order of what is behind it."""
    old = prefix.removeprefix(_HIDDEN)
    found = [(key.removeprefix(prefix), value) for key, value in tags.items() if key.startswith(prefix)]
    found += [(key.removeprefix(old), value) for key, value in tags.items() if key.startswith(old)]
    return [value for _, value in sorted(found)]
