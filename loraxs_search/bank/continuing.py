"""Prompts for several adapters, continued as one batch."""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass

import numpy as np
from transformers import PreTrainedTokenizerBase

from loraxs_search.bank.answering import write_all
from loraxs_search.bank.bank_rows import BankRows
from loraxs_search.errors import TrialDivergedError, UsageError, shortened
from loraxs_search.records import Task
from loraxs_search.tasks import kind_of
from loraxs_search.tasks.encoded import EncodedRows, Ragged
from loraxs_search.tasks.kinds import Sampling, Write, begin_ids, token_ids
from loraxs_search.tasks.rows import is_text


@dataclass(frozen=True)
class Wishes:
    """How a caller wants answers; None is left to each adapter's task."""

    max_new_tokens: int | None
    stop: tuple[str, ...] | None
    sampling: Sampling | None

    @classmethod
    def of(cls, max_new_tokens: int | None, stop: str | Sequence[str] | None, sampling: Sampling | None) -> Wishes:
        """Check what a caller gives.

        Raises:
            UsageError: a value is not what it should be.
        """
        if max_new_tokens is not None and (not isinstance(max_new_tokens, int) or max_new_tokens < 1):
            raise UsageError(f"`max_new_tokens` must be a whole number from 1, but got {max_new_tokens!r}.")
        texts = (stop,) if isinstance(stop, str) else None if stop is None else tuple(stop)
        if not all(isinstance(text, str) and text for text in texts or ()):
            raise UsageError(f"`stop` must be texts that are not empty, but got {stop!r}.")
        return cls(max_new_tokens, texts, sampling)


def continued(
    names: Sequence[str | None],
    prompts: Sequence[str],
    tasks: Mapping[str | None, Task | None],
    wishes: Wishes,
    bank: BankRows,
    tokenizer: PreTrainedTokenizerBase,
    on_text: Callable[[int, str], None] | None,
) -> list[str]:
    """Return what is written after each prompt; see `AdapterBank.generate`."""
    encoded = encoded_prompts(prompts, tokenizer)
    rows: dict[str | None, list[int]] = {}
    for row, name in enumerate(names):
        rows.setdefault(name, []).append(row)
    writes = {name: _write(encoded, own, tasks[name], wishes, tokenizer) for name, own in rows.items()}
    for write in writes.values():
        _check_length(write, tokenizer.model_max_length)

    def heard(name: str | None, number: int, piece: str) -> None:
        assert on_text is not None  # else nobody listens
        on_text(rows[name][number], piece)

    owners = {name: number for number, name in enumerate(tasks)}
    texts = [""] * len(prompts)
    for name, written in write_all(writes, owners, bank, tokenizer, heard if on_text else None).items():
        if not np.isfinite(written.margins).all():
            raise TrialDivergedError(f"Logits must be finite, but those of adapter {name!r} are not.")
        for row, text in zip(rows[name], written.texts, strict=True):
            texts[row] = text
    return texts


def encoded_prompts(prompts: Sequence[str], tokenizer: PreTrainedTokenizerBase) -> EncodedRows:
    """Return the tokens of prompts. One that has the tokenizer's beginning already, as a rendered chat has, keeps it.

    Raises:
        UsageError: a prompt is no text, or has no token.
    """
    if wrong := [row for row, prompt in enumerate(prompts) if not is_text(prompt)]:
        raise UsageError(
            f"A prompt must be text, but that of row {wrong[0] + 1} is {shortened(prompts[wrong[0]])}.",
            hint="give each prompt as a str; `predict` makes it of a row's columns",
        )
    begin = begin_ids(tokenizer)
    ids = [own if own[: len(begin)] == begin else begin + own for own in token_ids(prompts, tokenizer)]
    if blank := [row for row, own in enumerate(ids) if not own]:
        raise UsageError(f"A prompt must have a token, but that of row {blank[0] + 1} has none.")
    return EncodedRows(Ragged.of(ids, np.int32))


def _write(
    encoded: EncodedRows,
    rows: Sequence[int],
    task: Task | None,
    wishes: Wishes,
    tokenizer: PreTrainedTokenizerBase,
) -> Write:
    kind = None if task is None else kind_of(task)
    serving = kind and kind.serving
    limit = wishes.max_new_tokens or (serving and serving.max_new_tokens)
    if not limit:
        model = "the bare base" if task is None else f"task {task.name}, of kind {task.kind},"
        raise UsageError(
            f"`max_new_tokens` must say how long an answer may be, but got None, and {model} says nothing.",
            hint="give max_new_tokens=128, for example",
        )
    stop = wishes.stop if wishes.stop is not None else serving.stop if serving else ()
    ends = kind.end_ids(tokenizer) if kind else ()
    return Write(encoded, np.array(rows), limit, stop, wishes.sampling, ends)


def _check_length(write: Write, context: int) -> None:
    lengths = write.source.lengths[write.rows]
    if (longest := int(lengths.max())) + write.max_new_tokens > context:
        raise UsageError(
            f"A prompt and what may be written after it must be at most {context} tokens with this base, but row"
            f" {write.rows[lengths.argmax()] + 1} has {longest}, and max_new_tokens={write.max_new_tokens}.",
            hint="shorten the prompt, or lower max_new_tokens",
        )
