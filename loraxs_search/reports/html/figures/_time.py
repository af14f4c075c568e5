"""The time of a search on an axis."""

from __future__ import annotations

from dataclasses import dataclass

_UNITS = (
    (2 * 86400.0, 86400.0, "days"),
    (2 * 3600.0, 3600.0, "hours"),
    (120.0, 60.0, "minutes"),
    (0.0, 1.0, "seconds"),
)


@dataclass(frozen=True)
class TimeAxis:
    """Time since a start, in the unit that suits its length.

    Args:
        start: Seconds since 1970.
        unit_s: Of the axis.
    """

    start: float
    unit_s: float
    unit: str

    @classmethod
    def over(cls, start: float, end: float) -> TimeAxis:
        """Return the axis from one moment to another, both in seconds since 1970."""
        _, unit_s, unit = next(unit for unit in _UNITS if end - start >= unit[0])
        return cls(start, unit_s, unit)

    @property
    def title(self) -> str:
        return f"{self.unit} since the first trial"

    def at(self, moment: float) -> float:
        """Return where a moment lies."""
        return (moment - self.start) / self.unit_s

    def length(self, seconds: float) -> float:
        """Return how long a time is on it."""
        return seconds / self.unit_s
