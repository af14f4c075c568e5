"""Rows as token ids: made once, cached by `datasets`, held as flat arrays for fast batches."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass, replace
from pathlib import Path
from typing import TYPE_CHECKING, Any

import numpy as np
import numpy.typing as npt
import pyarrow as pa
from transformers import PreTrainedTokenizerBase

from loraxs_search.errors import TaskDataError
from loraxs_search.home import disk_faults, ensure_dir
from loraxs_search.records import Task
from loraxs_search.tasks._rows import Rows

if TYPE_CHECKING:
    import datasets


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
    with disk_faults(path):
        table = _mapped(task, rows, tokenizer, key, path, reuse=True)
        if table is None or len(table) != len(rows):  # cut short, by a power cut for instance
            table = _mapped(task, rows, tokenizer, key, path, reuse=False)
    assert table is not None
    return _store(table.data.table, task, rows.texts)


def token_store(
    task: Task, tokenizer: PreTrainedTokenizerBase, texts: Sequence[str], pairs: Sequence[str] | None
) -> TokenStore:
    """Return the tokens of a few texts, made as `tokenize` makes them but not cached.

    Raises:
        TaskDataError: a row gives no token at all.
    """
    encoded = _encode(task, tokenizer, texts, pairs)
    return _store(pa.table({name: pa.array(rows, pa.list_(pa.int32())) for name, rows in encoded.items()}), task, texts)


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


def _mapped(
    task: Task, rows: Rows, tokenizer: PreTrainedTokenizerBase, key: str, path: Path, *, reuse: bool
) -> datasets.Dataset | None:
    def encode(batch: dict[str, list[str]]) -> dict[str, list[list[int]]]:
        return _encode(task, tokenizer, batch["text"], batch.get("pair"))

    import datasets  # late: predicting needs none of it

    columns = {"text": rows.texts} if rows.pairs is None else {"text": rows.texts, "pair": rows.pairs}
    try:
        return datasets.Dataset.from_dict(columns).map(
            encode,
            batched=True,
            remove_columns=list(columns),
            cache_file_name=str(path),
            new_fingerprint=key,
            load_from_cache_file=reuse,
        )
    except (pa.ArrowInvalid, OSError):  # Arrow says either of a file that is cut short
        if not reuse:
            raise
        return None


def _store(table: pa.Table, task: Task, texts: Sequence[str]) -> TokenStore:
    ids, lengths = _flat(table, "input_ids", np.int32)
    empty = np.flatnonzero(lengths == 0)
    if len(empty):
        raise TaskDataError(
            f"Task {task.name}: each row must give at least one token, but {texts[empty[0]]!r} gives none"
            f" ({len(empty)} such rows).",
            hint="remove rows without text",
        )
    types = _flat(table, "token_type_ids", np.int8)[0] if "token_type_ids" in table.column_names else None
    starts = np.cumsum(lengths, dtype=np.int64) - lengths
    lengths.flags.writeable = False
    return TokenStore(ids=ids, types=types, starts=starts, lengths=lengths)


def _flat(table: pa.Table, name: str, dtype: type[Any]) -> tuple[npt.NDArray[Any], npt.NDArray[np.int32]]:
    column = table.column(name).combine_chunks()
    flat = column.flatten().to_numpy(zero_copy_only=False).astype(dtype)
    return flat, column.value_lengths().to_numpy(zero_copy_only=False).astype(np.int32)


def _scatter(values: npt.NDArray[Any], mask_BT: npt.NDArray[np.bool_], fill: int) -> npt.NDArray[np.int64]:
    out = np.full(mask_BT.shape, fill, dtype=np.int64)
    out[mask_BT] = values
    return out
