"""Whole tables of rows, read to see what is in them: files, also where separator or encoding is not what the ending
says, and data sets of the hub."""

from __future__ import annotations

import csv
import io
import json
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

from loraxs_search.errors import TaskDataError, UsageError, unknown_name
from loraxs_search.home import disk_faults
from loraxs_search.paths import meant_file
from loraxs_search.tasks.files import decoded, file_format, read_columns, unpacked
from loraxs_search.tasks.read import rows_cache
from loraxs_search.tasks.rows import Columns, MalformedFileError
from loraxs_search.tasks.separated import SEPARATORS, header, likely_separator, read_csv
from loraxs_search.tasks.splits import load_splits

_MOST_OF_HUB = 100_000  # rows of a data set that are looked at


@dataclass(frozen=True)
class Table:
    """The rows of a file, or of a data set.

    Args:
        name: What people call it: a path or an id.
        columns: Each column's values, one a row; of a file with separated values all are text.
        lines: The line that each row begins in, or what a DataFrame's index calls it; None if rows have neither.
        path: The file that a task reads; empty of a data set.
        source: What a task's `data` says to read a data set; empty of a file.
        label_names: Of each column that gives names to its ids, these names; its values are names.
        is_changed: Whether its rows are no longer those of the file.
        is_separated: Whether it is a file of separated values.
        is_frame: Whether it is a DataFrame.
        remark: What is unusual about it.
    """

    name: str
    columns: dict[str, list[Any]]
    lines: list[Any] | None
    path: str = ""
    source: Mapping[str, Any] = field(default_factory=dict)
    label_names: Mapping[str, tuple[str, ...]] = field(default_factory=dict)
    is_changed: bool = False
    is_separated: bool = False
    is_frame: bool = False
    remark: str = ""

    @property
    def is_file(self) -> bool:
        """Whether it is the user's own file, which they can correct."""
        return not self.source

    @property
    def num_rows(self) -> int:
        return len(next(iter(self.columns.values()), []))

    def place(self, row: int) -> str:
        """Return where a row stands."""
        return f"row {row + 1}" if self.lines is None else f"{'row' if self.is_frame else 'line'} {self.lines[row]}"

    def plain_text(self) -> str:
        """Return the rows as lines of JSON, or separated by commas where the file has separated values."""
        rows = zip(*self.columns.values(), strict=True)
        if not self.is_separated:
            lines = (dict(zip(self.columns, row, strict=True)) for row in rows)
            return "".join(f"{json.dumps(line, ensure_ascii=False, default=str)}\n" for line in lines)
        text = io.StringIO(newline="")
        writer = csv.writer(text)
        writer.writerow(self.columns)
        writer.writerows(rows)
        return text.getvalue()


def read_table(path: Path, names: Sequence[str] = ()) -> Table:
    """Read all columns of a file.

    Args:
        names: Of the columns of separated values without a header.
    Raises:
        UsageError: there is no such file, its ending is unknown, or it has another number of columns.
        TaskDataError: it is not what it seems to be, or holds no row.
    """
    if not path.is_file():
        raise UsageError(
            f"{meant_file(path)}The data must be a file, but there is no {path}.",
            hint="name a .csv, .tsv, .jsonl, .json, .parquet or .conll file, or a data set of the hub: OWNER/NAME",
        )
    with disk_faults(path, "the data"):
        content = path.read_bytes()
    try:
        ending = file_format(path)
    except MalformedFileError as error:
        raise UsageError(f"A data file {error.message}, but got {path}.", hint=error.hint) from error
    try:
        if ending in (".csv", ".tsv"):
            table = _separated(path, unpacked(path, content), "\t" if ending == ".tsv" else ",", names)
        elif names:
            raise UsageError(
                f"`--columns` must go with a .csv or .tsv, but {path} names its columns.", hint="leave it out"
            )
        else:
            every = read_columns(path, content, [""]).available  # no column has that name
            read = read_columns(path, content, every)
            table = Table(str(path), read.values, read.lines, str(path))
    except MalformedFileError as error:
        raise TaskDataError(f"{path} {error.message}.", hint=error.hint) from error
    if not table.num_rows:
        raise TaskDataError(f"{path} must have a row at least, but has none.", hint="the first line names the columns")
    return table


def read_hub_table(hub: str, config: str | None, split: str | None) -> Table:
    """Read all columns of a data set's training rows, of at most 100,000 of them.

    Args:
        hub: An id, or a folder that is laid out as a data set.
        split: The one to train on; None is `train`, or the only one.
    Raises:
        TaskDataError: it is out of reach, cannot be read, or holds no row.
        UsageError: it has no such split.
    """
    import datasets

    loaded = load_splits(hub, config, None, rows_cache(None))
    names = list(loaded)
    chosen = split or ("train" if "train" in names or len(names) > 1 else names[0])
    if chosen not in names:
        raise UsageError(unknown_name("--split", chosen, names), hint=f"splits of {hub}")
    rows = loaded[chosen]
    looked_at = rows.select(range(min(len(rows), _MOST_OF_HUB)))
    columns: dict[str, list[Any]] = {name: list(values) for name, values in looked_at[:].items()}
    label_names: dict[str, tuple[str, ...]] = {}
    for name, feature in rows.features.items():
        if isinstance(feature, datasets.ClassLabel):
            label_names[name] = tuple(feature.names)
            columns[name] = [None if value is None or value < 0 else feature.names[value] for value in columns[name]]
        elif isinstance(feature, datasets.List) and isinstance(feature.feature, datasets.ClassLabel):
            columns[name] = [[feature.feature.names[tag] for tag in value] for value in columns[name]]
    if not len(rows):
        raise TaskDataError(f"{hub}, split {chosen} must have a row at least, but has none.", hint="name another one")
    held_out = {name: name for name in ("validation", "test") if name in names and name != chosen}
    splits = {"splits": {"train": chosen, **held_out}} if held_out or chosen != "train" else {}
    source = {"hub": hub, **({"config": config} if config else {}), **splits}
    remark = f"the first {_MOST_OF_HUB:,} of {len(rows):,} rows" if len(rows) > _MOST_OF_HUB else ""
    return Table(hub, columns, None, source=source, label_names=label_names, remark=remark)


def _separated(path: Path, content: bytes, usual: str, given: Sequence[str]) -> Table:
    """Read separated values; columns without a name, as pandas writes its index, are left out."""
    text, encoding = decoded(content)
    separator = likely_separator(text, usual)
    first = header(text, separator)
    if given and len(given) != len(first):
        raise UsageError(
            f"`--columns` must name each column of {path}, but its first line has {len(first)}.",
            hint=f"give so many names with commas; the line is {separator.join(first)[:80]!r}",
        )
    names = list(given) or [name for name in first if name]
    if not names and text.strip():
        raise MalformedFileError("must name its columns in its first line, but that is empty", hint="name them there")
    read = read_csv(text, separator, names, names=given) if names else Columns([], {}, [])
    remarks = ["with the given column names"] if given else []
    remarks += [f"{encoding} instead of UTF-8"] if encoding else []
    if separator != usual:
        remarks.append(f"{SEPARATORS[separator]} instead of {SEPARATORS[usual]}")
    return Table(
        str(path),
        read.values,
        read.lines,
        str(path),
        is_changed=bool(given),
        is_separated=True,
        remark=" and ".join(remarks),
    )
