"""A split's tokens, made once and cached; what identifies a tokenizer; which tokens end what a base writes."""

from __future__ import annotations

import hashlib
import json
from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np
import pyarrow as pa
from transformers import GenerationConfig, PreTrainedTokenizerBase

from loraxs_search.errors import TaskDataError
from loraxs_search.home import ensure_dir
from loraxs_search.records.codec import to_json
from loraxs_search.records.task import Serving, Task
from loraxs_search.tasks.encoded import EncodedRows, Ragged
from loraxs_search.tasks.kinds import TaskKind
from loraxs_search.tasks.read import load_table, numbers_of, store_table
from loraxs_search.tasks.rows import Rows

_VERSION = "8"  # part of the cache key: raise when the same inputs give other tokens, or other counts of them


def cache_key(task: Task, identity: str, data_fingerprint: str, split: str) -> str:
    """Return what decides the tokens of a split, as a file name; `identity` is the tokenizer's."""
    parts = [_VERSION, data_fingerprint, split, identity, str(task.max_length)]
    parts += [task.kind, to_json(task.settings), *task.labels]
    return hashlib.sha256("\n".join(parts).encode()).hexdigest()[:40]


def tokenizer_identity(tokenizer: PreTrainedTokenizerBase) -> str:
    """Return a digest of what a tokenizer does: vocabulary, rules, special tokens, chat template; not of its place."""
    backend = getattr(tokenizer, "backend_tokenizer", None)
    if backend is None:
        state: dict[str, Any] = {"vocabulary": tokenizer.get_vocab()}
    else:
        state = json.loads(backend.to_str())
        state.pop("truncation", None)  # left behind by the last call
        state.pop("padding", None)
    state["special"] = {name: str(token) for name, token in tokenizer.special_tokens_map.items()}
    state["class"] = type(tokenizer).__name__
    state["inputs"] = sorted(tokenizer.model_input_names)
    state["chat_template"] = tokenizer.chat_template
    state["truncation_side"] = tokenizer.truncation_side
    return hashlib.sha256(json.dumps(state, sort_keys=True).encode()).hexdigest()


_BATCH = 1000  # rows that a tokenizer is given at once


def tokenize(
    kind: TaskKind, rows: Rows, tokenizer: PreTrainedTokenizerBase, *, key: str, cache_dir: Path
) -> EncodedRows:
    """Return the rows' tokens, from the cache when `key` is in it.

    Raises:
        TaskDataError: a row gives no token at all, or the kind refuses rows: of a thousand, all are named.
        HomeError: the cache cannot be written.
    """
    path = ensure_dir(cache_dir / "tokens") / f"{key}.arrow"
    table = load_table(path)
    if table is None or len(table) != len(rows):
        parts = [rows.take(range(i, min(i + _BATCH, len(rows)))) for i in range(0, len(rows), _BATCH)]
        table = pa.concat_tables([_table(kind.encode(part, tokenizer)) for part in parts])
        store_table(path, table)
    return check_tokens(_encoded(table, rows), kind, rows)


def _table(encoded: EncodedRows) -> pa.Table:
    ids = encoded.ids
    columns = {
        "input_ids": ids,
        "token_type_ids": None if encoded.types is None else Ragged(encoded.types, ids.starts, ids.lengths),
        "positions": encoded.positions,
        "targets": None if encoded.positions is None else encoded.targets,
        "extras": encoded.extras,
    }
    arrays = {name: _column(rows) for name, rows in columns.items() if rows is not None}
    if encoded.lost is not None:
        arrays["lost"] = pa.array(encoded.lost, pa.int32())
    return pa.table(arrays)


def _column(rows: Ragged) -> pa.Array:
    every = np.arange(len(rows))
    offsets = np.concatenate([[0], np.cumsum(rows.lengths, dtype=np.int64)])
    flat = rows.flat(every)
    values = flat if flat.dtype.kind == "f" else flat.astype(np.int32)
    return pa.LargeListArray.from_arrays(pa.array(offsets), pa.array(values))


def _encoded(table: pa.Table, rows: Rows) -> EncodedRows:
    """Return what a table holds; without positions, rows are learnt by their labels."""
    columns = {name: _read(table, name) for name in table.column_names if name != "lost"}
    types, positions = columns.get("token_type_ids"), columns.get("positions")
    return EncodedRows(
        ids=columns["input_ids"],
        types=None if types is None else types.values.astype(np.int8),
        positions=positions,
        targets=Ragged.single(rows.labels) if positions is None else columns.get("targets"),
        lost=numbers_of(table.column("lost").combine_chunks()) if "lost" in table.column_names else None,
        extras=columns.get("extras"),
    )


def _read(table: pa.Table, name: str) -> Ragged:
    column = table.column(name).combine_chunks()
    offsets = numbers_of(column.offsets)
    flat: Any = numbers_of(column.values)[offsets[0] : offsets[-1]]
    values = flat if flat.dtype.kind == "f" else flat.astype(np.int64 if name == "targets" else np.int32)
    return Ragged.joined(values, np.diff(offsets))


def check_tokens(encoded: EncodedRows, kind: TaskKind, rows: Rows) -> EncodedRows:
    """Return the tokens of rows.

    Raises:
        TaskDataError: a row gives no token at all.
    """
    empty = np.flatnonzero(encoded.lengths == 0)
    if len(empty):
        raise TaskDataError(
            f"Task {kind.task.name}: each row must give at least one token, but {rows.texts[empty[0]]!r} gives none"
            f" ({len(empty)} such rows).",
            hint="remove rows without text",
        )
    return encoded


def end_ids(tokenizer: PreTrainedTokenizerBase, settings: GenerationConfig | None) -> set[int]:
    """Return the tokens that end what a base writes: the tokenizer's, and those that the base generates with."""
    own = None if settings is None else settings.eos_token_id
    ends = own if isinstance(own, list) else [own]
    return {end for end in (tokenizer.eos_token_id, *ends) if end is not None}


def served(kind: TaskKind, tokenizer: PreTrainedTokenizerBase, settings: GenerationConfig | None) -> Serving | None:
    """Return how a kind's adapters are asked on a base, with what ends their answers; None if they write no text.

    Args:
        settings: How the base generates.
    """
    if (serving := kind.serving) is None:
        return None
    ends = sorted(end_ids(tokenizer, settings).union(kind.end_ids(tokenizer)))
    return replace(serving, ends=tuple(filter(None, tokenizer.convert_ids_to_tokens(ends))))
