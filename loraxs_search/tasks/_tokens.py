"""Rows as token ids: made once, cached, held as flat arrays for fast batches."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any

import numpy as np
import numpy.typing as npt
import pyarrow as pa
from transformers import PreTrainedTokenizerBase

from loraxs_search.errors import TaskDataError
from loraxs_search.home import ensure_dir
from loraxs_search.records import Task
from loraxs_search.tasks._arrow import load_table, numbers_of, store_table
from loraxs_search.tasks._rows import Rows

_BATCH = 1000  # rows that a tokenizer is given at once
_Ragged = tuple[npt.NDArray[np.int32], npt.NDArray[np.int32]]  # all rows' numbers one after the other; how many of each


@dataclass(frozen=True)
class TokenStore:
    """Token ids of many rows. Row i is `ids[starts[i] : starts[i] + lengths[i]]`.

    Args:
        ids: int32, all rows one after the other.
        types: int8 like `ids`, for tokenizers that number their segments.
        starts: int64 (N,).
        lengths: int32 (N,), read-only.
    """

    ids: npt.NDArray[np.int32]
    types: npt.NDArray[np.int8] | None
    starts: npt.NDArray[np.int64]
    lengths: npt.NDArray[np.int32]

    def take(self, indices: npt.NDArray[np.int64]) -> TokenStore:
        lengths = self.lengths[indices]
        lengths.flags.writeable = False
        return replace(self, starts=self.starts[indices], lengths=lengths)

    def padded(
        self, indices: npt.NDArray[np.integer], pad_id: int, side: str = "right"
    ) -> dict[str, npt.NDArray[np.int64]]:
        """Return model inputs (B, T), int64, padded on one side; T is the longest row's length."""
        lengths_B = self.lengths[indices]
        columns_BT = np.arange(int(lengths_B.max()))[None, :].repeat(len(lengths_B), axis=0)
        if side == "left":
            columns_BT -= lengths_B.max() - lengths_B[:, None]
        mask_BT = (columns_BT >= 0) & (columns_BT < lengths_B[:, None])
        where = (self.starts[indices][:, None] + columns_BT)[mask_BT]
        inputs = {"input_ids": _scatter(self.ids[where], mask_BT, pad_id), "attention_mask": mask_BT.astype(np.int64)}
        if self.types is not None:
            inputs["token_type_ids"] = _scatter(self.types[where], mask_BT, 0)
        return inputs


def tokenize(task: Task, rows: Rows, tokenizer: PreTrainedTokenizerBase, *, key: str, cache_dir: Path) -> TokenStore:
    """Return the rows' tokens, from the cache when `key` is in it.

    Raises:
        TaskDataError: a row gives no token at all.
        HomeError: the cache cannot be written.
    """
    path = ensure_dir(cache_dir / "tokens") / f"{key}.arrow"
    table = load_table(path)
    if table is None or len(table) != len(rows):
        table = _table(task, tokenizer, rows.texts, rows.pairs)
        store_table(path, table)
    return _store({name: _read(table, name) for name in table.column_names}, task, rows.texts)


def token_store(
    task: Task, tokenizer: PreTrainedTokenizerBase, texts: Sequence[str], pairs: Sequence[str] | None
) -> TokenStore:
    """Return the tokens of a few texts, made as `tokenize` makes them but not cached.

    Raises:
        TaskDataError: a row gives no token at all.
    """
    encoded = _encode(task, tokenizer, texts, pairs)
    return _store({name: _joined(rows) for name, rows in encoded.items()}, task, texts)


def _table(
    task: Task, tokenizer: PreTrainedTokenizerBase, texts: Sequence[str], pairs: Sequence[str] | None
) -> pa.Table:
    parts = []
    for start in range(0, len(texts), _BATCH):
        some = slice(start, start + _BATCH)
        encoded = _encode(task, tokenizer, texts[some], None if pairs is None else pairs[some])
        parts.append(pa.table({name: pa.array(rows, pa.large_list(pa.int32())) for name, rows in encoded.items()}))
    return pa.concat_tables(parts)


def _encode(
    task: Task, tokenizer: PreTrainedTokenizerBase, texts: Sequence[str], pairs: Sequence[str] | None
) -> dict[str, list[list[int]]]:
    encoding = tokenizer(
        list(texts),
        None if pairs is None else list(pairs),
        truncation=True,
        max_length=task.max_length,
        padding=False,
        return_attention_mask=False,
    )
    return {name: encoding[name] for name in ("input_ids", "token_type_ids") if name in encoding}


def _store(columns: Mapping[str, _Ragged], task: Task, texts: Sequence[str]) -> TokenStore:
    ids, lengths = columns["input_ids"]
    empty = np.flatnonzero(lengths == 0)
    if len(empty):
        raise TaskDataError(
            f"Task {task.name}: each row must give at least one token, but {texts[empty[0]]!r} gives none"
            f" ({len(empty)} such rows).",
            hint="remove rows without text",
        )
    types = columns["token_type_ids"][0].astype(np.int8) if "token_type_ids" in columns else None
    starts = np.cumsum(lengths, dtype=np.int64) - lengths
    lengths.flags.writeable = False
    return TokenStore(ids=ids, types=types, starts=starts, lengths=lengths)


def _read(table: pa.Table, name: str) -> _Ragged:
    column = table.column(name).combine_chunks()
    offsets = numbers_of(column.offsets)
    flat = numbers_of(column.values)[offsets[0] : offsets[-1]]
    return flat.astype(np.int32), np.diff(offsets).astype(np.int32)


def _joined(rows: Sequence[Sequence[int]]) -> _Ragged:
    return np.concatenate([np.asarray(row, np.int32) for row in rows]), np.array([*map(len, rows)], np.int32)


def _scatter(values: npt.NDArray[Any], mask_BT: npt.NDArray[np.bool_], fill: int) -> npt.NDArray[np.int64]:
    out = np.full(mask_BT.shape, fill, dtype=np.int64)
    out[mask_BT] = values
    return out
