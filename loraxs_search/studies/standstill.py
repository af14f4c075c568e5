"""Whether a copy stands still, and when to say so again."""

from __future__ import annotations

from loraxs_search.studies.clock import Clock

PATIENCE_S = 60.0


class Standstill:
    """Watches a copy: `moved` when something of it came through, `stuck` with a reason when not.

    Args:
        place: What is copied and where to, for people.
    """

    def __init__(self, place: str, clock: Clock) -> None:
        self._place, self._clock = place, clock
        self._moved_at = clock.now()
        self._next_s = PATIENCE_S
        self._reason = ""

    def moved(self) -> str | None:
        """Something came through; return what to say if it was said that nothing did."""
        was_reported = self._reason != "" or self._next_s > PATIENCE_S
        self._moved_at, self._next_s, self._reason = self._clock.now(), PATIENCE_S, ""
        return f"the copy of {self._place} goes on" if was_reported else None

    def stuck(self, reason: str) -> str | None:
        """Nothing came through; return what to say the first time."""
        is_news = self._reason == ""
        self._reason = reason
        return f"the copy of {self._place} waits, the search goes on: {reason}" if is_news else None

    def overdue(self) -> str | None:
        """Return what to say where nothing has come through for a minute, and then for twice as long each time."""
        still_s = self._clock.now() - self._moved_at
        if still_s < self._next_s:
            return None
        self._next_s = 2 * still_s
        return (
            f"the copy of {self._place} has stood still for {still_s:.0f} s, the search goes on: "
            f"{self._reason or 'the storage is slow'}; were this machine lost now, another would go on from that copy"
        )
