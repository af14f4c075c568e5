"""How long drivers have worked on a study, from the times that they recorded."""

from __future__ import annotations


class WorkTime:
    """Sums up drivers that followed one another, each from its start to the last it recorded.

    Every driver goes by its own clock, and the time between two of them does not count.
    """

    def __init__(self) -> None:
        self._earlier_s = 0.0
        self._since: float | None = None
        self.until = 0.0  # the last that was recorded

    @property
    def seconds(self) -> float:
        """The time of all drivers so far."""
        return self.until_now(self.until)

    def until_now(self, now: float) -> float:
        """The time of all drivers, of which the last one is still at work."""
        return self._earlier_s + (max(0.0, max(self.until, now) - self._since) if self._since is not None else 0.0)

    def driver_started(self, since: float, at: float) -> None:
        """Another driver is at work, and has been since then."""
        self._earlier_s, self._since, self.until = self.seconds, since, at

    def recorded(self, at: float) -> None:
        """The present driver recorded something."""
        self._since = at if self._since is None else self._since
        self.until = max(self.until, at)
