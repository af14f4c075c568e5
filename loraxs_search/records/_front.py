"""A trial of the front, where a study searches for score and stored bytes together."""

from __future__ import annotations

from dataclasses import dataclass


@dataclass(frozen=True)
class FrontTrial:
    """A complete trial that no other one beats in score and stored bytes together.

    Args:
        score: Of the report of the step that is kept, by what trials are compared by.
        stored_bytes: Of its adapter's file, with the head.
    """

    trial_id: str
    score: float
    stored_bytes: int
