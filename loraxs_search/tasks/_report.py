"""Rows that splits share or repeat: counted once for each content."""

from __future__ import annotations

import json
from collections.abc import Mapping
from pathlib import Path
from typing import Any

from loraxs_search.home import write_atomic
from loraxs_search.records import DataReport, Split, SplitOverlap, to_json
from loraxs_search.tasks._rows import SPLITS
from loraxs_search.tasks.rows import Rows

# The first is scored after training or selection on the second.
_COMPARED: tuple[tuple[Split, Split], ...] = (("validation", "train"), ("test", "train"), ("test", "validation"))
_VERSION = "1"  # raise when the same rows are counted in another way
_Row = tuple[str, ...]


def cached_report(rows: Mapping[Split, Rows], fingerprint: str, cache_dir: Path) -> DataReport:
    """Return the report of rows with this fingerprint, counted when it is not in the cache.

    Raises:
        HomeError: the cache cannot be written.
    """
    path = cache_dir / "reports" / f"{_VERSION}-{fingerprint}.json"
    try:
        return _read(json.loads(path.read_bytes()))
    except (OSError, ValueError, KeyError, TypeError):  # none, or damaged
        report = data_report(rows)
    write_atomic(path, to_json(report))
    return report


def _read(known: dict[str, Any]) -> DataReport:
    counts = {name: {split: int(known[name][split]) for split in SPLITS} for name in ("num_rows", "repeated", "blank")}
    return DataReport(
        counts["num_rows"],
        tuple(SplitOverlap(**overlap) for overlap in known["overlaps"]),
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
            SplitOverlap(one, other, _shared(exact[one], exact_sets[other]), _shared(folded[one], folded_sets[other]))
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


def _shared(rows: list[_Row], others: set[_Row]) -> int:
    return sum(row in others for row in rows)
