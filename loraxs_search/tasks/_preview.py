"""The first rows of a task as the model sees them."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from itertools import groupby
from pathlib import Path
from typing import TYPE_CHECKING

import numpy as np

from loraxs_search.records import Split, Task
from loraxs_search.tasks.encoded import EncodedRows
from loraxs_search.tasks.kinds import TaskKind, checked
from loraxs_search.tasks.prepared import load_data
from loraxs_search.tasks.rows import Rows

if TYPE_CHECKING:
    from transformers import PreTrainedTokenizerBase

_COUNTED = 1_000  # rows that are tokenised for the counts: a large set takes minutes


@dataclass(frozen=True)
class PreviewPart:
    """A run of tokens as text, special tokens included."""

    text: str
    learnt: bool


@dataclass(frozen=True)
class PreviewRow:
    """A row as the model sees it.

    Args:
        parts: Its text, one part for each run of learnt or other tokens.
        answer: What an answer is held against, as people read it.
        cut: Whether tokens were left out to keep `max_length`; None where that is not known.
    """

    parts: tuple[PreviewPart, ...]
    answer: str
    num_tokens: int
    num_learnt: int
    cut: bool | None


@dataclass(frozen=True)
class Preview:
    """The first rows of a split, and counts of more of them.

    Args:
        num_rows: Rows of the whole split.
        num_counted: Rows, from the first one, that the following numbers are of.
        mean_learnt: Learnt tokens of a row; 0 where a head gives the answer.
        num_cut: Rows that were cut; None where that is not known.
    """

    task: str
    split: Split
    rows: tuple[PreviewRow, ...]
    num_rows: int
    num_counted: int
    mean_tokens: float
    most_tokens: int
    mean_learnt: float
    num_cut: int | None


def preview(
    task: Task,
    tokenizer: PreTrainedTokenizerBase,
    *,
    split: Split = "train",
    num_rows: int = 3,
    cache_dir: Path | None = None,
) -> Preview:
    """Read a task's rows, and tokenise the first ones as for training.

    Raises:
        TaskDataError: the data do not fit the declaration, or the tokenizer does not fit the task.
    """
    kind = checked(task)
    kind.check_tokenizer(tokenizer)
    rows = load_data(task, cache_dir).rows[split]
    counted = rows.take(range(min(len(rows), max(_COUNTED, num_rows))))
    encoded = kind.encode(counted, tokenizer)
    ids = [_row_tokens(encoded, row) for row in range(len(counted))]
    return Preview(
        task=task.name,
        split=split,
        rows=tuple(
            _row(kind, counted, encoded, row, tokenizer, *ids[row]) for row in range(min(num_rows, len(counted)))
        ),
        num_rows=len(rows),
        num_counted=len(counted),
        mean_tokens=float(np.mean([len(tokens) for tokens, _ in ids])),
        most_tokens=max(len(tokens) for tokens, _ in ids),
        mean_learnt=float(np.mean([len(learnt) for _, learnt in ids])),
        num_cut=None if encoded.cut is None else int(encoded.cut.sum()),
    )


def _row(
    kind: TaskKind,
    rows: Rows,
    encoded: EncodedRows,
    row: int,
    tokenizer: PreTrainedTokenizerBase,
    tokens: list[int],
    learnt: set[int],
) -> PreviewRow:
    runs = groupby(range(len(tokens)), key=learnt.__contains__)
    (label,) = rows.labels[row : row + 1].tolist()
    return PreviewRow(
        parts=tuple(PreviewPart(_text([tokens[i] for i in run], tokenizer), is_learnt) for is_learnt, run in runs),
        answer=kind.show(label),
        num_tokens=len(tokens),
        num_learnt=len(learnt),
        cut=None if encoded.cut is None else bool(encoded.cut[row]),
    )


def _row_tokens(encoded: EncodedRows, row: int) -> tuple[list[int], set[int]]:
    """Return the tokens of a row, and the places among them of those that are learnt.

    The last learnt token is no part of what the model reads: it is what is read of the last position.
    """
    tokens: list[int] = encoded.ids.row(row).tolist()
    if encoded.positions is None or encoded.targets is None:
        return tokens, set()
    places = [int(position) + 1 for position in encoded.positions.row(row)]
    targets: list[int] = encoded.targets.row(row).tolist()
    whole = [*tokens, targets[-1]] if places[-1:] == [len(tokens)] else tokens
    if [whole[place] for place in places] != targets:  # something else than the next token is learnt
        return tokens, set()
    return whole, set(places)


def _text(ids: Sequence[int], tokenizer: PreTrainedTokenizerBase) -> str:
    text = tokenizer.decode(list(ids), skip_special_tokens=False, clean_up_tokenization_spaces=False)
    return str(text)
