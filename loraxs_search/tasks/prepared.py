"""A task ready to train on: rows read, checked, carved and tokenised; batches on demand."""

from __future__ import annotations

import contextlib
import hashlib
import json
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass, replace
from itertools import groupby
from pathlib import Path
from types import MappingProxyType
from typing import Any

import numpy as np
import numpy.typing as npt
import pyarrow as pa
from transformers import GenerationConfig, PreTrainedTokenizerBase

from loraxs_search.errors import BaseModelError, TaskDataError, UsageError
from loraxs_search.home import ensure_dir
from loraxs_search.records.codec import to_json
from loraxs_search.records.literals import Split
from loraxs_search.records.task import DataReport, Serving, Task
from loraxs_search.tasks.encoded import EncodedRows, Ragged, RowSource
from loraxs_search.tasks.kinds import TaskKind, checked
from loraxs_search.tasks.read import (
    SPLITS,
    fingerprint,
    fixed_subset,
    load_table,
    numbers_of,
    read_rows,
    rows_cache,
    store_table,
)
from loraxs_search.tasks.report import cached_report, with_answers
from loraxs_search.tasks.rows import Rows, SourceLocation, collected, raise_joined

_VERSION = "8"  # part of the cache key: raise when the same inputs give other tokens, or other counts of them


def _tokenizer_identity(tokenizer: PreTrainedTokenizerBase) -> str:
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
    columns = dict[str, Ragged]()
    for name in table.column_names:
        if name != "lost":
            column = table.column(name).combine_chunks()
            offsets = numbers_of(column.offsets)
            flat: Any = numbers_of(column.values)[offsets[0] : offsets[-1]]
            values = flat if flat.dtype.kind == "f" else flat.astype(np.int64 if name == "targets" else np.int32)
            columns[name] = Ragged.joined(values, np.diff(offsets))
    types, positions = columns.get("token_type_ids"), columns.get("positions")
    encoded = EncodedRows(
        ids=columns["input_ids"],
        types=None if types is None else types.values.astype(np.int8),
        positions=positions,
        # Without positions, rows are learnt by their labels.
        targets=Ragged.single(rows.labels) if positions is None else columns.get("targets"),
        lost=numbers_of(table.column("lost").combine_chunks()) if "lost" in table.column_names else None,
        extras=columns.get("extras"),
    )
    return _check_tokens(encoded, kind, rows)


def _table(encoded: EncodedRows) -> pa.Table:
    ids, arrays = encoded.ids, dict[str, pa.Array]()
    columns = {
        "input_ids": ids,
        "token_type_ids": None if encoded.types is None else Ragged(encoded.types, ids.starts, ids.lengths),
        "positions": encoded.positions,
        "targets": None if encoded.positions is None else encoded.targets,
        "extras": encoded.extras,
    }
    for name, rows in columns.items():
        if rows is not None:
            offsets = np.concatenate([[0], np.cumsum(rows.lengths, dtype=np.int64)])
            flat = rows.flat(np.arange(len(rows)))
            values = flat if flat.dtype.kind == "f" else flat.astype(np.int32)
            arrays[name] = pa.LargeListArray.from_arrays(pa.array(offsets), pa.array(values))
    if encoded.lost is not None:
        arrays["lost"] = pa.array(encoded.lost, pa.int32())
    return pa.table(arrays)


def _check_tokens(encoded: EncodedRows, kind: TaskKind, rows: Rows) -> EncodedRows:
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


class PreparedTask(RowSource):
    """The rows of a task as tokens. Read-only: safe to share between threads.

    Args:
        kind: What the task's kind means for it.
        data_fingerprint: sha256 over the texts and labels of all splits; `validation_rows` plays no part in it.
        test_fingerprint: sha256 over those of the test split.
        report: What the splits share and repeat.
        slices: What each test row has in the task's slice columns.
    """

    def __init__(
        self,
        kind: TaskKind,
        tokenizer: PreTrainedTokenizerBase,
        data_fingerprint: str,
        test_fingerprint: str,
        splits: Mapping[Split, EncodedRows],
        labels: Mapping[Split, npt.NDArray[Any]],
        report: DataReport | None = None,
        slices: Mapping[str, list[str]] = MappingProxyType({}),
    ) -> None:
        super().__init__(tokenizer, splits, labels)
        self.kind, self.task = kind, kind.task
        self.data_fingerprint = data_fingerprint
        self.report = report or DataReport()
        self.test_fingerprint, self.slices = test_fingerprint, slices

    def num_rows(self, split: Split) -> int:
        """Return the number of rows; for validation, of those that are scored."""
        return len(self._labels[split])

    @property
    def num_scored(self) -> dict[Split, int]:
        """The number of rows of each split, as `num_rows` counts them."""
        return {split: self.num_rows(split) for split in SPLITS}


@dataclass(frozen=True)
class _TaskData:
    """A task's rows, checked and carved, before any tokenizer has seen them.

    Args:
        rows: Of each split, all three.
        fingerprint: sha256 over the texts and labels of all splits.
        report: What the splits share and repeat.
    """

    rows: Mapping[Split, Rows]
    fingerprint: str
    report: DataReport

    @property
    def test_fingerprint(self) -> str:
        """sha256 over the texts and labels of the test split."""
        return fingerprint(dict(self.rows), ("test",))


def load_data(task: Task, cache_dir: Path | None = None) -> _TaskData:
    """Read a task's rows, check them and carve missing splits; no base model is needed.

    Missing validation and test splits are carved from train, a tenth each, the same rows always; a test split whose
    labels are all hidden (-1 or empty) counts as missing. The rows of a file are cached by its content.

    Args:
        cache_dir: Where rows are cached; None means home()/"datasets".
    Raises:
        TaskDataError: the data do not fit the declaration; the message lists all their faults.
        HomeError: the cache cannot be written.
    """
    cache = rows_cache(cache_dir)
    rows = read_rows(checked(task), cache)
    digest = fingerprint(rows)
    return _TaskData(rows, digest, cached_report(rows, digest, cache))


def prepare(
    task: Task, tokenizer: PreTrainedTokenizerBase, *, has_bias: bool = True, cache_dir: Path | None = None
) -> PreparedTask:
    """Read a task's rows, check them, carve missing splits, and tokenise.

    See `load_data` for the rows. Tokens are cached per (data fingerprint, tokenizer, `max_length`).

    Args:
        has_bias: As `TaskKind.fitted` takes it.
        cache_dir: Where rows and tokens are cached; None means home()/"datasets".
    Raises:
        TaskDataError: the data do not fit the declaration, or rows do not fit the base or `max_length`.
        HomeError: the cache cannot be written.
    """
    kind = checked(task)
    kind.check_tokenizer(tokenizer)
    cache, data, identity = rows_cache(cache_dir), load_data(task, cache_dir), _tokenizer_identity(tokenizer)
    splits, errors = dict[Split, EncodedRows](), list[TaskDataError]()
    for name, rows in data.rows.items():
        parts = [_VERSION, data.fingerprint, name, identity, str(task.max_length), task.kind]
        parts += [to_json(task.settings), *task.labels]
        key = hashlib.sha256("\n".join(parts).encode()).hexdigest()[:40]
        with collected(errors):
            splits[name] = tokenize(kind, rows, tokenizer, key=key, cache_dir=cache)
    raise_joined(task, errors)
    labels = {name: rows.labels for name, rows in data.rows.items()}
    scored = fixed_subset(len(data.rows["validation"]), task.validation_rows)
    splits["validation"], labels["validation"] = splits["validation"].take(scored), labels["validation"][scored]
    scored_rows = {**data.rows, "validation": data.rows["validation"].take(scored)}
    for array in labels.values():
        array.flags.writeable = False
    kind = kind.fitted(labels["train"], has_bias=has_bias)
    report = with_answers(
        replace(data.report, warnings=tuple(kind.warnings(data.rows, splits))),
        kind,
        scored_rows,
        splits,
        identity=f"{data.fingerprint} {identity}",
        cache_dir=cache,
    )
    slices = data.rows["test"].slices
    return PreparedTask(kind, tokenizer, data.fingerprint, data.test_fingerprint, splits, labels, report, slices)


def encode(
    kind: TaskKind,
    tokenizer: PreTrainedTokenizerBase,
    questions: Sequence[tuple[str, ...]],
    place: SourceLocation | None = None,
) -> EncodedRows:
    """Return the tokens of questions that are no part of the data, made as in training but not cached.

    Args:
        place: Where they stand, for messages; None if they are a whole request.
    Raises:
        TaskDataError: there is no row, one has nothing to read or gives no token, or the task takes another number of
            texts per row.
    """
    rows = kind.questions(questions, place)
    return _check_tokens(kind.encode(rows, tokenizer), kind, rows)


@contextlib.contextmanager
def joining_row_faults(task: Task) -> Iterator[None]:
    """Add the faults of a task's rows to what the block raises of base or space: a user sees them at once."""
    try:
        yield
    except (BaseModelError, UsageError) as error:
        try:
            load_data(task)
        except TaskDataError as other:
            hints = [hint for hint in (error.hint, other.hint) if hint]
            raise type(error)(f"{error}\n{other}", hint="; ".join(hints)) from error
        raise


@dataclass(frozen=True)
class ShownRow:
    """A train row as the model sees it.

    Args:
        text: Special tokens included; trained tokens stand in [[ ]].
        answer: What an answer is compared with, as people read it.
    """

    text: str
    answer: str


def first_rows(prepared: PreparedTask, count: int) -> list[ShownRow]:
    """Return the first train rows, as people read them."""
    encoded, labels, shown = prepared.encoded("train"), prepared.labels("train"), list[ShownRow]()
    for row in range(min(count, len(labels))):
        tokens, learnt = encoded.whole_row(row)
        parts = []
        for is_learnt, run in groupby(range(len(tokens)), key=learnt.__contains__):
            ids = [tokens[i] for i in run]
            part = prepared.tokenizer.decode(ids, skip_special_tokens=False, clean_up_tokenization_spaces=False)
            parts.append(f"[[{part}]]" if is_learnt else str(part))
        (label,) = labels[row : row + 1].tolist()
        shown.append(ShownRow("".join(parts), prepared.kind.show(label)))
    return shown
