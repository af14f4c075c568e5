"""How much of a score is luck of the seed: mean and spread over a candidate and its refits."""

from __future__ import annotations

import math
import statistics
from collections.abc import Mapping, Sequence
from dataclasses import dataclass

from loraxs_search.records import Candidate, Manifest, Refit


@dataclass(frozen=True)
class Spread:
    """A metric over seeds.

    Args:
        deviation: Sample standard deviation; None for fewer than two values.
        count: Seeds that have a value.
    """

    mean: float
    deviation: float | None
    count: int

    def __str__(self) -> str:
        return f"{self.mean:.4f}" + (f" ± {self.deviation:.4f}" if self.deviation is not None else "")


def mean_and_spread(of: Candidate | Manifest) -> dict[str, Spread]:
    """Return validation metric to its spread over the adapter itself and the same recipe from other seeds."""
    return _spreads(of.validation_metrics, of.refits)


def _spreads(own: Mapping[str, float], refits: Sequence[Refit]) -> dict[str, Spread]:
    found = {}
    for name, value in own.items():
        others = [refit.validation_metrics[name] for refit in refits if name in refit.validation_metrics]
        values = [number for number in (value, *others) if math.isfinite(number)]
        if values:
            deviation = statistics.stdev(values) if len(values) > 1 else None
            found[name] = Spread(statistics.fmean(values), deviation, len(values))
    return found
