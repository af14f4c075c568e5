"""Trials and params as people type them."""

from __future__ import annotations

import json
from collections.abc import Sequence

from loraxs_search.errors import CommandError, shortened
from loraxs_search.records import Scalar


def trial_name(text: str) -> str:
    """Return a trial's id as studies have it: 3 and 00003 are the same."""
    return text.lstrip("0").zfill(5) if text.isascii() and text.isdigit() else text


def read_params(pairs: Sequence[str]) -> dict[str, Scalar]:
    """Return what `--set NAME=VALUE` gives: numbers, true and false as such, else text.

    Raises:
        CommandError: one is no pair.
    """
    params: dict[str, Scalar] = {}
    for pair in pairs:
        name, equals, value = pair.partition("=")
        if not (name and equals):
            raise CommandError(f"`--set` must be NAME=VALUE, but got {shortened(pair)}.")
        params[name] = _scalar(value)
    return params


def _scalar(text: str) -> Scalar:
    for read in (int, float) if "_" not in text else ():  # Python reads 1_6 as 16
        try:
            return read(text)
        except ValueError:
            continue
    try:
        value = json.loads(text)
    except ValueError:
        return text
    return value if isinstance(value, bool) else text
