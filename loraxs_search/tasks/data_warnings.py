"""Warnings about a task's rows that people should read before they trust a score. No torch here."""

from __future__ import annotations

import math
from collections.abc import Iterator, Mapping
from typing import get_args

from loraxs_search.records import DataReport, Split, SplitOverlap

_SHARE = 0.01  # large collections repeat some texts and have a few long ones; this many change what a score means
_LARGE = 0.125  # a standard error, of what lies between the constant answer's score and the best one that there can be


def data_warnings(report: DataReport, num_scored: Mapping[Split, int], metric: str) -> list[str]:
    """Return a sentence for each property, intended or not, that makes scores mean less than they seem to.

    Args:
        num_scored: Rows of each split that are scored, for validation maybe a part.
        metric: The task's.
    """
    shared = [*_overlaps(report), *_repeated(report), *_blank(report)]
    return [*shared, *_cut(report, num_scored), *report.warnings, *_few(report, num_scored, metric)]


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
            such_as = f", such as {overlap.places}" if overlap.places else ""
            twice, way = such_as, "take them out of one of the two"
            if overlap.source:
                twice, way = f", since {overlap.source} has them twice{such_as}", "remove them there"
            yield (
                f"{overlap.folded:,} of {report.num_rows[overlap.split]:,} {overlap.split} rows are also in"
                f" {overlap.other}{_exactly(overlap)}{twice}: {why}; {way}"
            )


def _exactly(overlap: SplitOverlap) -> str:
    if overlap.exact in (0, overlap.folded):
        return "" if overlap.exact else " up to case and white space"
    return f" ({overlap.exact:,} letter for letter, the others up to case and white space)"


def _repeated(report: DataReport) -> Iterator[str]:
    for split, repeated in report.repeated.items():
        if repeated >= _SHARE * report.num_rows[split]:
            yield f"{repeated:,} of {report.num_rows[split]:,} {split} rows repeat the text of an earlier one"


def _blank(report: DataReport) -> Iterator[str]:
    for split, blank in report.blank.items():
        if blank:
            yield f"{blank:,} of {report.num_rows[split]:,} {split} rows have an empty text"


def _cut(report: DataReport, num_rows: Mapping[Split, int]) -> Iterator[str]:
    cuts = {split: report.cut.get(split, 0) for split in get_args(Split)}  # a cached report may have another order
    many = {split: cut for split, cut in cuts.items() if cut and cut >= _SHARE * num_rows[split]}
    if many:
        counts = ", ".join(f"{cut:,} of {num_rows[split]:,} {split} rows" for split, cut in many.items())
        longest = max((tokens.longest for tokens in report.tokens.values()), default=0)
        size = f" (the longest has {longest:,} tokens)" if longest else ""
        yield f"{counts} are longer than `max_length`{size}: their {report.cut_part} are lost"


def _few(report: DataReport, num_scored: Mapping[Split, int], metric: str) -> Iterator[str]:
    own = {split: report.standard_errors.get(split, {}) for split in get_args(Split)}
    errors = {split: known[metric] for split, known in own.items() if metric in known}
    for split, known in errors.items():
        if not known.reach:
            rows = f"{num_scored[split]:,} {split} row{'s' * (num_scored[split] > 1)}"
            yield f"{metric} of the {rows} is the same for right answers and for the constant one: it says nothing"
    large = {split: known for split, known in errors.items() if known.error > _LARGE * known.reach > 0}
    if large:
        sizes = [f"{it.error:.2g} on the {num_scored[split]:,} {split} rows" for split, it in large.items()]
        enough = max(num_scored[split] * (it.error / (_LARGE * it.reach)) ** 2 for split, it in large.items())
        apart = 2 * max(it.error for it in large.values())
        yield (
            f"{metric} has a standard error of about {' and '.join(sizes)}: scores less than {apart:.2g} apart say"
            f" little; some {_rounded(enough):,} rows would do"
        )


def _rounded(rows: float) -> int:
    """Return a number of rows with one digit, rounded up."""
    most = math.ceil(rows)
    unit = int("1".ljust(len(str(most)), "0"))
    return math.ceil(most / unit) * unit
