"""Detects that the latest trials of a search fail for one reason, which then lies in the search, not in the trials."""

from __future__ import annotations

from collections import Counter

_FEWEST = 5
_SHARE = 0.9


class Outcomes:
    """Outcomes of the trials that this driver has run, latest last: why a trial failed, or empty if it reports.

    A driver that goes on with a study begins with none, so that whatever was fixed in between can show.
    """

    def __init__(self) -> None:
        self._reasons: dict[str, str] = {}

    def went_on(self, trial_id: str) -> None:
        """Record that a trial has reported; its first report counts."""
        self._reasons.setdefault(trial_id, "")

    def failed(self, trial_id: str, reason: str) -> None:
        """Record that a trial has failed."""
        self._reasons.pop(trial_id, None)
        self._reasons[trial_id] = reason

    def common_failure(self, num_slots: int) -> tuple[int, str] | None:
        """Return how many of the latest trials failed for one reason, and that, when nearly all of them did.

        The latest are twice as many as run side by side, ten at least; to decide, half of them must be there: trials
        that fail do so sooner than others report.
        """
        enough = max(_FEWEST, num_slots)
        latest = list(self._reasons.values())[-2 * enough :]
        if len(latest) < enough:
            return None
        reason, count = Counter(latest).most_common(1)[0]
        return (count, reason) if reason and count >= _SHARE * len(latest) else None
