"""Reports of trials that never ran, for schedulers."""

from __future__ import annotations

from collections.abc import Mapping

from loraxs_search.records import AdapterSize, TrialReport

METRIC = "accuracy"


def report(trial_id: str, step: int, score: float, peers: Mapping[str, tuple[int, float]] | None = None) -> TrialReport:
    """Return a report of a score."""
    return TrialReport(trial_id, step, {METRIC: score}, 0.5, 1.0, 10, AdapterSize(1, 1, 1), peers or {})


def together(scores: Mapping[str, float], step: int) -> list[TrialReport]:
    """Return the reports of trials that were scored in one evaluation."""
    return [
        report(trial_id, step, score, {name: (step, other) for name, other in scores.items() if name != trial_id})
        for trial_id, score in scores.items()
    ]
