"""Worked examples before a prompt: what a base that has learnt nothing of a task is asked with."""

from __future__ import annotations

from collections import Counter
from collections.abc import Sequence
from dataclasses import dataclass
from operator import itemgetter
from typing import TYPE_CHECKING, Any

import numpy as np
import numpy.typing as npt

from loraxs_search.tasks.encoded import EncodedRows, Ragged
from loraxs_search.tasks.kinds._requests import Values
from loraxs_search.tasks.kinds._templates import Prompt, continued_ids, cut_prompt

if TYPE_CHECKING:
    from transformers import PreTrainedTokenizerBase

    from loraxs_search.tasks.batch import RowSource

_MOST_DRAWN = 10_000  # rows that examples are chosen from
_BETWEEN = "\n\n"  # after an example, where the prompt is a text

Ids = Sequence[int]


@dataclass(frozen=True)
class _Turns:
    """How prompts follow each other.

    Args:
        head: Tokens that only the first prompt begins with.
        between: Tokens between an answer, without its end token, and the next prompt, without its head.
        end: The token that ends an answer; None if there is none.
    """

    head: list[int]
    between: list[int]
    end: int | None

    @classmethod
    def of(cls, prompt: Prompt, tokenizer: PreTrainedTokenizerBase) -> _Turns:
        end = prompt.end_id(tokenizer)
        if prompt.roles:
            return cls(*prompt.turns(tokenizer), end)
        begin = tokenizer.bos_token_id
        return cls([] if begin is None else [begin], continued_ids([_BETWEEN], tokenizer)[0], end)

    def later(self, ids: list[int]) -> list[int]:
        """Return a prompt as it is when it is not the first."""
        return ids[len(self.head) :] if self.head and ids[: len(self.head)] == self.head else ids

    def answered(self, ids: list[int], answer: list[int]) -> list[int]:
        """Return a prompt, its answer, and what comes before the next prompt."""
        without_end = answer[:-1] if answer[-1] == self.end else answer
        return [*ids, *without_end, *self.between]


def with_examples(rows: EncodedRows, prompt: Prompt, data: RowSource, *, shots: int, room: int) -> EncodedRows:
    """Return rows with worked examples before each prompt: rows of train that are whole, always the same ones.

    They are joined in the tokens of training: of a text, with an empty line between them; of messages, as turns of one
    chat. What is longer than the base's context loses tokens from its left, but for the begin token.

    Args:
        rows: Of a split: prompts with answers that are learnt.
        room: Tokens that each prompt leaves free at least.
    """
    turns, limit = _Turns.of(prompt, data.tokenizer), data.tokenizer.model_max_length
    before = _before(turns, data, shots)
    ids, places = list[list[int]](), list[list[int]]()
    for number in range(len(rows)):
        asked, rest = _parts(rows, number)
        whole = [*before, *(turns.later(asked) if before else asked)]
        kept = cut_prompt(whole, limit - max(room, len(rest)), data.tokenizer)
        ids.append(kept + rest)
        places.append(list(range(len(kept) - 1, len(kept) + len(rest))))
    return EncodedRows(Ragged.of(ids, np.int32), positions=Ragged.of(places, np.int32), targets=rows.targets)


def _before(turns: _Turns, data: RowSource, shots: int) -> list[int]:
    train = data.encoded("train")
    assert train.targets is not None  # they are learnt
    whole = np.arange(len(train)) if train.cut is None else np.flatnonzero(~train.cut)
    before: list[int] = []
    for number in _drawn(whole, data.labels("train"), shots):
        asked, _ = _parts(train, number)
        before += turns.answered(turns.later(asked) if before else asked, train.targets.row(number).tolist())
    return before


def _drawn(rows: npt.NDArray[np.int64], answers: Values, count: int) -> list[int]:
    """Return some of these rows, at random but always the same; where answers repeat, each of them as often as may be.

    A file may be sorted by its answers: its first rows would have the base say the same each time.
    """
    seen, turns = Counter[Any](), list[tuple[int, int]]()
    for row in np.random.default_rng(0).permutation(rows)[:_MOST_DRAWN].tolist():
        turns.append((seen[answers[row]], row))
        seen[answers[row]] += 1
    return [row for _, row in sorted(turns, key=itemgetter(0))[:count]]


def _parts(rows: EncodedRows, number: int) -> tuple[list[int], list[int]]:
    """Return a row's prompt, and its answer without the last token."""
    assert rows.positions is not None
    ids, end = rows.ids.row(number).tolist(), int(rows.positions.row(number)[0]) + 1
    return ids[:end], ids[end:]
