"""Whether what a host has loaded is what a study began with."""

from __future__ import annotations

from loraxs_search.errors import StudyError
from loraxs_search.records import Identity

_SHOWN = 16  # hexadecimal digits of a digest


def difference(expected: Identity, actual: Identity) -> str:
    """Describe where base or data differ, with both values; empty where they agree."""
    values = {
        "weight digest": (expected.base_digest, actual.base_digest),
        "data fingerprint": (expected.data_fingerprint, actual.data_fingerprint),
    }
    differs = [
        f"{name} {actual_value[:_SHOWN]}, not {wanted[:_SHOWN]}"
        for name, (wanted, actual_value) in values.items()
        if actual_value != wanted
    ]
    if expected.setup and actual.setup and (unlike := expected.setup.difference(actual.setup)):
        differs.append(f"another base: {unlike}")
    return " and ".join(differs)


def check_unchanged(study: str, recorded: Identity | None, actual: Identity) -> None:
    """Refuse to continue a study on a base or rows that differ from those it began with.

    Args:
        recorded: What it began with; None where that is not known: it has not begun, or an older version began it.
    Raises:
        StudyError: they differ; the message has both values.
    """
    if recorded is not None and (differs := difference(recorded, actual)):
        raise StudyError(
            f"Study {study!r} must go on with the base and the data that it began with, but the files now have"
            f" {differs}.",
            hint="put the files back that it began with, or launch a new study",
        )
