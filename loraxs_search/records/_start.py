"""The registered adapter that a study's trials start from."""

from __future__ import annotations

from dataclasses import dataclass

from loraxs_search.records._trial import Hyperparameters


@dataclass(frozen=True)
class AdapterRef:
    """One version of a task's adapters, by name and by content.

    Args:
        name: `TASK:3`.
        digest: Content address of its folder.
    """

    name: str
    digest: str


@dataclass(frozen=True)
class StartFrom:
    """What a study's trials start from, as it was when the study was launched.

    Args:
        with_head: Whether they start from its head too: it answers with the same labels.
    """

    adapter: AdapterRef
    base_digest: str
    hyperparameters: Hyperparameters
    with_head: bool = False
