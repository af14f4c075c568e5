"""Rows to predict, from a file or from standard input, and answers in the forms that programs read."""

from __future__ import annotations

import csv
import json
import sys
from collections.abc import Iterable, Sequence
from dataclasses import asdict
from pathlib import Path
from typing import TYPE_CHECKING, Any, Literal

if TYPE_CHECKING:
    from loraxs_search.records import Prediction

Row = tuple[Any, ...]
Form = Literal["text", "csv", "jsonl"]

_STDIN = "-"


def read_rows(source: str, columns: Sequence[str]) -> list[Row]:
    """Return the rows of a file, or of standard input (`-`), which has a text in each line.

    Raises:
        UsageError: it cannot be read, or lacks a column.
    """
    from loraxs_search.tasks.question_file import read_lines, read_questions

    if source == _STDIN:
        return read_lines(sys.stdin.buffer.read(), "standard input", columns)
    return read_questions(Path(source).expanduser(), columns)


def write_predictions(predictions: Iterable[Prediction], form: Form, *, header: bool) -> None:
    """Write answers to stdout as CSV or JSONL; lines and tabs inside a text survive."""
    if form == "jsonl":
        for prediction in predictions:
            print(json.dumps(asdict(prediction), ensure_ascii=False))
        return
    writer = csv.writer(sys.stdout, lineterminator="\n")
    if header:
        writer.writerow(["text", "label", "score"])
    for prediction in predictions:
        score = "" if prediction.score is None else f"{prediction.score:.6g}"
        writer.writerow([prediction.text, "" if prediction.label is None else prediction.label, score])
