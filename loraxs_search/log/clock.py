"""Time that no clock that is set moves, as leases, copies and budgets see it; tests can hold it still."""

from __future__ import annotations

import time


def _elapsed() -> float:
    """Return seconds by a clock that nobody sets, and that also counts while the machine is suspended."""
    boot = getattr(time, "CLOCK_BOOTTIME", None)  # Linux; elsewhere the monotonic clock does the same
    return time.monotonic() if boot is None else time.clock_gettime(boot)


_BEGAN_AT = time.time() - _elapsed()


def steady_time() -> float:
    """Return seconds since 1970, by the machine's clock when this process began and what has passed since then.

    So a clock that is set meanwhile moves no time budget.
    """
    return _BEGAN_AT + _elapsed()


class Clock:
    """Says how long something took, sleep of the machine included; it is compared with no other one."""

    def now(self) -> float:
        """Return seconds since some moment."""
        return _elapsed()

    def sleep(self, seconds: float) -> None:
        """Let time pass."""
        time.sleep(seconds)


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
        """The time of all drivers; the last one is still at work."""
        return self._earlier_s + (max(0.0, max(self.until, now) - self._since) if self._since is not None else 0.0)

    def driver_started(self, since: float, at: float) -> None:
        """Another driver is at work, and has been since then."""
        self._earlier_s, self._since, self.until = self.seconds, since, at

    def recorded(self, at: float) -> None:
        """The present driver recorded something."""
        self._since = at if self._since is None else self._since
        self.until = max(self.until, at)
