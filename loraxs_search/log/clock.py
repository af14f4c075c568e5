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
