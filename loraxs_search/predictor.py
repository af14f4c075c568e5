"""An adapter on its base, loaded once, that answers texts."""

from __future__ import annotations

import logging
from collections.abc import Callable, Iterator, Mapping, Sequence
from functools import cached_property, partial
from pathlib import Path
from typing import TYPE_CHECKING, Any

import numpy as np

from loraxs_search.errors import UsageError, counted
from loraxs_search.manifest import verify
from loraxs_search.operating_points import with_points
from loraxs_search.records.adapter import Prediction
from loraxs_search.tasks.kinds import kind_of
from loraxs_search.tasks.rows import question_rows

if TYPE_CHECKING:
    import torch
    from pandas import DataFrame
    from peft import PeftModel
    from transformers import PreTrainedModel

    from loraxs_search.records.task import BaseModel
    from loraxs_search.tasks.encoded import RowSource
    from loraxs_search.tasks.kinds import SourceLocation

log = logging.getLogger(__name__)


class Predictor:
    """Answers texts with one adapter; call it as often as you like.

    The base is loaded at the first call, or by `load`. Not for several threads at once.

    Attributes:
        task: What the adapter was trained for.
        columns: The texts that a row must have, in their order: columns of a file.
        prompts: What a user is asked for who types a row: its columns, in words.
        labels: What it chooses from; empty where it answers with a number, a text, or one of the row's own options.
        operating_points: Where it is sure, as the test rows of its search showed.

    Args:
        folder: The adapter's.
        dtype: Precision of the base; by default the checkpoint's, or float32 where a CPU would emulate it.
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
        self.labels, self.operating_points = self.task.labels, self._manifest.operating_points
        self.columns, self.prompts = self._kind.question_columns, self._kind.question_texts

    def load(self) -> Predictor:
        """Load the base and the adapter, and return itself.

        Raises:
            BaseModelError: the base cannot be found, or it or its factors are not those the adapter was trained on.
        """
        _ = self._model
        return self

    def __call__(
        self,
        texts: str | Sequence[str | tuple[str, ...] | Mapping[str, Any]] | DataFrame,
        *,
        on_text: Callable[[int, str], None] | None = None,
    ) -> list[Prediction]:
        """Return the answer to each text, or to each row of texts or of a table, as `predict` does; to none, none."""
        rows, names = question_rows(texts, self.columns), self.columns
        if all(len(row) == 1 for row in rows):  # texts that are no rows are taken in turn
            if len(rows) % len(names):
                raise UsageError(
                    f"Task {self.task.name} takes {len(names)} texts a row, but got {counted(len(rows), 'text')}.",
                    hint=f"give them in turn: {' then '.join(self.prompts)}",
                )
            given = [text for (text,) in rows]
            rows = [tuple(given[i : i + len(names)]) for i in range(0, len(given), len(names))]
        if not rows:
            return []
        parts = self.in_parts(rows, None, len(rows), on_text=on_text)
        return [answer for part in parts for answer in part]

    def in_parts(
        self,
        rows: Sequence[tuple[Any, ...]],
        place: SourceLocation | None,
        size: int,
        *,
        on_text: Callable[[int, str], None] | None = None,
    ) -> Iterator[list[Prediction]]:
        """Yield the answers to rows, `size` at a time: all rows are checked before the first one is answered.

        Args:
            rows: Each with the texts of `columns`.
            place: The file that they are from; None if they are a whole request.
            on_text: Called with a row's number and each piece of its answer, row after row.
        Raises:
            TaskDataError: a row cannot be answered: it has nothing to read, no token, or an option that is too long.
        """
        from loraxs_search.engine.passes import ask

        kind, starts = self._kind, range(0, len(rows), size)
        if len(starts) > 1:  # what is wrong with any part is said at once
            kind.questions(rows, place)
        _, source = self._base
        parts = [range(start, min(start + size, len(rows))) for start in starts]
        encoded = [
            kind.encode_questions([rows[number] for number in part], source.tokenizer, place and place.take(part))
            for part in parts
        ]
        if num_cut := sum(questions.num_cut for questions in encoded):
            limit = self.task.max_length
            message = "%d of %d rows are longer than max_length=%d: their %s are lost"
            log.warning(message, num_cut, len(rows), limit, kind.cut_part)
        for part, questions in zip(parts, encoded, strict=True):
            shown = [kind.shown(rows[number]) for number in part]
            if on_text is None:
                found = ask(self._model, source, kind.predict(source, questions, shown))
                yield with_points(found, self.operating_points)
                continue
            found = list[Prediction]()
            for index, number in enumerate(part):  # one after the other
                asking = kind.predict(source, questions.take(np.array([index])), shown[index : index + 1])
                heard = partial(lambda on_text, number, _, piece: on_text(number, piece), on_text, number)
                found += ask(self._model, source, asking, on_text=heard)
            yield with_points(found, self.operating_points)

    def __repr__(self) -> str:
        hyper, base, size = self._manifest.hyperparameters, self._manifest.base_model.id, self._manifest.size
        return f"<Predictor {self.task.registered_name}: {hyper.method} on {base}, {size.stored_bytes:,} bytes>"

    @cached_property
    def _base(self) -> tuple[BaseModel, RowSource]:
        """The base, and what makes tokens of texts: rows that cannot be answered are refused before it is loaded."""
        from loraxs_search.base_model.locate import locate
        from loraxs_search.base_model.tokenizer import load_tokenizer
        from loraxs_search.tasks.encoded import RowSource

        base = locate(self._manifest.base_model)
        return base, RowSource(load_tokenizer(base))

    @cached_property
    def _model(self) -> PeftModel | PreTrainedModel:
        from loraxs_search.base_model.attention import use_padded_attention
        from loraxs_search.engine.layers import base_of
        from loraxs_search.methods.loading import load_adapter_folder

        model = load_adapter_folder(self.folder, base=self._base[0], dtype=self._dtype, device=self._device)
        use_padded_attention(base_of(model))
        return model
