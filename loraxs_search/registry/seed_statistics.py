"""How much of a score is luck of the seed: mean and deviation over a candidate and its refits."""

from __future__ import annotations

import math
import statistics
from collections.abc import Sequence
from dataclasses import dataclass

from loraxs_search.records import Candidate, Manifest


@dataclass(frozen=True)
class SeedStatistics:
    """A metric over seeds.

    Args:
        deviation: Sample standard deviation; None for fewer than two values.
        count: Seeds that have a value.
    """

    mean: float
    deviation: float | None
    count: int

    @classmethod
    def of(cls, values: Sequence[float]) -> SeedStatistics:
        """Return the statistics of at least one value."""
        deviation = statistics.stdev(values) if len(values) > 1 else None
        return cls(statistics.fmean(values), deviation, len(values))

    def __str__(self) -> str:
        return f"{self.mean:.4f}" + (f" ± {self.deviation:.4f}" if self.deviation is not None else "")


def seed_statistics(of: Candidate | Manifest) -> dict[str, SeedStatistics]:
    """Return each validation metric over the adapter itself and the same recipe from other seeds."""
    statistics_of = {}
    for name, value in of.validation_metrics.items():
        others = [refit.validation_metrics[name] for refit in of.refits if name in refit.validation_metrics]
        values = [number for number in (value, *others) if math.isfinite(number)]
        if values:
            statistics_of[name] = SeedStatistics.of(values)
    return statistics_of
