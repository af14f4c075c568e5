"""The data report of a task, with its warnings: rows that splits share, lengths, answers, what a score is worth.

Everything is counted once for each content. The part that depends on tokenizer and metrics has its own cache.
"""

from __future__ import annotations

import hashlib
import math
from collections.abc import Iterator, Mapping
from dataclasses import dataclass, field, replace
from itertools import islice
from pathlib import Path
from typing import Any

import numpy as np
import numpy.typing as npt

from loraxs_search.home import write_atomic
from loraxs_search.records.codec import from_json, to_json
from loraxs_search.records.literals import Split
from loraxs_search.records.task import AnswerFact, ConstantAnswer, DataReport, SplitOverlap, StandardError, TokenCounts
from loraxs_search.tasks.encoded import EncodedRows
from loraxs_search.tasks.kinds import TaskKind
from loraxs_search.tasks.metrics import Metric, Values
from loraxs_search.tasks.read import SPLITS
from loraxs_search.tasks.rows import Rows

# The first is scored after training or selection on the second.
_COMPARED: tuple[tuple[Split, Split], ...] = (
    ("validation", "train"),
    ("test", "train"),
    ("test", "validation"),
)
_OVERLAP_VERSION = "2"  # raise when the same rows are counted in another way
_COUNTS = ("num_rows", "repeated", "blank")  # of each split, which files name in another order
_EXAMPLES = 2  # shared rows that are named
_Row = tuple[str, ...]


def cached_report(rows: Mapping[Split, Rows], fingerprint: str, cache_dir: Path) -> DataReport:
    """Return the report of rows with this fingerprint, counted when it is not in the cache.

    Raises:
        HomeError: the cache cannot be written.
    """
    path = cache_dir / "reports" / f"{_OVERLAP_VERSION}-{fingerprint}.json"
    try:
        report = from_json(DataReport, path.read_bytes())
        counts: dict[str, Any] = {it: {split: getattr(report, it)[split] for split in SPLITS} for it in _COUNTS}
        report = replace(report, **counts)
    except (OSError, ValueError, KeyError):  # none, or damaged
        report = _data_report(rows)
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


def _data_report(rows: Mapping[Split, Rows]) -> DataReport:
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


_MAX_CONSTANTS = 32  # the likeliest ones; a metric is computed for each


def constant_answer(kind: TaskKind, train: Values) -> int | float | str:
    """Return the constant answer that is best on the train rows, by the task's metric.

    Of equally good answers the likeliest wins: the most frequent label, or the mean.

    Args:
        train: Their labels, (N,).
    """
    sign, metric = 1.0 if kind.task.direction == "maximize" else -1.0, kind.metrics[kind.task.metric]
    answers = kind.constants(train)[:_MAX_CONSTANTS]
    if metric.column != "predictions":  # the likeliest: no answer has such a score
        return answers[0]
    gains = [sign * metric.score(repeated(answer, len(train)), train) for answer in answers]
    return answers[int(np.argmax(gains))]


def repeated(answer: float | str, num_rows: int) -> Values:
    """Return the same answer for so many rows, (num_rows,)."""
    return np.full(num_rows, answer, object if isinstance(answer, str) else None)


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
            verb = "repeats" if repeated == 1 else "repeat"
            yield f"{repeated:,} of {report.num_rows[split]:,} {split} rows {verb} the text of an earlier one"


def _blank(report: DataReport) -> Iterator[str]:
    for split, blank in report.blank.items():
        if blank:
            yield f"{blank:,} of {report.num_rows[split]:,} {split} rows have an empty text"


def _cut(report: DataReport, num_rows: Mapping[Split, int]) -> Iterator[str]:
    cuts = {split: report.cut.get(split, 0) for split in SPLITS}
    many = {split: cut for split, cut in cuts.items() if cut and cut >= _SHARE * num_rows[split]}
    if many:
        counts = ", ".join(f"{cut:,} of {num_rows[split]:,} {split} rows" for split, cut in many.items())
        longest = max((tokens.longest for tokens in report.tokens.values()), default=0)
        size = f" (the longest has {longest:,} tokens)" if longest else ""
        yield f"{counts} are longer than `max_length`{size}: their {report.cut_part} are lost"


def _few(report: DataReport, num_scored: Mapping[Split, int], metric: str) -> Iterator[str]:
    own = {split: report.standard_errors.get(split, {}) for split in SPLITS}
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


_RESAMPLES, _MOST_ROWS = 100, 1000  # of the bootstrap; an error falls with the square root of the rows


def standard_error(metric: Metric, labels: Values, constant: float | str) -> StandardError:
    """Return the standard error of a metric on these rows.

    It depends on how good the answers are. Here half of them are right and half the constant answer: they are half-way
    between what costs nothing and what cannot be better.

    Args:
        metric: One that is taken of answers.
        labels: Of the rows, (N,).
    """
    guesses = repeated(constant, len(labels))
    reach = abs(metric.score(labels, labels) - metric.score(guesses, labels))
    if (rows := _row_scores(metric, labels, labels)) is not None:
        both = np.concatenate([rows, _row_scores(metric, guesses, labels)])
        return StandardError(float(both.std() / np.sqrt(len(labels))), float(reach))
    return StandardError(_bootstrapped(metric, labels, guesses), float(reach))


def _row_scores(metric: Metric, answers: Values, labels: Values) -> npt.NDArray[np.float64] | None:
    """Return each row's score, (N,), where the metric is their mean."""
    if metric.of_rows is not None:
        return metric.of_rows(answers, labels)
    return (answers == labels).astype(np.float64) if metric.is_share else None


def _bootstrapped(metric: Metric, labels: Values, guesses: Values) -> float:
    draw = np.random.default_rng(0)
    answers = np.where(draw.random(len(labels)) < 0.5, labels, guesses)
    size = min(len(labels), _MOST_ROWS)
    drawn = (draw.integers(len(labels), size=size) for _ in range(_RESAMPLES))
    if metric.row_counts is not None and metric.of_counts is not None:
        counts = metric.row_counts(answers, labels)
        scores = [float(metric.of_counts(counts[rows].sum(0, dtype=np.float64))) for rows in drawn]
    else:
        scores = [metric.score(answers[rows], labels[rows]) for rows in drawn]
    return float(np.std(scores) * np.sqrt(size / len(labels)))


_ANSWER_VERSION = "3"  # raise when the same rows are counted in another way, or a metric has another value
_SCORED: tuple[Split, ...] = ("validation", "test")


@dataclass(frozen=True)
class _Counted:
    """The fields of a `DataReport` of these names."""

    cut: Mapping[Split, int] = field(default_factory=dict)
    tokens: Mapping[Split, TokenCounts] = field(default_factory=dict)
    answers: tuple[AnswerFact, ...] = ()
    constant: ConstantAnswer | None = None
    standard_errors: Mapping[Split, Mapping[str, StandardError]] = field(default_factory=dict)


def with_answers(
    report: DataReport,
    kind: TaskKind,
    rows: Mapping[Split, Rows],
    encoded: Mapping[Split, EncodedRows],
    *,
    identity: str,
    cache_dir: Path,
) -> DataReport:
    """Return a report with what is said of tokens, answers and scores.

    Args:
        rows: Of each split, of validation those that are scored; `encoded` has their tokens.
        identity: Of rows and tokenizer.
    Raises:
        HomeError: the cache cannot be written.
    """
    key = hashlib.sha256("\n".join([_ANSWER_VERSION, identity, to_json(kind.task)]).encode()).hexdigest()[:40]
    path = cache_dir / "reports" / f"answers-{key}.json"
    try:
        counted = from_json(_Counted, path.read_bytes())
    except (OSError, ValueError):  # none, or damaged
        counted = _count(kind, rows, encoded)
        write_atomic(path, to_json(counted))
    return replace(report, **vars(counted), cut_part=kind.cut_part)


def _count(kind: TaskKind, rows: Mapping[Split, Rows], encoded: Mapping[Split, EncodedRows]) -> _Counted:
    names = [name for name in kind.task.metrics if kind.metrics[name].column == "predictions"]
    best = constant_answer(kind, rows["train"].labels)
    constant = None
    if names:
        scores = {split: kind.measure(repeated(best, len(rows[split])), rows[split].labels) for split in _SCORED}
        constant = ConstantAnswer(kind.show(best), scores)
    return _Counted(
        cut={split: own.num_cut for split, own in encoded.items() if own.cut is not None},
        tokens={split: _tokens(own) for split, own in encoded.items()},
        answers=tuple(kind.answer_facts(rows, encoded)),
        constant=constant,
        standard_errors={
            split: {name: standard_error(kind.metrics[name], rows[split].labels, best) for name in names}
            for split in _SCORED
        },
    )


def _tokens(encoded: EncodedRows) -> TokenCounts:
    lengths = encoded.lengths
    if encoded.positions is not None:
        lengths = np.array([len(encoded.whole_row(row)[0]) for row in range(len(encoded))], np.int32)
    lengths = lengths if encoded.lost is None else lengths + encoded.lost
    return TokenCounts(int(np.median(lengths)), int(lengths.max()))
