"""Well-known tasks by name, so that a search space can say `task: sst2`."""

from __future__ import annotations

from dataclasses import dataclass

from loraxs_search.errors import UsageError, unknown_name
from loraxs_search.records import DataSource, Split, Task
from loraxs_search.tasks.metrics import METRICS

GLUE_HUB = "nyu-mll/glue"


@dataclass(frozen=True)
class _Glue:
    """A GLUE task as the hub has it."""

    text: str
    text_pair: str | None
    labels: tuple[str, ...]
    metrics: tuple[str, ...]
    validation: str = "validation"
    kind: str = "sequence-classification"


# Columns, label order and metrics as in GLUE (arXiv 1804.07461) and its hub copy. GLUE hides its test labels: the
# test split is therefore carved from train.
_GLUE = {
    "cola": _Glue("sentence", None, ("unacceptable", "acceptable"), ("matthews", "accuracy")),
    "mnli": _Glue(
        "premise", "hypothesis", ("entailment", "neutral", "contradiction"), ("accuracy",), "validation_matched"
    ),
    "mrpc": _Glue("sentence1", "sentence2", ("not_equivalent", "equivalent"), ("f1", "accuracy")),
    "qnli": _Glue("question", "sentence", ("entailment", "not_entailment"), ("accuracy",)),
    "qqp": _Glue("question1", "question2", ("not_duplicate", "duplicate"), ("f1", "accuracy")),
    "rte": _Glue("sentence1", "sentence2", ("entailment", "not_entailment"), ("accuracy",)),
    "sst2": _Glue("sentence", None, ("negative", "positive"), ("accuracy", "f1")),
    "stsb": _Glue("sentence1", "sentence2", (), ("pearson", "spearman", "mse"), kind="regression"),
}


def catalogue_names() -> list[str]:
    """Return the names that `catalogue_task` knows, sorted."""
    return sorted(_GLUE)


def catalogue_task(name: str) -> Task:
    """Return a task of the catalogue; its first metric is the one searched for.

    Raises:
        UsageError: there is no such task; the message lists the known ones, nearest first.
    """
    if name not in _GLUE:
        raise UsageError(unknown_name("task", name, _GLUE))
    glue = _GLUE[name]
    splits: dict[Split, str] = {"train": "train", "validation": glue.validation}
    return Task(
        name=name,
        kind=glue.kind,
        source=DataSource(hub=GLUE_HUB, config=name, splits=splits),
        text=glue.text,
        text_pair=glue.text_pair,
        label="label",
        labels=glue.labels,
        metric=glue.metrics[0],
        direction=METRICS[glue.metrics[0]].direction,
        metrics=glue.metrics,
    )
