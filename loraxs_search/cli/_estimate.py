"""An estimate of a search, for people."""

from __future__ import annotations

from typing import TYPE_CHECKING

if TYPE_CHECKING:
    from loraxs_search.search.driver.estimate import SearchEstimate


def describe(estimate: SearchEstimate) -> dict[str, str]:
    """Return the lines that tell an estimate."""
    low, high = estimate.step_share
    of = estimate.measured
    shares = f"{low:.0%}" if round(high - low, 2) == 0 else f"{low:.0%} to {high:.0%}"
    parts = ", ".join(f"{name} {_time(seconds)}" for name, seconds in estimate.parts_s.items())
    hours = _range(estimate.least_device_hours, estimate.most_device_hours)
    return {
        "estimate": f"about {_time(estimate.least_s)} to {_time(estimate.most_s)} on this machine alone, "
        f"{hours} device hours",
        "of these": parts,
        "early stops": f"leave {shares} of all steps, by the scheduler on random scores",
        "measured": f"{of.num_steps} steps and a scoring of {of.at_once} drawn trials at once on {of.device}: "
        f"{of.step_s:.3g} s a step, {of.scoring_s:.3g} s a scoring of each",
    }


def _time(seconds: float) -> str:
    """Return a time with two digits: `50 s`, `12 min`, `3.4 h`."""
    if seconds < 90:
        return f"{_two(seconds)} s"
    return f"{_two(seconds / 60)} min" if seconds < 5400 else f"{_two(seconds / 3600)} h"


def _range(low: float, high: float) -> str:
    return f"{low:.2g} to {high:.2g}"


def _two(value: float) -> str:
    return f"{float(f'{value:.2g}'):g}"
