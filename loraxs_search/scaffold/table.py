"""A whole table of rows: a file, also with another separator or encoding than usual, or a data set of the hub."""

from __future__ import annotations

import csv
import io
import json
import re
from collections import Counter
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field, replace
from functools import cached_property
from pathlib import Path
from typing import Any

from loraxs_search.errors import TaskDataError, UsageError, unknown_name
from loraxs_search.home import disk_faults, meant_file
from loraxs_search.tasks.files import SEPARATORS, file_format, read_columns
from loraxs_search.tasks.kinds import finite_number, items_of
from loraxs_search.tasks.prepared import load_splits
from loraxs_search.tasks.rows import MalformedFileError, composed, is_text

_MOST_OF_HUB = 100_000  # rows of a data set that are looked at
_MAX_LISTED = 5
_MAX_CLASSES = 50  # more need many rows each
_MANY_ROWS = 20  # so many rows for each different value, and they are classes
_DATE = re.compile(r"\d{1,4}[-./]\d{1,2}[-./]\d{1,4}([T ]\d{1,2}:\d{2}.*)?")
_PADDED = re.compile(r"[-+]?0\d")  # a name, such as a postcode
NEVER_MEANT = ("nan", "null", "#n/a", "<na>", "nat")  # what programs write for a value that is missing


def is_number(text: str) -> bool:
    """Whether a text is a finite number without zeros before it."""
    return finite_number(text) is not None and not _PADDED.match(text)


class Column:
    """The values of a column, one a row, and what they look like."""

    def __init__(self, values: list[Any]) -> None:
        self.values = values

    @cached_property
    def texts(self) -> list[str]:
        """The values as texts that look alike, without the space around them; nothing for None."""
        return ["" if value is None else composed(str(value).strip()) for value in self.values]

    @cached_property
    def counts(self) -> Counter[str]:
        """How many rows have each text; empty ones do not count."""
        return Counter(filter(None, self.texts))

    @cached_property
    def lists(self) -> list[list[Any]]:
        """The items of each value, where all are lists, maybe in JSON's form as a .csv has them; else nothing."""
        items = list(map(items_of, self.values))
        return items if all(isinstance(own, list) for own in items) else []

    @cached_property
    def is_text(self) -> bool:
        """Whether the values are texts, neither numbers nor dates nor lists; also of an empty column."""
        filled = [value for value in self.values if value is not None and str(value).strip()]
        if not all(isinstance(value, str) for value in filled):
            return False
        lists = all(isinstance(own, list) and len(own) > 1 for own in map(items_of, filled))
        return not filled or not (lists or self.is_date or all(finite_number(value) is not None for value in filled))

    @property
    def is_date(self) -> bool:
        return bool(self.counts) and all(map(_DATE.fullmatch, self.counts))

    @property
    def has_choices(self) -> bool:
        """Whether each value is a list of several items."""
        return bool(self.lists) and all(len(own) > 1 for own in self.lists)

    @property
    def has_few(self) -> bool:
        """Whether the values are few enough to be classes."""
        number, rows = len(self.counts), len(self.values)
        return number <= min(_MAX_CLASSES, max(2, rows // 4)) or number * _MANY_ROWS <= rows

    @cached_property
    def is_mostly_numbers(self) -> bool:
        """Whether values are numbers, but for so few that these are mistakes, and for those that are missing."""
        given = {text: count for text, count in self.counts.items() if text.lower() not in NEVER_MEANT}
        odd = sum(count for text, count in given.items() if not is_number(text))
        return odd < len(given) and odd <= (max(1, len(self.values) // 100) if len(self.values) >= _MANY_ROWS else 0)


@dataclass(frozen=True)
class Table:
    """The rows of a file, or of a data set.

    Args:
        name: What people call it: a path or an id.
        columns: Of a file with separated values, all values are text.
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
    columns: dict[str, Column]
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
        return next((len(column.values) for column in self.columns.values()), 0)

    def places(self, rows: Sequence[int]) -> str:
        """Return where rows stand, of many the first ones."""
        word = "row" if self.lines is None or self.is_frame else "line"
        shown = (f"{word} {row + 1 if self.lines is None else self.lines[row]}" for row in rows[:_MAX_LISTED])
        return ", ".join(shown) + (f" and {len(rows) - _MAX_LISTED} more" if len(rows) > _MAX_LISTED else "")

    def places_of(self, column: str, text: str) -> str:
        """Return where the rows stand that have a text in a column."""
        return self.places([row for row, own in enumerate(self.columns[column].texts) if own == text])

    def plain_text(self) -> str:
        """Return the rows as lines of JSON, or separated by commas where the file has separated values."""
        rows = zip(*(column.values for column in self.columns.values()), strict=True)
        if not self.is_separated:
            lines = (dict(zip(self.columns, row, strict=True)) for row in rows)
            return "".join(f"{json.dumps(line, ensure_ascii=False, default=str)}\n" for line in lines)
        text = io.StringIO(newline="")
        csv.writer(text).writerows([list(self.columns), *rows])
        return text.getvalue()


def read_table(path: Path, names: Sequence[str] = ()) -> Table:
    """Read all columns of a file; of separated values, columns without a name, as pandas' index, are left out.

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
    is_separated = ending in (".csv", ".tsv")
    if names and not is_separated:
        raise UsageError(f"`--columns` must go with a .csv or .tsv, but {path} names its columns.", hint="leave it out")
    remarks = ["with the given column names"] if names else []
    try:
        seen = read_columns(path, content, [])
        first = seen.available
        if names and len(names) != len(first):
            raise UsageError(
                f"`--columns` must name each column of {path}, but its first line has {len(first)}.",
                hint=f"give so many names with commas; the line is {seen.separator.join(first)[:80]!r}",
            )
        if first and not any(names or first):
            law = "must name its columns in its first line, but that is empty"
            raise MalformedFileError(law, hint="name them there")
        read = read_columns(path, content, list(names) or [name for name in first if name], names=names)
        usual = "\t" if ending == ".tsv" else ","
        remarks += [f"{read.encoding} instead of UTF-8"] if read.encoding else []
        is_other = is_separated and read.separator != usual
        remarks += [f"{SEPARATORS[read.separator]} instead of {SEPARATORS[usual]}"] if is_other else []
    except MalformedFileError as error:
        raise TaskDataError(f"{path} {error.message}.", hint=error.hint) from error
    columns = {name: Column(values) for name, values in read.values.items()}
    table = Table(str(path), columns, read.lines, str(path), is_changed=bool(names), is_separated=is_separated)
    if not table.num_rows:
        raise TaskDataError(f"{path} must have a row at least, but has none.", hint="the first line names the columns")
    return replace(table, remark=" and ".join(remarks))


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

    loaded = load_splits(hub, config, None)
    names = list(loaded)
    chosen = split or ("train" if "train" in names or len(names) > 1 else names[0])
    if chosen not in names:
        raise UsageError(unknown_name("--split", chosen, names), hint=f"splits of {hub}")
    rows = loaded[chosen]
    if not len(rows):
        raise TaskDataError(f"{hub}, split {chosen} must have a row at least, but has none.", hint="name another one")
    looked_at = rows.select(range(min(len(rows), _MOST_OF_HUB)))
    columns: dict[str, list[Any]] = {name: list(values) for name, values in looked_at[:].items()}
    label_names: dict[str, tuple[str, ...]] = {}
    for name, feature in rows.features.items():
        if isinstance(feature, datasets.ClassLabel):
            label_names[name] = tuple(feature.names)
            columns[name] = [None if value is None or value < 0 else feature.names[value] for value in columns[name]]
        elif isinstance(feature, datasets.List) and isinstance(feature.feature, datasets.ClassLabel):
            columns[name] = [[feature.feature.names[tag] for tag in value] for value in columns[name]]
    held_out = {name: name for name in ("validation", "test") if name in names and name != chosen}
    splits = {"splits": {"train": chosen, **held_out}} if held_out or chosen != "train" else {}
    source = {"hub": hub, **({"config": config} if config else {}), **splits}
    remark = f"the first {_MOST_OF_HUB:,} of {len(rows):,} rows" if len(rows) > _MOST_OF_HUB else ""
    as_columns = {name: Column(values) for name, values in columns.items()}
    return Table(hub, as_columns, None, source=source, label_names=label_names, remark=remark)


def frame_lines(rows: Any, name: str | None) -> str | None:
    """Return a DataFrame's rows as lines of JSON; None of what is no DataFrame."""
    if isinstance(rows, str | Path):
        return None
    if not (hasattr(rows, "to_dict") and hasattr(rows, "columns")):
        raise UsageError(
            f"`rows` must be a pandas DataFrame, a file or a data set of the hub, but got {type(rows).__name__}.",
            hint="give a path, or pandas.DataFrame(rows)",
        )
    if name is None:
        raise UsageError("`name` must be given with a DataFrame: it names the task.", hint='as in name="reviews"')
    names = [str(column) for column in rows.columns]
    if twice := [column for column in dict.fromkeys(names) if names.count(column) > 1]:
        raise UsageError(
            f"`rows` must name each column once, but has {', '.join(map(repr, twice))} twice.",
            hint="rename or remove one of the two",
        )
    records = rows.astype(object).where(rows.notna(), None).set_axis(names, axis=1).to_dict("records")
    lines = [json.dumps(record, ensure_ascii=False, default=_plain) for record in records]
    if faults := [row for row, line in enumerate(lines) if not is_text(line)]:
        raise UsageError(
            f"`rows` must be valid Unicode, but row {faults[0]} has half of a surrogate pair.",
            hint="encode it again, or remove it",
        )
    return "".join(f"{line}\n" for line in lines)


def _plain(value: Any) -> Any:
    """Return what JSON has no form for: numpy's values as Python's, times as ISO writes them, others as text."""
    if hasattr(value, "tolist"):
        return value.tolist()
    return value.isoformat() if hasattr(value, "isoformat") else str(value)
