"""Warnings about a task's rows that people should read before they trust a score. No torch here."""

from __future__ import annotations

from collections.abc import Iterator, Mapping

from loraxs_search.records import DataReport, Split, SplitOverlap

_REPEATED_SHARE = 0.01  # large collections repeat some texts; this many change what a score means
_FEW = 30


def data_warnings(report: DataReport, num_scored: Mapping[Split, int]) -> list[str]:
    """Return a sentence for each property, intended or not, that makes scores mean less than they seem to.

    Args:
        num_scored: Rows of each split that are scored, for validation maybe a part.
    """
    shared = [*_overlaps(report), *_repeated(report), *_blank(report)]
    return [*shared, *_cut(report, num_scored), *report.warnings, *_few(num_scored)]


def overlap_counts(report: DataReport) -> dict[str, int]:
    """Return the numbers of shared rows by name, for the record: `test_rows_in_train`, and the same `_folded`.

    And of rows that were cut, where that is counted: `train_rows_cut`.
    """
    names = ((f"{it.split}_rows_in_{it.other}", it) for it in report.overlaps)
    shared = {key: n for name, it in names for key, n in ((name, it.exact), (f"{name}_folded", it.folded))}
    return shared | {f"{split}_rows_cut": cut for split, cut in report.cut.items()}


def _overlaps(report: DataReport) -> Iterator[str]:
    for overlap in report.overlaps:
        if overlap.folded:
            why = "a score on them measures memory" if overlap.other == "train" else "trials are chosen by these rows"
            yield (
                f"{overlap.folded:,} of {report.num_rows[overlap.split]:,} {overlap.split} rows are also in"
                f" {overlap.other}{_exactly(overlap)}: {why}; take them out of one of the two"
            )


def _exactly(overlap: SplitOverlap) -> str:
    if overlap.exact == overlap.folded:
        return ""
    return f" ({overlap.exact:,} letter for letter, the others up to case and white space)"


def _repeated(report: DataReport) -> Iterator[str]:
    for split, repeated in report.repeated.items():
        if repeated >= _REPEATED_SHARE * report.num_rows[split]:
            yield f"{repeated:,} of {report.num_rows[split]:,} {split} rows repeat the text of an earlier one"


def _blank(report: DataReport) -> Iterator[str]:
    for split, blank in report.blank.items():
        if blank:
            yield f"{blank:,} of {report.num_rows[split]:,} {split} rows have an empty text"


def _cut(report: DataReport, num_rows: Mapping[Split, int]) -> Iterator[str]:
    for split, cut in report.cut.items():
        if cut:
            yield f"{cut:,} of {num_rows[split]:,} {split} rows are longer than `max_length`: their beginnings are lost"


def _few(num_scored: Mapping[Split, int]) -> Iterator[str]:
    for split in ("validation", "test"):
        rows = num_scored.get(split, _FEW)
        if rows < _FEW:
            yield f"{split} scores are of {rows} row{'s' * (rows > 1)}: one row is {100 / rows:.1f} points of accuracy"
