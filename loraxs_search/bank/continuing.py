"""Prompts for several adapters, continued as one batch."""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass

import numpy as np
from transformers import PreTrainedTokenizerBase

from loraxs_search.bank.answering import write_all
from loraxs_search.bank.bank_rows import BankRows
from loraxs_search.errors import TrialDivergedError, UsageError
from loraxs_search.records import Task
from loraxs_search.tasks import kind_of
from loraxs_search.tasks.encoded import EncodedRows, Ragged
from loraxs_search.tasks.kinds import Prompt, Sampling, Write


@dataclass(frozen=True)
class Wishes:
    """How a caller wants answers; None is left to each adapter's task."""

    max_new_tokens: int | None
    stop: tuple[str, ...] | None
    sampling: Sampling | None


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
    encoded = _encoded(prompts, tokenizer)
    rows: dict[str | None, list[int]] = {}
    for row, name in enumerate(names):
        rows.setdefault(name, []).append(row)
    writes = {name: _write(encoded, own, tasks[name], wishes) for name, own in rows.items()}

    def heard(name: str | None, number: int, piece: str) -> None:
        assert on_text is not None  # else nobody listens
        on_text(rows[name][number], piece)

    owners = {name: own[0] for name, own in rows.items()}
    texts = [""] * len(prompts)
    for name, written in write_all(writes, owners, bank, tokenizer, heard if on_text else None).items():
        if not np.isfinite(written.margins).all():
            raise TrialDivergedError(f"Logits must be finite, but those of adapter {name!r} are not.")
        for row, text in zip(rows[name], written.texts, strict=True):
            texts[row] = text
    return texts


def _encoded(prompts: Sequence[str], tokenizer: PreTrainedTokenizerBase) -> EncodedRows:
    ids = Prompt.of({"prompt": "{text}"}).ids([(text,) for text in prompts], tokenizer)
    if blank := [row for row, own in enumerate(ids) if not own]:
        raise UsageError(f"A prompt must have a token, but that of row {blank[0] + 1} has none.")
    return EncodedRows(Ragged.of(ids, np.int32))


def _write(encoded: EncodedRows, rows: Sequence[int], task: Task | None, wishes: Wishes) -> Write:
    serving = None if task is None else kind_of(task).serving
    limit = wishes.max_new_tokens or (serving and serving.max_new_tokens)
    if not limit or limit < 1:
        whose = "the bare base" if task is None else f"task {task.name}"
        raise UsageError(
            f"`max_new_tokens` must say how long an answer may be, at least 1, but got {wishes.max_new_tokens}, and"
            f" {whose} says nothing.",
            hint="give max_new_tokens=128, for example",
        )
    stop = wishes.stop if wishes.stop is not None else serving.stop if serving else ()
    return Write(encoded, np.array(rows), limit, stop, wishes.sampling)
