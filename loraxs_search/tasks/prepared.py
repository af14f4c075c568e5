"""A task's rows: read, checked, carved into splits and tokenised, with a fingerprint of their content.

Tokens are cached by the content that they are made of, whatever the names and times of its files.
"""

from __future__ import annotations

import contextlib
import errno
import hashlib
import json
import logging
import math
import re
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, replace
from itertools import groupby
from pathlib import Path
from types import MappingProxyType
from typing import TYPE_CHECKING, Any, cast

import numpy as np
import numpy.typing as npt
from safetensors import SafetensorError
from safetensors.numpy import load, save

from loraxs_search.errors import TaskDataError, first_line, unknown_name
from loraxs_search.home import disk_faults, ensure_dir, file_sha256, home, mark_used, user_path, write_atomic
from loraxs_search.records.codec import Split, to_json
from loraxs_search.records.task import DataReport, DataSource, Serving, SplitSource, Task
from loraxs_search.tasks.encoded import EncodedRows, Ragged, RowSource
from loraxs_search.tasks.files import READ_AS, file_format, label_names, read_columns
from loraxs_search.tasks.kinds import TaskKind, kind_of
from loraxs_search.tasks.report import data_report
from loraxs_search.tasks.rows import (
    SPLITS,
    Columns,
    MalformedFileError,
    Rows,
    SourceLocation,
    collected,
    composed,
    is_text,
    raise_joined,
    refuse,
    with_parents,
    with_parts,
)

if TYPE_CHECKING:
    import datasets
    from transformers import GenerationConfig, PreTrainedTokenizerBase


log = logging.getLogger(__name__)


def _wanted_columns(task: Task, slices: Sequence[str] = ()) -> list[str]:
    """Return the columns that a task names, and `slices`, each once; the one that may have label names is the last."""
    wanted = list(dict.fromkeys(kind_of(task).columns.values()))
    return [*(name for name in slices if name not in wanted), *wanted]


# ---- stored splits ---------------------------------------------------------------------------------------------------
@dataclass(frozen=True)
class _StoredSplit:
    """A split that is there, before it is read.

    Args:
        is_file: Whether it is the user's own file, whose faults can be corrected.
        label_names: Those that the data give to the ids of the label column; None without any.
        read: Given the columns that are wanted.
    """

    name: str
    is_file: bool
    label_names: list[str] | None
    read: Callable[[list[str]], Columns]


def _file_split(task: Task, split: Split, name: str) -> _StoredSplit:
    try:
        path = user_path(name)
        ending = file_format(path)
        if not path.is_file():
            raise ValueError("there is none")
        content = path.read_bytes()
    except MalformedFileError as error:
        raise TaskDataError(
            f"Task {task.name}: a data file {error.message}, but got {path}.", hint=error.hint
        ) from None
    except (ValueError, OSError) as error:
        reason = error.strerror if isinstance(error, OSError) else error
        raise TaskDataError(
            f"Task {task.name}: the {split} split must be a readable file, but {name[:300]} is not: {reason}.",
            hint="paths in `data_files` are relative to the file that declares the task",
        ) from error

    def read(wanted: list[str]) -> Columns:
        try:
            columns = read_columns(path, content, wanted)
        except MalformedFileError as error:
            raise TaskDataError(f"Task {task.name}: {path} {error.message}.", hint=error.hint) from error
        if columns.encoding:
            log.warning(READ_AS, path.name, columns.encoding)
        return columns

    names = None
    if ending == ".parquet":
        with contextlib.suppress(MalformedFileError):  # said when it is read
            names = read_columns(path, content, _wanted_columns(task)[-1:]).stored_names
    return _StoredSplit(str(path), True, names, read)


def _hub_split(
    task: Task, rows: datasets.Dataset, place: str, written: str, rename: Mapping[str, str] = MappingProxyType({})
) -> _StoredSplit:
    """Return a split that `datasets` has read.

    Args:
        written: Its name as a space has it, maybe with a slice: `train[:1000]`.
        rename: Its names to the task's.
    """
    import datasets

    match = _SLICE.fullmatch(written)
    if match and match["first"] is not None:
        first, end = int(match["first"] or 0), int(match["end"] or len(rows))
        rows = rows.select(range(min(first, len(rows)), min(end, len(rows))))
    renamed = rows.rename_columns({a: b for a, b in rename.items() if a in rows.column_names})

    feature = renamed.features.get(_wanted_columns(task)[-1])
    feature = getattr(feature, "feature", feature)  # of a list, that of its items
    names = list(feature.names) if isinstance(feature, datasets.ClassLabel) else None

    def read(wanted: list[str]) -> Columns:
        available = list(renamed.column_names)
        values = renamed.select_columns([name for name in with_parents(wanted) if name in available])[:]
        return replace(with_parts(Columns(available, values), wanted), stored_names=names)

    return _StoredSplit(f"{place}, split {_split_name(written)}", False, names, read)


def _find_splits(task: Task) -> dict[Split, _StoredSplit]:
    """Find a task's splits; those that it lacks are not in the result.

    Raises:
        TaskDataError: a file, a data set or a split is missing, or two splits number their labels differently.
        HomeError: the cache cannot be written.
    """
    source, who = task.source, f"Task {task.name}: "
    splits: dict[Split, _StoredSplit] = {}
    if source.data_files:
        place, available = "data_files", list[str](source.data_files)
    else:
        place = _place(source)
        loaded = _load_splits(source, who)
        available = list(loaded)
    declared: dict[Split, str] = dict(source.splits) or {name: name for name in SPLITS if name in available}
    declared.setdefault("train", "train")
    errors: list[TaskDataError] = []
    for split, written in declared.items():
        name = written if source.data_files else _split_name(written)
        if name not in available:
            raise TaskDataError(
                f"{who}{unknown_name(f'splits.{split}', name, available)} Place: {place}.",
                hint="map the source's names under `splits`; only train is required, the others are carved from it",
            )
        with collected(errors):
            if source.data_files:
                splits[split] = _file_split(task, split, source.data_files[cast("Split", name)])
            else:
                splits[split] = _hub_split(task, loaded[name], place, written)
    raise_joined(task, errors)
    for split, other in source.elsewhere.items():
        place, name = _place(other), _split_name(other.split)
        loaded = _load_splits(other, who)
        if name not in loaded:
            raise TaskDataError(
                f"{who}{unknown_name(f'data.{split}.split', name, list(loaded))} Place: {place}.",
                hint="name a split that the data set has",
            )
        splits[split] = _hub_split(task, loaded[name], place, other.split, other.rename)
    # No id may have different names in two splits, unless all names are the task's, which then decide.
    known = {composed(name).casefold() for name in task.labels}
    named = [(it.name, it.label_names) for it in splits.values() if task.labels and it.label_names is not None]
    for place, names in named[1:]:
        first, others = named[0]
        differing = next((id_ for id_, pair in enumerate(zip(others, names, strict=False)) if pair[0] != pair[1]), None)
        if differing is not None and not {composed(name).casefold() for name in (*others, *names)} <= known:
            raise TaskDataError(
                f"{who}an id must have one name in all splits, but {differing} is {others[differing]!r} in"
                f" {first} and {names[differing]!r} in {place}.",
                hint="give the task's `labels` the names of the data, which then decide, or number the splits alike",
            )
    return splits


def _no_rows(who: str, place: str) -> TaskDataError:
    return TaskDataError(
        f"{who}a split must have rows, but {place} gives none.",
        hint="check the file; a split that is left out of the space is carved from train",
    )


_CONFIGS = re.compile(r"pick one among the available configs: \[(?P<names>[^\]]*)\]")
_SLICE = re.compile(r"(?P<split>[^\[\]]+)(\[(?P<first>\d*):(?P<end>\d*)\])?")  # `train`, `train[:1000]`


def _load_splits(source: DataSource | SplitSource, who: str) -> datasets.DatasetDict:
    """Load a data set.

    Args:
        who: What messages begin with: the task that it is for.
    Raises:
        TaskDataError: it is missing, or has several configurations and none was named.
        HomeError: the cache cannot be written.
    """
    import datasets

    place, hidden = _place(source), datasets.are_progress_bars_disabled()
    cache_dir = ensure_dir(home() / "datasets")
    with disk_faults(cache_dir):
        try:
            datasets.disable_progress_bars()
            cache, files = _cache_for(str(source.hub), cache_dir), dict[str, list[str]]()
            loaded = datasets.load_dataset(source.hub, source.config, revision=source.revision, cache_dir=str(cache))
            if cache != cache_dir:  # a folder of this machine
                files = (
                    datasets.load_dataset_builder(source.hub, source.config, cache_dir=str(cache)).config.data_files
                    or {}
                )
        except Exception as error:
            # Parsers, decompressors, file systems and the hub's client each have their own family of errors.
            cause = error.__cause__ or error  # a full disk hides there
            if isinstance(cause, OSError) and cause.errno in (errno.ENOSPC, errno.EDQUOT, errno.EACCES, errno.EROFS):
                raise cause from error
            if isinstance(cause, StopIteration) or "corresponds to no data" in str(cause):
                raise _no_rows(who, place) from error
            if configs := _CONFIGS.search(str(cause)):
                names = configs["names"].replace("'", "")
                raise TaskDataError(
                    f"{who}{place} must be read in one of its configurations: {names}.",
                    hint="name it under `config`",
                ) from error
            raise TaskDataError(
                f"{who}{place} must be a readable data set, but: {first_line(cause)}",
                hint="check the id and the network, or name local files under `data_files`",
            ) from error
        finally:
            if not hidden:
                datasets.enable_progress_bars()
    # `datasets` reads all files of a folder by the label names of the first one.
    features = next(iter(loaded.values())).features
    named = {name: it.names for name, it in features.items() if isinstance(it, datasets.ClassLabel)}
    for file in (Path(file) for own in files.values() for file in own if named and file.endswith(".parquet")):
        for column, names in named.items():
            pairs = zip(names, label_names(file, column) or (), strict=False)
            if differing := [pair for pair in pairs if pair[0] != pair[1]]:
                raise TaskDataError(
                    f"{who}an id of {column} must have one name in all files, but the one of {differing[0][0]!r} is"
                    f" {differing[0][1]!r} in {file}.",
                    hint="number the labels of all files alike, or name the files under `data_files`",
                )
    return loaded


def _cache_for(hub: str, cache_dir: Path) -> Path:
    """Return where `datasets` may keep what it reads: apart for each content of a local folder.

    It knows a folder's files by path and time, which a copy that keeps times leaves as they were.
    """
    try:
        folder = user_path(hub)
        files = sorted(path for path in folder.rglob("*") if path.is_file()) if folder.is_dir() else []
    except ValueError:  # no folder can have that name
        files = []
    if not files:
        return cache_dir
    digest = hashlib.sha256()
    for path in files:
        digest.update(f"{path.relative_to(folder)}\0{file_sha256(path)}\n".encode("utf-8", "surrogatepass"))
    return cache_dir / "folders" / digest.hexdigest()[:32]


def _split_name(written: str) -> str:
    """Return the split that is sliced; where the slice cannot be read, such as `train[:10%]`, all that is written."""
    match = _SLICE.fullmatch(written)
    return match["split"] if match else written


def _place(source: DataSource | SplitSource) -> str:
    return f"{source.hub}{f' ({source.config})' if source.config else ''}"


_MAX_VALUES = 50  # of a slice column; with more it tells rows apart rather than groups

_CARVED_SHARE, _FEWEST = 0.1, 10  # of train, and so many rows that this share is a whole row
_CARVE_SEED = "loraxs-search carve 1"


def fingerprint(rows: dict[Split, Rows], splits: Sequence[Split] = SPLITS) -> str:
    """Return the sha256 of these splits' texts and labels: the same on every machine, whatever the files are called."""
    digest = hashlib.sha256()

    def add(column: Sequence[str]) -> None:
        encoded = [text.encode() for text in column]
        lengths = np.fromiter(map(len, encoded), dtype="<i8", count=len(encoded))
        digest.update(hashlib.sha256(lengths.tobytes() + b"".join(encoded)).digest())

    for name in splits:
        split = rows[name]
        digest.update(f"{name} {len(split)}\n".encode())
        add(split.texts)
        add(split.pairs or [])
        kind = split.labels.dtype.kind
        if kind in "UO":
            add(split.labels.tolist())
        else:
            digest.update(split.labels.astype("<i8" if kind == "i" else "<f4").tobytes())
        for extra, values in sorted(split.extras.items()):
            add([extra, *(value if isinstance(value, str) else json.dumps(value) for value in values)])
        if name == "train" and split.teacher is not None and split.labelled is not None:
            digest.update(split.teacher.astype("<f4").tobytes() + split.labelled.tobytes())
    return digest.hexdigest()


def fixed_subset(n: int, limit: int | None) -> npt.NDArray[np.int64]:
    """Return at most `limit` of n row numbers, ascending: always the same ones, drawn by a hash of the number."""
    if limit is None or limit >= n:
        return np.arange(n, dtype=np.int64)
    keys = [hashlib.blake2b(str(row).encode(), digest_size=8).digest() for row in range(n)]
    return np.array(sorted(sorted(range(n), key=keys.__getitem__)[:limit]), dtype=np.int64)


_MINUS = {"-1", "-1.0"}
_HIDDEN = {*_MINUS, "", "None", "nan"}  # what benchmarks store where they hide their labels


# ---- reading ---------------------------------------------------------------------------------------------------------
def _read(kind: TaskKind, name: Split, split: _StoredSplit, slices: Sequence[str]) -> Rows | None:
    """Return the rows of a split; None of one whose labels are hidden."""
    task, wanted = kind.task, kind.columns
    most = task.source.max_characters if name == "train" else None
    columns = split.read(_wanted_columns(task, slices))
    if not columns.available:
        raise _no_rows(f"Task {task.name}: ", split.name)
    needed = {key: column for key, column in wanted.items() if name == "train" or key not in kind.train_columns}
    named = [*needed.items(), *(("slices", column) for column in slices)]
    if missing := [(key, column) for key, column in named if column not in columns.available]:
        laws = " ".join(unknown_name(key, column, columns.available) for key, column in missing)
        section = missing[0][0].partition(".")[0]
        raise TaskDataError(
            f"Task {task.name}: {laws} Place: {split.name}.", hint=f"name the data's own columns under `{section}`"
        )
    place, column, names = SourceLocation(split.name, columns.lines), _wanted_columns(task)[-1], set(task.labels)
    values = columns.values[column]
    if not values:
        raise _no_rows(f"Task {task.name}: ", split.name)
    hidden = _HIDDEN - names - (_MINUS if _MINUS & names else set())  # a label of the task is none of them
    key = list(wanted)[-1].partition("{")[0]  # answers may be written from several columns
    answers = [columns.values[column] for own, column in wanted.items() if own.startswith(key)]
    if name == "test" and {str(value).strip() for own in answers for value in own} <= hidden:
        if split.is_file:
            hint = "write the answers, or leave the file out: then a tenth of train is set aside as test rows"
            refuse(task, f"`{column}` of test rows must have answers", values, range(len(values)), place, hint)
        return None
    if most is not None:  # rows of more characters, in all columns that the task reads, are left out
        read = [columns.values[name] for name in _wanted_columns(task)]
        kept = [i for i, row in enumerate(zip(*read, strict=True)) if sum(map(_characters, row)) <= most]
        if not kept:
            raise TaskDataError(
                f"Task {task.name}: some training row must have at most max_characters={most} characters, but none"
                " has.",
                hint="raise `max_characters`",
            )
        short = {name: [column[i] for i in kept] for name, column in columns.values.items()}
        lines = None if columns.lines is None else [columns.lines[i] for i in kept]
        columns, place = replace(columns, lines=lines, values=short), SourceLocation(split.name, lines)
    groups = {name: list(map(_group, columns.values[name])) for name in slices}
    for column, own in groups.items():
        law = f"`{column}` must be valid Unicode"
        refuse(task, law, own, [i for i, value in enumerate(own) if not is_text(value)], place)
    rows = replace(kind.read(columns, place), place=place, slices=groups)
    if name != "train" and rows.labelled is not None:
        law = f"`{column}` of {name} rows must have answers"
        refuse(task, law, values, np.flatnonzero(~rows.labelled).tolist(), place)
    if split.is_file:
        blank, hint = kind.blank_rows(columns, rows), "remove the rows, or write their text"
        refuse(task, "each row must have text", rows.texts, blank, place, hint)
    return rows


def _characters(value: object) -> int:
    return sum(map(_characters, value)) if isinstance(value, list) else len(value) if isinstance(value, str) else 0


def _group(value: object) -> str:
    """Return the value of a slice column as text; the empty one where there is none."""
    if isinstance(value, float):  # pandas writes whole numbers so where some are missing
        value = None if math.isnan(value) else int(value) if value.is_integer() else value
    if value is None:
        return ""
    return value if isinstance(value, str) else json.dumps(value, ensure_ascii=False, default=str)


# ---- carving ---------------------------------------------------------------------------------------------------------
def _carve(task: Task, rows: dict[Split, Rows], place: str) -> dict[Split, Rows]:
    """Take the missing splits out of train: test first, then validation, a tenth of train each or `carved_rows`.

    Of each split no more rows stay than the source says.

    A row goes where a hash of its text says, so equal texts stay on one side, and neither the order of rows nor any
    library's generator plays a part. A text of more rows than a split should have goes to train, if there are others.
    Rows without a label stay in train, but for those of a text that went to another split, which are left out.
    """
    train = rows["train"]
    labelled = np.ones(len(train), np.bool_) if train.labelled is None else train.labelled
    order: tuple[Split, ...] = ("test", "validation")
    missing = [name for name in order if name not in rows]
    if missing and labelled.sum() < _FEWEST:
        raise TaskDataError(
            f"Task {task.name}: train must have at least {_FEWEST} rows where {' and '.join(missing)} are carved from "
            f"it, a tenth each, but {place} gives {labelled.sum()}.",
            hint="give more rows, or the other splits as their own files",
        )
    keys = _keys(train)
    size = task.source.carved_rows or max(1, round(int(labelled.sum()) * _CARVED_SHARE))
    texts, counts = np.unique(keys[labelled], return_counts=True)
    dealt = np.argsort(counts > size, kind="stable")
    counted, first = np.cumsum(counts[dealt]), 0
    carved, place_of = dict(rows), np.full(len(texts), len(missing))
    for position in range(len(missing)):
        most = len(texts) - len(missing) + position  # each later split, and train, needs a text too
        end = min(max(int(np.searchsorted(counted, (position + 1) * size)), first) + 1, most)
        place_of[dealt[first:end]], first = position, end
    places = dict(zip(texts.tolist(), place_of.tolist(), strict=True))
    of_row = np.array([places.get(key, len(missing)) for key in keys.tolist()])
    for position, name in enumerate(missing):
        carved[name] = train.take(np.flatnonzero(labelled & (of_row == position)))
    kept = np.flatnonzero(of_row == len(missing))
    carved["train"] = train if len(kept) == len(train) else train.take(kept)
    for name in SPLITS:
        limit = task.source.train_rows if name == "train" else task.source.held_out_rows
        if limit is not None and len(carved[name]) > limit:
            carved[name] = carved[name].take(np.sort(np.argsort(_keys(carved[name]), kind="stable")[:limit]))
    for name in SPLITS:
        if not len(carved[name]):
            raise TaskDataError(
                f"Task {task.name}: the {name} split must have rows, but {place} (carved from it) gives none.",
                hint="check the file, or the splits of the data set: rows of one text stay together",
            )
    return {name: carved[name] for name in SPLITS}


def _keys(rows: Rows) -> npt.NDArray[np.str_]:
    """Return hashes of texts, in whose order rows are dealt."""
    pairs = rows.pairs if rows.pairs is not None else [""] * len(rows)
    contents = (f"{_CARVE_SEED}\0{text}\0{pair}".encode() for text, pair in zip(rows.texts, pairs, strict=True))
    return np.array([hashlib.blake2b(content, digest_size=8).hexdigest() for content in contents])


# ---- tokens ----------------------------------------------------------------------------------------------------------
_UNLIMITED = 10**9  # tokenizers without a limit of their own say 1e30
_TOKENS_VERSION = "10"  # part of the cache key: raise when the same inputs give other tokens, or other counts of them


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


def _tokenize(kind: TaskKind, rows: Rows, tokenizer: PreTrainedTokenizerBase, key: str) -> EncodedRows:
    """Return the rows' tokens, from the cache when `key` is in it.

    Raises:
        TaskDataError: a row gives no token at all, or the kind refuses rows: of a thousand, all are named.
        HomeError: the cache cannot be written.
    """
    path = ensure_dir(home() / "datasets" / "tokens") / f"{key}.safetensors"
    try:
        arrays = load(path.read_bytes())
        mark_used(path)
    except (OSError, SafetensorError):  # none, or damaged
        parts = [rows.take(range(i, min(i + _BATCH, len(rows)))) for i in range(0, len(rows), _BATCH)]
        made = [_arrays(kind.encode(part, tokenizer)) for part in parts]
        arrays = {name: np.concatenate([part[name] for part in made]) for name in made[0]}
        write_atomic(path, save(arrays))
    ragged: dict[str, Any] = {
        name: Ragged.joined(arrays[name], arrays[f"{name}.lengths"]) for name in _RAGGED if name in arrays
    }
    if "targets" not in ragged:  # rows are learnt by their labels
        ragged["targets"] = Ragged.single(rows.labels)
    encoded = EncodedRows(**ragged, types=arrays.get("types"), lost=arrays.get("lost"))
    kind.check_tokens(encoded, rows)
    return encoded


_RAGGED = ("ids", "positions", "targets", "extras")


def _arrays(encoded: EncodedRows) -> dict[str, npt.NDArray[Any]]:
    arrays = {name: it for name in ("types", "lost") if (it := getattr(encoded, name)) is not None}
    for name in _RAGGED:
        own: Ragged | None = getattr(encoded, name)
        if own is not None:
            arrays |= {name: own.flat(np.arange(len(own))), f"{name}.lengths": own.lengths}
    return arrays


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

    def fold(self, train: npt.NDArray[np.int64], held: npt.NDArray[np.int64]) -> PreparedTask:
        """Return a task of some of the train rows, whose validation and test rows are others of them."""
        rows: dict[Split, npt.NDArray[np.int64]] = {"train": train, "validation": held, "test": held}
        splits = {name: self.encoded("train").take(at) for name, at in rows.items()}
        own = {name: self.labels("train")[at] for name, at in rows.items()}
        return PreparedTask(self.kind, self.tokenizer, self.data_fingerprint, self.test_fingerprint, splits, own)

    def num_rows(self, split: Split) -> int:
        """Return the number of rows; for validation, of those that are scored."""
        return len(self._labels[split])

    @property
    def num_scored(self) -> dict[Split, int]:
        """The number of rows of each split, as `num_rows` counts them."""
        return {split: self.num_rows(split) for split in SPLITS}


def load_data(task: Task) -> dict[Split, Rows]:
    """Read a task's rows, check them and carve missing splits; no base model is needed. `fingerprint` identifies them.

    Missing validation and test splits are carved from train, a tenth each, the same rows always; a test split whose
    labels are all hidden (-1 or empty) counts as missing.

    Raises:
        TaskDataError: the data do not fit the declaration; the message lists all their faults.
        HomeError: the cache of `datasets` cannot be written.
    """
    kind = kind_of(task)
    stored = _find_splits(task)
    rows: dict[Split, Rows] = {}
    errors: dict[Split, list[TaskDataError]] = {name: [] for name in stored}
    gives_test: Split = "test" if "test" in stored else "train"
    for name in sorted(stored, key=("test", "train", "validation").index):
        with collected(errors[name]):
            read = _read(kind, name, stored[name], task.slices if name == gives_test else ())
            if read is None:  # its answers are hidden
                gives_test = "train"
            else:
                rows[name] = read
    raise_joined(task, [error for own in errors.values() for error in own])
    carved = _carve(task, rows, stored["train"].name)
    if kind.has_teacher_baseline:
        for name, own in carved.items():
            if name != "train" and own.teacher is not None and own.place is not None:
                unanswered = np.flatnonzero(np.isnan(own.teacher).any(-1)).tolist()
                law = f"the teacher, a baseline, must answer each {name} row"
                refuse(task, law, own.texts, unanswered, own.place)
    slices = carved["test"].slices
    if many := {name: count for name, own in slices.items() if (count := len(set(own))) > _MAX_VALUES}:
        got = " and ".join(f"`{name}` has {count:,}" for name, count in many.items())
        place = carved["test"].place
        raise TaskDataError(
            f"Task {task.name}: a column of `slices` must have at most {_MAX_VALUES} different values in the test rows,"
            f" but {got}{f' in {place.name}' if place else ''}.",
            hint="name columns of groups, such as a language or a source, or write a column that joins values",
        )
    return carved


def prepare(task: Task, tokenizer: PreTrainedTokenizerBase, *, has_bias: bool = True) -> PreparedTask:
    """Read a task's rows, check them, carve missing splits, and tokenise.

    See `load_data` for the rows. Tokens are cached per (data fingerprint, tokenizer, `max_length`).

    Args:
        has_bias: As `TaskKind.fitted` takes it.
    Raises:
        TaskDataError: the data do not fit the declaration, or rows do not fit the base or `max_length`.
        HomeError: the cache cannot be written.
    """
    kind, high = kind_of(task), tokenizer.model_max_length
    low = tokenizer.num_special_tokens_to_add(pair=task.text_pair is not None) + 1
    faults = [*kind.tokenizer_faults(tokenizer)]
    if not low <= task.max_length <= high:
        allowed = f"{low}..{high}" if high < _UNLIMITED else f"at least {low}"
        fault = f"`max_length` must be {allowed} with this base model, but got max_length={task.max_length}."
        faults.insert(0, (fault, "change `max_length`, or choose another base model"))
    raise_joined(task, [TaskDataError(f"Task {task.name}: {fault}", hint=hint) for fault, hint in faults])
    data, identity = load_data(task), _tokenizer_identity(tokenizer)
    splits, errors, content = dict[Split, EncodedRows](), list[TaskDataError](), fingerprint(data)
    for name, rows in data.items():
        parts = [_TOKENS_VERSION, content, name, identity, str(task.max_length), task.kind]
        parts += [to_json(task.settings), *task.labels]
        key = hashlib.sha256("\n".join(parts).encode()).hexdigest()[:40]
        with collected(errors):
            # Only train rows learn of a teacher.
            splits[name] = _tokenize(kind, rows if name == "train" else replace(rows, teacher=None), tokenizer, key)
    raise_joined(task, errors)
    labels = {name: rows.labels for name, rows in data.items()}
    scored = fixed_subset(len(data["validation"]), task.validation_rows)
    splits["validation"], labels["validation"] = splits["validation"].take(scored), labels["validation"][scored]
    scored_rows = {**data, "validation": data["validation"].take(scored)}
    for array in labels.values():
        array.flags.writeable = False
    kind = kind.fitted(labels["train"], has_bias=has_bias)
    report = data_report(kind, data, scored_rows, splits)
    slices = data["test"].slices
    return PreparedTask(kind, tokenizer, content, fingerprint(data, ("test",)), splits, labels, report, slices)


def first_rows(prepared: PreparedTask, count: int) -> list[dict[str, str]]:
    """Return the first train rows as the model sees them: `text` with special tokens, trained tokens in [[ ]], and the
    `answer` that is compared, as people read it."""
    encoded, labels, shown = prepared.encoded("train"), prepared.labels("train"), list[dict[str, str]]()
    for row in range(min(count, len(labels))):
        tokens, learnt = encoded.whole_row(row)
        parts = []
        for is_learnt, run in groupby(range(len(tokens)), key=learnt.__contains__):
            ids = [tokens[i] for i in run]
            part = prepared.tokenizer.decode(ids, skip_special_tokens=False, clean_up_tokenization_spaces=False)
            parts.append(f"[[{part}]]" if is_learnt else str(part))
        (label,) = labels[row : row + 1].tolist()
        shown.append({"text": "".join(parts), "answer": prepared.kind.show(label)})
    return shown
