"""Rows to predict, from a file or from standard input, and answers in the forms that programs read."""

from __future__ import annotations

import json
import sys
from collections.abc import Sequence
from dataclasses import asdict
from typing import TYPE_CHECKING, Any, Literal

from loraxs_search.cli._output import write_csv

if TYPE_CHECKING:
    from loraxs_search.records import Prediction
    from loraxs_search.tasks.question_file import QuestionRows

Row = tuple[Any, ...]
Form = Literal["text", "csv", "jsonl"]

STDIN = "-"
_LINE_ENDS = str.maketrans({end: f"\\u{ord(end):04x}" for end in "\x85\u2028\u2029"})  # to some readers of lines


def read_rows(source: str, columns: Sequence[str]) -> QuestionRows:
    """Return the rows of a file, or of standard input (`-`).

    Raises:
        UsageError: it cannot be read, or lacks a column.
    """
    from loraxs_search.tasks.question_file import read_questions, read_standard_input

    if source == STDIN:
        return read_standard_input(sys.stdin.buffer.read(), columns)
    return read_questions(source, columns)


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
    predictions: Sequence[Prediction], form: Form, *, header: bool, lines: Sequence[int] | None = None
) -> None:
    """Write answers to stdout as CSV or JSONL; lines and tabs inside a text survive.

    Args:
        lines: Where in its file each row stands, to join the answers to it.
    """
    places: list[dict[str, int]] = [{} for _ in predictions] if lines is None else [{"line": line} for line in lines]
    rows = [asdict(prediction) | place for prediction, place in zip(predictions, places, strict=True)]
    if form == "jsonl":
        for row in rows:
            print(json.dumps(row, ensure_ascii=False).translate(_LINE_ENDS))
        return
    if header:
        write_csv(["text", "label", "score", *([] if lines is None else ["line"])])
    for row in rows:
        score = None if row["score"] is None else f"{row['score']:.6g}"
        write_csv(list((row | {"score": score}).values()))
