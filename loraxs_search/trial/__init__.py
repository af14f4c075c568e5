"""What one trial means: its loop, its optimizer, its scores and its state. The lone trial is the reference."""

from __future__ import annotations

from loraxs_search.trial.evaluate import (
    as_answers,
    ask,
    evaluate,
    sample_answers,
    score_folder,
    score_rows,
    split_metrics,
)
from loraxs_search.trial.linear_probe import fit_linear_probe
from loraxs_search.trial.run import TrialRun, attach, check_distinct, check_step, detach, load_parameters, mean_loss
from loraxs_search.trial.snapshot import Snapshot

__all__ = [
    "Snapshot",
    "TrialRun",
    "as_answers",
    "ask",
    "attach",
    "check_distinct",
    "check_step",
    "detach",
    "evaluate",
    "fit_linear_probe",
    "load_parameters",
    "mean_loss",
    "sample_answers",
    "score_folder",
    "score_rows",
    "split_metrics",
]
