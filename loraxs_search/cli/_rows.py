"""Rows to predict, from a file or from standard input, and answers in the forms that programs read."""

from __future__ import annotations

import json
import sys
from collections.abc import Mapping, Sequence
from dataclasses import asdict
from typing import TYPE_CHECKING, Any, Literal

from loraxs_search.cli._output import write_csv

if TYPE_CHECKING:
    from loraxs_search.records import Prediction
    from loraxs_search.tasks.questions import QuestionRows

Row = tuple[Any, ...]
Form = Literal["text", "csv", "jsonl"]

STDIN = "-"
_LINE_ENDS = str.maketrans({end: f"\\u{ord(end):04x}" for end in "\x85\u2028\u2029"})  # to some readers of lines


def check_source(source: str) -> None:
    """Refuse a file that is not there, before anything is loaded.

    Raises:
        UsageError: there is no such file.
    """
    from loraxs_search.tasks.questions import question_path

    if source != STDIN:
        question_path(source)


def read_rows(source: str, columns: Sequence[str], *, others: bool) -> QuestionRows:
    """Return the rows of a file, or of standard input (`-`).

    Args:
        others: Whether further columns are read too.
    Raises:
        UsageError: it cannot be read, or lacks a column.
    """
    from loraxs_search.tasks.questions import read_questions, read_standard_input

    if source == STDIN:
        return read_standard_input(sys.stdin.buffer.read(), columns, others=others)
    return read_questions(source, columns, others=others)


def type_row(prompts: Sequence[str]) -> Row | None:
    """Return a row that somebody types, column by column; None at its end. Empty lines are passed over."""
    row: list[str] = []
    while len(row) < len(prompts):
        if sys.stdin.isatty():
            print(f"{prompts[len(row)]}> ", end="", file=sys.stderr, flush=True)
        line = sys.stdin.readline()
        if not line:
            return None
        if line.strip():
            row.append(line.rstrip("\n"))
    return tuple(row)


def write_predictions(
    predictions: Sequence[Prediction], form: Form, *, header: bool, beside: Sequence[Mapping[str, Any]] = ()
) -> None:
    """Write answers to stdout as CSV or JSONL; lines and tabs inside a text survive.

    Args:
        beside: What else is written of each row, such as the line where it stands in its file.
    """
    rows: list[dict[str, Any]] = [asdict(prediction) for prediction in predictions]
    if form == "csv":
        rows = [{name: value for name, value in row.items() if name != "probabilities"} for row in rows]
    rows = [{**row, **other} for row, other in zip(rows, beside, strict=True)] if beside else rows
    if form == "jsonl":
        for row in rows:
            print(json.dumps(row, ensure_ascii=False, default=str).translate(_LINE_ENDS))
        return
    if header:
        write_csv(list(rows[0]))
    for row in rows:
        score = None if row["score"] is None else format(row["score"], ".9g" if row["label"] is None else ".6g")
        write_csv([_cell(value) for value in (row | {"score": score}).values()])


def beside(rows: QuestionRows, numbers: Sequence[int]) -> list[dict[str, Any]]:
    """Return what is written beside the answers to these rows: their lines, and the other columns of their file.

    A column that has the name of one that is written anyway is `file_NAME`, with `file_` again until no other has it.
    """
    names = {name: name for name in rows.others}
    for name in {"text", "label", "score", "probabilities", "line"} & names.keys():
        while names[name] == name or names[name] in rows.others:
            names[name] = f"file_{names[name]}"
    return [
        {"line": rows.place.number(number), **{shown: rows.others[name][number] for name, shown in names.items()}}
        for number in numbers
    ]


def _cell(value: Any) -> Any:
    return json.dumps(value, ensure_ascii=False, default=str) if isinstance(value, list | dict) else value
