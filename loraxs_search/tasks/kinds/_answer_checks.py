"""What may be wrong with the answers that a model is to write: refused, or warned of. Light."""

from __future__ import annotations

from collections.abc import Iterator, Mapping, Sequence
from typing import Any

import numpy as np

from loraxs_search.errors import TaskDataError
from loraxs_search.records import Split, Task
from loraxs_search.tasks._source_location import SourceLocation
from loraxs_search.tasks.encoded import EncodedRows
from loraxs_search.tasks.kinds._answers import Extraction

_MOST_FORMULAS = 500


def check_answers(
    task: Task, answers: Sequence[str], columns: Sequence[Sequence[Any]], stop: Sequence[str], place: SourceLocation
) -> None:
    """Refuse answers that cannot be learnt or written.

    Args:
        columns: The columns that answers are made of.
    Raises:
        TaskDataError: a row has no answer, or a stop string is in all of them.
    """
    if blank := [row for row in range(len(answers)) if not any(str(column[row]).strip() for column in columns)]:
        more = len(blank) - 1
        raise TaskDataError(
            f"Task {task.name}: each row must have an answer, but {place.name} has rows without:"
            f" {place.row(blank[0])}{f' and {more:,} more row' + 's' * (more > 1) if more else ''}.",
            hint="write their answers, or remove the rows",
        )
    for text in stop:
        if all(text in answer for answer in answers):
            raise TaskDataError(
                f"Task {task.name}: a stop string must not be in the answers, but {text!r} is in every answer"
                f" of {place.name}: no answer could be written whole.",
                hint="take it out of `generation.stop`, or out of the answers",
            )


def stop_warnings(split: Split, answers: Sequence[str], stop: Sequence[str]) -> Iterator[str]:
    """Warn of stop strings that some answers hold."""
    for text in stop:
        if holding := sum(text in answer for answer in answers):
            yield (
                f"{holding:,} of {len(answers):,} {split} answers have the stop string {text!r} in them: what follows"
                " it could never be written; take it out of `generation.stop`, or out of the answers"
            )


def reference_warnings(
    split: Split, answers: Sequence[str], references: Sequence[str], extraction: Extraction
) -> Iterator[str]:
    """Warn of answers that would count as wrong if they were written word for word; of formulas, only the first ones
    are looked at, since math-verify is slow."""
    if extraction.form == "math":
        answers, references = answers[:_MOST_FORMULAS], references[:_MOST_FORMULAS]
    found = [extraction.find(answer) for answer in answers]
    lost = found.count("")
    wrong = int(np.count_nonzero(extraction.settled(found, references) != np.array(references))) - lost
    if lost:
        yield (
            f"`extract` finds nothing in {lost:,} of {len(answers):,} {split} answers: whoever writes them is counted"
            " as wrong; correct `extract` or these answers, or remove the rows"
        )
    if wrong:
        yield (
            f"{wrong:,} of {len(answers):,} {split} answers say something else than their `reference`: whoever writes"
            " them is counted as wrong; correct or remove the rows"
        )


def length_warnings(encoded: Mapping[Split, EncodedRows], max_new_tokens: int) -> Iterator[str]:
    """Warn of answers that are longer than what may be written."""
    for split, rows in encoded.items():
        counts = rows.counts(np.arange(len(rows)))
        if long := int(np.count_nonzero(counts > max_new_tokens)):
            yield (
                f"{long:,} of {len(rows):,} {split} answers have more than max_new_tokens={max_new_tokens} tokens, the"
                f" longest {counts.max()}: raise `generation.max_new_tokens`, or they cannot be written whole"
            )
