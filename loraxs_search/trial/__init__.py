"""What one trial means: its loop, its optimizer, its scores and its state. The lone trial is the reference."""

from __future__ import annotations

from loraxs_search.lr_schedule import lr_factor
from loraxs_search.trial.checkpointing import GradientCheckpointing
from loraxs_search.trial.decoding import base_of
from loraxs_search.trial.evaluate import ask, evaluate, in_row_order, sample_answers, score_rows, split_metrics
from loraxs_search.trial.forward import forward
from loraxs_search.trial.generate import default_rows, open_rows, write, write_rows, writing_batches
from loraxs_search.trial.open_row import OpenRow, written
from loraxs_search.trial.out_of_memory import MEMORY_ERRORS, is_out_of_memory, row_too_long
from loraxs_search.trial.precision import choose_dtype
from loraxs_search.trial.report import make_report
from loraxs_search.trial.run import TrialRun, attach, check_step, detach, load_parameters
from loraxs_search.trial.score_folder import FolderScores, score_folder
from loraxs_search.trial.shared_prompts import is_worth_sharing, prompt_groups, read_shared
from loraxs_search.trial.snapshot import Snapshot
from loraxs_search.trial.yardsticks import bare_body, measure_yardsticks

__all__ = [
    "MEMORY_ERRORS",
    "FolderScores",
    "GradientCheckpointing",
    "OpenRow",
    "Snapshot",
    "TrialRun",
    "ask",
    "attach",
    "bare_body",
    "base_of",
    "check_step",
    "choose_dtype",
    "default_rows",
    "detach",
    "evaluate",
    "forward",
    "in_row_order",
    "is_out_of_memory",
    "is_worth_sharing",
    "load_parameters",
    "lr_factor",
    "make_report",
    "measure_yardsticks",
    "open_rows",
    "prompt_groups",
    "read_shared",
    "row_too_long",
    "sample_answers",
    "score_folder",
    "score_rows",
    "split_metrics",
    "write",
    "write_rows",
    "writing_batches",
    "written",
]
