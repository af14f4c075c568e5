"""An adapter on its base, loaded once, that answers texts."""

from __future__ import annotations

import logging
import math
from bisect import bisect_left
from collections.abc import Callable, Iterator, Mapping, Sequence
from functools import cached_property, partial
from pathlib import Path
from typing import TYPE_CHECKING, Any

from loraxs_search.errors import UsageError, counted
from loraxs_search.records.adapter import Prediction
from loraxs_search.records.base import BaseModel
from loraxs_search.registry.manifest import verify
from loraxs_search.tasks.kinds import kind_of
from loraxs_search.tasks.questions import question_rows

if TYPE_CHECKING:
    import torch
    from pandas import DataFrame
    from peft import PeftModel
    from transformers import PreTrainedModel

    from loraxs_search.tasks.encoded import RowSource
    from loraxs_search.tasks.kinds import EncodedRows, SourceLocation

log = logging.getLogger(__name__)


class Predictor:
    """Answers texts with one adapter; call it as often as you like.

    The base is loaded at the first call, or by `load`. Not for several threads at once.

    Attributes:
        task: What the adapter was trained for.
        columns: The texts that a row must have, in their order: columns of a file.
        prompts: What a user is asked for who types a row: its columns, in words.
        labels: What it chooses from; empty where it answers with a number, a text, or one of the row's own options.

    Args:
        folder: The adapter's.
        dtype: Precision of the base; by default the checkpoint's.
        in_registry: Whether the folder is as the registry holds it, with other files beside the adapter's.
    Raises:
        IntegrityError: the folder is no adapter, or its files are not what its manifest says.
    """

    def __init__(
        self, folder: Path, *, dtype: torch.dtype | None = None, device: str = "cpu", in_registry: bool = False
    ) -> None:
        self.folder, self._dtype, self._device = folder, dtype, device
        self._manifest = verify(folder, in_registry=in_registry)
        self._kind = kind_of(self._manifest.task)
        self.task = self._manifest.task
        self.labels = self.task.labels
        self.columns, self.prompts = self._kind.question_columns, self._kind.question_texts

    def load(self) -> Predictor:
        """Load the base and the adapter, and return itself.

        Raises:
            BaseModelError: the base cannot be found or is not the one the adapter was trained on.
            FactorMismatchError: its factors differ from those the adapter was trained in.
        """
        _ = self._source, self._model
        return self

    def __call__(
        self,
        texts: str | Sequence[str | tuple[str, ...] | Mapping[str, Any]] | DataFrame,
        *,
        on_text: Callable[[int, str], None] | None = None,
        skip_empty: bool = False,
    ) -> list[Prediction]:
        """Return the answer to each text, or to each row of texts or of a table, as `predict` does; to none, none."""
        rows = self._rows(question_rows(texts, self.columns))
        if skip_empty:
            kept = self._filled(rows)
            heard = None if on_text is None else (lambda row, piece: on_text(kept[row], piece))
            answers = [self._kind.unanswered] * len(rows)
            for number, answer in zip(kept, self([rows[number] for number in kept], on_text=heard), strict=True):
                answers[number] = answer
            return answers
        if not rows:
            return []
        questions = self._encode(rows)
        self._warn_of_cut(questions.num_cut, len(rows))
        return self._answer(rows, questions, on_text)

    def in_parts(
        self, rows: Sequence[tuple[Any, ...]], place: SourceLocation, size: int, *, skip_empty: bool = False
    ) -> Iterator[list[Prediction]]:
        """Yield the answers to rows, `size` at a time: all rows are checked before the first one is answered.

        Args:
            rows: Each with the texts of `columns`.
            place: The file that they are from.
            skip_empty: Whether rows without text have no answer, instead of being refused.
        Raises:
            TaskDataError: a row cannot be answered: it has nothing to read, no token, or an option that is too long.
        """
        kept = self._filled(rows) if skip_empty else [*range(len(rows))]
        full = [rows[number] for number in kept]
        if full or not skip_empty:
            self._kind.questions(full, place.take(kept))
        starts = range(0, len(rows), size)
        parts = [kept[bisect_left(kept, start) : bisect_left(kept, start + size)] for start in starts]
        encoded = [
            self._encode([rows[number] for number in part], place.take(part)) if part else None for part in parts
        ]
        for start, part, questions in zip(starts, parts, encoded, strict=True):
            answers = [self._kind.unanswered] * len(rows[start : start + size])
            if questions is not None:
                found = self._answer([rows[number] for number in part], questions)
                for number, answer in zip(part, found, strict=True):
                    answers[number - start] = answer
            yield answers
        self._warn_of_cut(sum(questions.num_cut for questions in encoded if questions is not None), len(full))

    def __repr__(self) -> str:
        hyper, base, size = self._manifest.hyperparameters, self._manifest.base_model.id, self._manifest.size
        return f"<Predictor {self.task.registered_name}: {hyper.method} on {base}, {size.stored_bytes:,} bytes>"

    # ---- inside ------------------------------------------------------------------------------------------------------
    def _filled(self, rows: Sequence[tuple[Any, ...]]) -> list[int]:
        """Return the numbers of the rows that have a text."""
        return [
            number for number, row in enumerate(rows) if not (_is_empty(row) or _is_empty(self._kind.as_texts(row)))
        ]

    def _encode(self, rows: Sequence[tuple[Any, ...]], place: SourceLocation | None = None) -> EncodedRows:
        from loraxs_search.tasks.prepared import encode

        return encode(self._kind, self._source.tokenizer, rows, place)

    def _answer(
        self, rows: Sequence[tuple[Any, ...]], questions: EncodedRows, on_text: Callable[[int, str], None] | None = None
    ) -> list[Prediction]:
        import numpy as np

        from loraxs_search.trial.evaluate import ask

        model, source, shown = self._model, self._source, [self._kind.shown(row) for row in rows]
        if on_text is None:
            return ask(model, source, self._kind.predict(source, questions, shown))
        predictions = []
        for number, text in enumerate(shown):
            asking = self._kind.predict(source, questions.take(np.array([number])), [text])
            predictions += ask(model, source, asking, on_text=partial(_of_row, on_text, number))
        return predictions

    def _warn_of_cut(self, cut: int, num_rows: int) -> None:
        if cut:
            limit, part = self.task.max_length, self._kind.cut_part
            log.warning("%d of %d rows are longer than max_length=%d: their %s are lost", cut, num_rows, limit, part)

    @cached_property
    def _base(self) -> BaseModel:
        from loraxs_search.base_model.locate import locate

        return locate(self._manifest.base_model)

    @cached_property
    def _source(self) -> RowSource:
        from loraxs_search.base_model.tokenizer import load_tokenizer
        from loraxs_search.tasks.encoded import RowSource

        return RowSource(load_tokenizer(self._base))

    @cached_property
    def _model(self) -> PeftModel | PreTrainedModel:
        from loraxs_search.base_model.attention import use_padded_attention
        from loraxs_search.engine.layers import base_of
        from loraxs_search.methods.loading import load_adapter_folder

        model = load_adapter_folder(self.folder, base=self._base, dtype=self._dtype, device=self._device)
        use_padded_attention(base_of(model))
        return model

    def _rows(self, asked: Sequence[tuple[Any, ...]]) -> list[tuple[Any, ...]]:
        """Return rows of the texts that the task takes; those of one text each are taken in turn."""
        names, texts = self.columns, [row[0] for row in asked if len(row) == 1]
        if len(texts) < len(asked):
            return list(asked)
        if len(texts) % len(names):
            raise UsageError(
                f"Task {self.task.name} takes {len(names)} texts a row, but got {counted(len(texts), 'text')}.",
                hint=f"give them in turn: {' then '.join(self.prompts)}",
            )
        return [tuple(texts[i : i + len(names)]) for i in range(0, len(texts), len(names))]


def _of_row(on_text: Callable[[int, str], None], row: int, _: int, piece: str) -> None:
    on_text(row, piece)


def _is_empty(row: Sequence[Any]) -> bool:
    """Whether no value has a text; pandas writes NaN for a missing one."""
    return all(
        it is None or (isinstance(it, float) and math.isnan(it)) or (isinstance(it, str) and not it.strip())
        for it in row
    )
