"""What may be wrong with the answers that a model is to write: refused, or warned of. Light."""

from __future__ import annotations

from collections.abc import Iterator, Mapping, Sequence
from typing import TYPE_CHECKING, Any

import numpy as np

from loraxs_search.errors import TaskDataError, shortened
from loraxs_search.records import Split, Task
from loraxs_search.tasks._source_location import SourceLocation
from loraxs_search.tasks.encoded import EncodedRows
from loraxs_search.tasks.kinds._answers import MATCH_SECONDS, Extraction, SlowPatternError
from loraxs_search.tasks.rows import Rows

if TYPE_CHECKING:
    from transformers import PreTrainedTokenizerBase

_MOST_FORMULAS = 500
_OFTEN = 0.1  # a share of answers that cannot be chance or a few odd rows


def blank_rows(columns: Sequence[Sequence[Any]]) -> list[int]:
    """Return the rows in which each of the columns that a text is made of is blank."""
    return [row for row, values in enumerate(zip(*columns, strict=True)) if not any(str(it).strip() for it in values)]


def check_answers(
    task: Task, answers: Sequence[str], blank: Sequence[int], stop: Sequence[str], place: SourceLocation
) -> None:
    """Refuse answers that cannot be learnt or written.

    Args:
        blank: The rows without an answer.
    Raises:
        TaskDataError: a row has no answer, or a stop string is in all of them.
    """
    if blank:
        more = len(blank) - 1
        raise TaskDataError(
            f"Task {task.name}: each row must have an answer, but {place.name} has rows without:"
            f" {place.row(blank[0])}{f' and {more:,} more row' + 's' * (more > 1) if more else ''}.",
            hint="write their answers, or remove the rows",
        )
    for text in stop:
        if answers and all(text in answer for answer in answers):
            raise TaskDataError(
                f"Task {task.name}: a stop string must not be in the answers, but {text!r} is in every answer"
                f" of {place.name}: no answer could be written whole.",
                hint="take it out of `generation.stop`, or out of the answers",
            )


def as_written(answers: Sequence[str], stop: Sequence[str]) -> list[str]:
    """Return answers as a model writes them: without the stop string that ends them."""
    return [next((it.removesuffix(text) for text in stop if it.endswith(text)), it) for it in answers]


def check_end_tokens(
    task: Task, rows: Rows, answers: Sequence[Sequence[int]], end: int, tokenizer: PreTrainedTokenizerBase
) -> None:
    """Refuse answers that have the end token in their text: writing would end there.

    Args:
        answers: Their tokens, without the end token that is added to each.
    Raises:
        TaskDataError: some have it.
    """
    if ended := [row for row, ids in enumerate(answers) if end in ids]:
        token, place = tokenizer.convert_ids_to_tokens(end), rows.place or SourceLocation("the request")
        raise TaskDataError(
            f"Task {task.name}: an answer must not have the end token {token} in its text, but in {place.name} those of"
            f" {place.values(rows.texts, ended)} have it.",
            hint="take it out of `answer` and of the rows: it is added to each answer",
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
    try:
        found = [extraction.find(answer, patient=False) for answer in answers]
    except SlowPatternError as error:
        yield (
            f"`extract.regex` takes longer than {MATCH_SECONDS:g} seconds on the {split} answer"
            f" {shortened(error.text)}: whoever writes it is counted as wrong;"
            " write it without a repetition inside a repetition, such as (a+)+"
        )
        return
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


def share_warnings(metrics: Mapping[str, float], max_new_tokens: int, *, extracts: bool) -> Iterator[tuple[str, str]]:
    """Warn of written answers that often were cut, or have no answer in them; each with the metric that shows it.

    Args:
        extracts: Whether the task says where in a text its answer is.
    """
    if (cut := metrics.get("unended", 0.0)) >= _OFTEN:
        yield (
            "unended",
            f"{cut:.0%} of the answers were cut at max_new_tokens={max_new_tokens}: raise `generation.max_new_tokens`,"
            " or end answers by a text in `generation.stop`",
        )
    if (lost := metrics.get("unparsed", 0.0)) >= _OFTEN:
        yield (
            "unparsed",
            f"`extract` found nothing in {lost:.0%} of the answers, which count as wrong: let `extract` find what the"
            " model writes, or train longer"
            if extracts
            else f"{lost:.0%} of the answers are empty, and count as wrong: train longer, or give the model another"
            " `prompt`",
        )
