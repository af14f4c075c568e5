"""Task kinds by name: those of this folder, and those of other distributions. See `_base` for the contract.

What a kind is written with is imported from here.
"""

from __future__ import annotations

from loraxs_search.errors import TaskDataError, UsageError
from loraxs_search.plugins import EntryPoints
from loraxs_search.records.task import Task
from loraxs_search.tasks.encoded import EncodedRows, Ragged
from loraxs_search.tasks.kinds._base import (
    Fault,
    ForwardRequest,
    Generated,
    GenerateRequest,
    Keys,
    Names,
    PassOutputs,
    Reduce,
    Request,
    RequestGenerator,
    RowScores,
    Sampling,
    Section,
    TaskKind,
)
from loraxs_search.tasks.kinds._language_model import Prompt, Template, begin_ids, render_chat, token_ids
from loraxs_search.tasks.kinds.labelled import (
    Regression,
    SequenceClassification,
    TokenClassification,
    classifier,
    finite_number,
    guess_true_label,
)
from loraxs_search.tasks.kinds.multi_label import MultiLabel
from loraxs_search.tasks.kinds.multiple_choice import MultipleChoice
from loraxs_search.tasks.kinds.ordinal import Ordinal
from loraxs_search.tasks.kinds.text_generation import TextGeneration
from loraxs_search.tasks.metrics import METRICS, TEXT_METRICS, TOKEN_METRICS, Metric
from loraxs_search.tasks.rows import Columns, Rows, SourceLocation, items_of

KINDS: EntryPoints[type[TaskKind]] = EntryPoints(
    "task.kind",
    "loraxs_search.task_kinds",
    SequenceClassification,
    Ordinal,
    MultiLabel,
    Regression,
    TokenClassification,
    MultipleChoice,
    TextGeneration,
)


def kind_of(task: Task) -> TaskKind:
    """Return a task's kind.

    Raises:
        TaskDataError: the kind is unknown.
    """
    try:
        return KINDS.get(task.kind)(task)
    except UsageError as error:
        hint = error.hint or "a kind that another distribution brings is known where that is installed"
        raise TaskDataError(f"Task {task.name}: {error.message}", hint=hint) from None


def find_metric(name: str, task: Task | None = None) -> Metric | None:
    """Return the metric of a name, as a task's kind has it; None when no kind has it.

    Without a task, whatever kind it belongs to: its direction is the same in all of them, what it scores may not be.
    """
    if task is not None and (own := kind_of(task).metrics.get(name)) is not None:
        return own
    if (known := (METRICS | TOKEN_METRICS).get(name)) is not None:
        return known
    return next((kind.metrics[name] for kind in KINDS.importable().values() if name in kind.metrics), None)
