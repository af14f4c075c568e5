"""Reports of trials that never ran."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import replace

from loraxs_search.records.trial import AdapterSize, TrialReport

METRIC = "accuracy"


def report(trial_id: str, step: int, score: float, peers: Mapping[str, tuple[int, float]] | None = None) -> TrialReport:
    """Return a report of a score."""
    return replace(measured(trial_id, step, {METRIC: score}), peers=peers or {})


def measured(trial_id: str, step: int, metrics: Mapping[str, float]) -> TrialReport:
    """Return a report of several metrics."""
    return TrialReport(trial_id, step, metrics, 0.5, 1.0, 10, AdapterSize(1, 1, 1))


def together(scores: Mapping[str, float], step: int) -> list[TrialReport]:
    """Return the reports of trials that were scored in one evaluation."""
    return [
        report(trial_id, step, score, {name: (step, other) for name, other in scores.items() if name != trial_id})
        for trial_id, score in scores.items()
    ]
