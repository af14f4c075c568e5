"""Keeping an account out of the command line, which a machine lists for all, and a Ray cluster for its jobs."""

from __future__ import annotations

import os
import sys
from collections.abc import Sequence

from loraxs_search.errors import TrackingError
from loraxs_search.mlflow_uri import resolve_uri

_OPTION = "--tracking-uri"


def hide_account(argv: Sequence[str]) -> None:
    """Start the process anew, as itself, without the account that its `--tracking-uri` names.

    The account goes on in MLflow's variables. Returns where there is none to hide.
    """
    shown = [_without_account(argv[index - 1] if index else "", word) for index, word in enumerate(argv)]
    if shown == list(argv):
        return
    interpreter = sys.orig_argv[: len(sys.orig_argv) - len(argv)]
    os.execv(sys.executable, [*interpreter, *shown])


def _without_account(before: str, word: str) -> str:
    option = f"{_OPTION}=" if word.startswith(f"{_OPTION}=") else ""
    if (not option and before != _OPTION) or "@" not in word:
        return word
    try:
        return option + resolve_uri(word.removeprefix(option))
    except TrackingError:  # the command says so
        return word
