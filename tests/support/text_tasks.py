"""Tasks whose answers are texts, on a few rows that each test may change."""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from typing import Any

import pytest

from loraxs_search.errors import TaskDataError
from loraxs_search.records.task import DataSource, Task
from loraxs_search.tasks.kinds import KINDS
from loraxs_search.tasks.kinds.text_generation import TextGeneration
from loraxs_search.tasks.prepared import load_data

Write = Callable[[str, Sequence[Mapping[str, Any]]], str]  # rows to a file of this name; returns its path

SUMS = [
    {"q": "Two and two", "a": "The answer is 4", "n": "4.0"},
    {"q": "Six and six", "a": "The answer is 12", "n": "12.0"},
    {"q": "One and six", "a": "The answer is 7", "n": "7.0"},
]
NUMBER = {"reference": "{n}", "extract": {"after": "The answer is", "as": "number"}}
CHOICES = [
    {"q": "Sky", "choices": ["blue", "red"], "answer": 0},
    {"q": "Sum", "choices": ["1", "2", "33"], "answer": 2},
]


def writing_task(
    write: Write,
    rows: Sequence[Mapping[str, Any]] = SUMS,
    *,
    test: Sequence[Mapping[str, Any]] | None = None,
    metrics: tuple[str, ...] = ("exact_match",),
    report_metric: str | None = None,
    max_length: int = 64,
    **keys: Any,
) -> Task:
    """Return a task of writing on these rows, in all three splits.

    Args:
        test: Rows of the test split.
        keys: Of `task:`; None leaves one out.
    """
    default = {"prompt": "{q}?", "answer": " {a}", "generation": {"max_new_tokens": 20}}
    section = {name: value for name, value in {**default, **keys}.items() if value is not None}
    files = dict.fromkeys(("train", "validation", "test"), write("rows.jsonl", rows))
    if test is not None:
        files["test"] = write("test.jsonl", test)
    fields = TextGeneration.fields(TextGeneration.section.model_validate(section))
    fields |= {"metric": metrics[0], "direction": "maximize", "metrics": metrics, "max_length": max_length}
    fields |= {"report_metric": report_metric, "report_direction": None if report_metric is None else "minimize"}
    return Task("words", "text-generation", DataSource(data_files=files), **fields)


def broken_laws(task: Task) -> str:
    """Return what is wrong between the keys of a task's kind."""
    kind = KINDS.get(task.kind)
    fields = kind.section.model_fields.items()
    keys = {key: each.get_default(call_default_factory=True) for key, each in fields if not each.is_required()}
    faults = kind.laws(keys | {"labels": list(task.labels), **task.settings})
    return " ".join(f"`{'.'.join(path)}` {message}" for path, message in faults)


def choosing_task(write: Write, rows: Sequence[Mapping[str, Any]] = CHOICES, **settings: Any) -> Task:
    """Return a task of choosing on these rows, in all three splits."""
    keys = {"prompt": "{q}?", "options": "choices", "label": "answer", "normalize": "none"}
    keys = {name: value for name, value in {**keys, **settings}.items() if value is not None}
    source = DataSource(data_files=dict.fromkeys(("train", "validation", "test"), write("rows.jsonl", rows)))
    metrics = ("accuracy", "loss", "token_accuracy")
    return Task("choice", "multiple-choice", source, "", "", "accuracy", "maximize", metrics, settings=keys)


def labelled(answers: Sequence[Any], options: Sequence[str] = ("a", "b", "c")) -> list[dict[str, Any]]:
    """Return rows to choose in, with these labels."""
    return [{"q": f"q{i}", "choices": list(options), "answer": answer} for i, answer in enumerate(answers)]


def refused(task: Task) -> str:
    """Return why a task's rows are refused, with the hint."""
    with pytest.raises(TaskDataError) as error:
        load_data(task)
    return f"{error.value} {error.value.hint}"
