"""Rows that splits share or repeat: counted once for each content."""

from __future__ import annotations

import json
from collections.abc import Mapping
from dataclasses import replace
from itertools import islice
from pathlib import Path
from typing import Any

from loraxs_search.home import write_atomic
from loraxs_search.records import DataReport, Split, SplitOverlap, to_json
from loraxs_search.tasks._rows import SPLITS
from loraxs_search.tasks.rows import Rows

# The first is scored after training or selection on the second.
_COMPARED: tuple[tuple[Split, Split], ...] = (("validation", "train"), ("test", "train"), ("test", "validation"))
_VERSION = "2"  # raise when the same rows are counted in another way
_EXAMPLES = 2  # shared rows that are named
_Row = tuple[str, ...]


def cached_report(rows: Mapping[Split, Rows], fingerprint: str, cache_dir: Path) -> DataReport:
    """Return the report of rows with this fingerprint, counted when it is not in the cache.

    Raises:
        HomeError: the cache cannot be written.
    """
    path = cache_dir / "reports" / f"{_VERSION}-{fingerprint}.json"
    try:
        report = _read(json.loads(path.read_bytes()))
    except (OSError, ValueError, KeyError, TypeError):  # none, or damaged
        report = data_report(rows)
        write_atomic(path, to_json(report))
    return replace(report, overlaps=tuple(_placed(it, rows[it.split], rows[it.other]) for it in report.overlaps))


def _placed(overlap: SplitOverlap, own: Rows, other: Rows) -> SplitOverlap:
    """Return an overlap with where its examples are: rows of the same content may come from other files."""
    if not overlap.examples or own.place is None or other.place is None:
        return overlap
    carved = own.place.name == other.place.name
    here, there = (_short(rows.place.name) for rows in (own, other) if rows.place)
    of = ("", "") if carved else (f" of {here}", f" of {there}")
    pairs = [(own.place.row(row), other.place.row(same)) for row, same in overlap.examples]
    places = ", ".join(f"{row}{of[0]} and {same}{of[1]}" for row, same in pairs)
    return replace(overlap, places=places, source=here if carved else "")


def _short(name: str) -> str:
    """Return the name of a file without its folder; a data set of the hub as it is."""
    return Path(name).name if Path(name).is_absolute() else name


def _read(known: dict[str, Any]) -> DataReport:
    counts = {name: {split: int(known[name][split]) for split in SPLITS} for name in ("num_rows", "repeated", "blank")}
    return DataReport(
        counts["num_rows"],
        tuple(
            SplitOverlap(**it | {"examples": tuple((int(row), int(same)) for row, same in it["examples"])})
            for it in known["overlaps"]
        ),
        counts["repeated"],
        counts["blank"],
    )


def data_report(rows: Mapping[Split, Rows]) -> DataReport:
    """Count rows whose text is also in another split or repeated, and rows with an empty text."""
    exact = {name: _texts(split) for name, split in rows.items()}
    folded = {name: [tuple(map(_fold, row)) for row in split] for name, split in exact.items()}
    exact_sets, folded_sets = ({name: set(split) for name, split in side.items()} for side in (exact, folded))
    return DataReport(
        num_rows={name: len(split) for name, split in exact.items()},
        overlaps=tuple(
            SplitOverlap(
                one,
                other,
                _shared(exact[one], exact_sets[other]),
                _shared(folded[one], folded_sets[other]),
                _examples(folded[one], folded[other], folded_sets[other]),
            )
            for one, other in _COMPARED
        ),
        repeated={name: len(split) - len(exact_sets[name]) for name, split in exact.items()},
        blank={name: sum(not all(row) for row in split) for name, split in folded.items()},
    )


def _texts(rows: Rows) -> list[_Row]:
    columns = (rows.texts,) if rows.pairs is None else (rows.texts, rows.pairs)
    return list(zip(*columns, strict=True))


def _fold(text: str) -> str:
    return " ".join(text.casefold().split())


def _examples(rows: list[_Row], others: list[_Row], known: set[_Row]) -> tuple[tuple[int, int], ...]:
    shared = islice((i for i, row in enumerate(rows) if row in known), _EXAMPLES)
    return tuple((i, others.index(rows[i])) for i in shared)


def _shared(rows: list[_Row], others: set[_Row]) -> int:
    return sum(row in others for row in rows)
