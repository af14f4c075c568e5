"""The data report of a task, with its warnings: rows that splits share, lengths, answers, what a score is worth."""

from __future__ import annotations

import math
from collections.abc import Mapping
from pathlib import Path

import numpy as np

from loraxs_search.records.codec import Split, sign_of
from loraxs_search.records.task import ConstantAnswer, DataReport, SplitOverlap
from loraxs_search.tasks.encoded import EncodedRows
from loraxs_search.tasks.kinds import TaskKind
from loraxs_search.tasks.metrics import Metric, Values
from loraxs_search.tasks.rows import SPLITS, Rows

# The first is scored after training or selection on the second.
_COMPARED: tuple[tuple[Split, Split], ...] = (("validation", "train"), ("test", "train"), ("test", "validation"))
_EXAMPLES = 2  # shared rows that are named
_SCORED: tuple[Split, ...] = ("validation", "test")


def data_report(
    kind: TaskKind, rows: Mapping[Split, Rows], scored: Mapping[Split, Rows], encoded: Mapping[Split, EncodedRows]
) -> DataReport:
    """Return the report of a task's rows.

    Args:
        rows: Of each split, all of them.
        scored: Of validation those that are scored, of the others all; `encoded` has their tokens.
    """
    # Rows whose text is also in another split, or repeated; rows with an empty text.
    exact = {
        name: list(zip(*((own.texts,) if own.pairs is None else (own.texts, own.pairs)), strict=True))
        for name, own in rows.items()
    }
    folded = {
        name: [tuple(" ".join(text.casefold().split()) for text in row) for row in own] for name, own in exact.items()
    }
    exact_sets, folded_sets = ({name: set(own) for name, own in side.items()} for side in (exact, folded))
    overlaps = []
    for one, other in _COMPARED:
        shared = [i for i, row in enumerate(folded[one]) if row in folded_sets[other]]
        letter_for_letter, places, source = sum(row in exact_sets[other] for row in exact[one]), "", ""
        own, others = rows[one].place, rows[other].place
        if shared and own is not None and others is not None:
            here, there = (Path(it.name).name if Path(it.name).is_absolute() else it.name for it in (own, others))
            of = ("", "") if own.name == others.name else (f" of {here}", f" of {there}")
            pairs = [(row, folded[other].index(folded[one][row])) for row in shared[:_EXAMPLES]]
            places = ", ".join(f"{own.row(row)}{of[0]} and {others.row(same)}{of[1]}" for row, same in pairs)
            source = here if own.name == others.name else ""
        overlaps.append(SplitOverlap(one, other, letter_for_letter, len(shared), places, source))
    # Tokens, answers, and what a score is worth.
    names = [name for name in kind.task.metrics if kind.metrics[name].column == "predictions"]
    best = constant_answer(kind, scored["train"].labels)
    tokens, constant = dict[Split, dict[str, int]](), None
    for split, parts in encoded.items():
        lengths = parts.lengths
        if parts.positions is not None:
            lengths = np.array([len(parts.whole_row(row)[0]) for row in range(len(parts))], np.int32)
        lengths = lengths if parts.lost is None else lengths + parts.lost
        tokens[split] = {"median": int(np.median(lengths)), "longest": int(lengths.max())}
    if names:
        scores = {split: kind.measure(repeated(best, len(scored[split])), scored[split].labels) for split in _SCORED}
        constant = ConstantAnswer(kind.show(best), scores)
    return DataReport(
        num_rows={name: len(own) for name, own in exact.items()},
        overlaps=tuple(overlaps),
        repeated={name: len(own) - len(exact_sets[name]) for name, own in exact.items()},
        blank={name: sum(not all(row) for row in own) for name, own in folded.items()},
        cut={split: parts.num_cut for split, parts in encoded.items() if parts.lost is not None},
        tokens=tokens,
        answers=tuple(kind.answer_facts(scored, encoded)),
        constant=constant,
        warnings=tuple(kind.warnings(rows, encoded)),
        cut_part=kind.cut_part,
        standard_errors={
            split: {name: standard_error(kind.metrics[name], scored[split].labels, best) for name in names}
            for split in _SCORED
        },
    )


def constant_answer(kind: TaskKind, train: Values) -> int | float | str:
    """Return the constant answer that is best on the train rows, by the task's metric.

    Of equally good answers the likeliest wins: the most frequent label, or the mean.

    Args:
        train: Their labels, (N,).
    """
    sign, metric = sign_of(kind.task.direction), kind.metrics[kind.task.metric]
    answers: list[int | float | str] = kind.constants(train)
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
    warnings = []
    for overlap in report.overlaps:
        if not overlap.folded:
            continue
        why = "a score on them measures memory" if overlap.other == "train" else "trials are chosen by these rows"
        such_as = f", such as {overlap.places}" if overlap.places else ""
        twice, way = such_as, "take them out of one of the two"
        if overlap.source:
            twice, way = f", since {overlap.source} has them twice{such_as}", "remove them there"
        exactly = "" if overlap.exact else " up to case and white space"
        if overlap.exact not in (0, overlap.folded):
            exactly = f" ({overlap.exact:,} letter for letter, the others up to case and white space)"
        warnings.append(
            f"{overlap.folded:,} of {report.num_rows[overlap.split]:,} {overlap.split} rows are also in"
            f" {overlap.other}{exactly}{twice}: {why}; {way}"
        )
    for split, repeats in report.repeated.items():
        if repeats >= _SHARE * report.num_rows[split]:
            verb = "repeats" if repeats == 1 else "repeat"
            warnings.append(f"{repeats:,} of {report.num_rows[split]:,} {split} rows {verb} the text of an earlier one")
    warnings += [
        f"{blank:,} of {report.num_rows[split]:,} {split} rows have an empty text"
        for split, blank in report.blank.items()
        if blank
    ]
    cuts = {split: report.cut.get(split, 0) for split in SPLITS}
    if many := {split: number for split, number in cuts.items() if number and number >= _SHARE * num_scored[split]}:
        counts = ", ".join(f"{number:,} of {num_scored[split]:,} {split} rows" for split, number in many.items())
        longest = max((tokens["longest"] for tokens in report.tokens.values()), default=0)
        size = f" (the longest has {longest:,} tokens)" if longest else ""
        warnings.append(f"{counts} are longer than `max_length`{size}: their {report.cut_part} are lost")
    warnings += report.warnings
    own = {split: report.standard_errors.get(split, {}) for split in SPLITS}
    errors = {split: known[metric] for split, known in own.items() if metric in known}
    for split, known in errors.items():
        if not known["reach"]:
            rows = f"{num_scored[split]:,} {split} row{'s' * (num_scored[split] > 1)}"
            warnings.append(
                f"{metric} of the {rows} is the same for right answers and for the constant one: it says nothing"
            )
    large = {split: known for split, known in errors.items() if known["error"] > _LARGE * known["reach"] > 0}
    if large:
        sizes = [f"{it['error']:.2g} on the {num_scored[split]:,} {split} rows" for split, it in large.items()]
        enough = max(num_scored[split] * (it["error"] / (_LARGE * it["reach"])) ** 2 for split, it in large.items())
        unit = 10 ** (len(str(math.ceil(enough))) - 1)
        apart = 2 * max(it["error"] for it in large.values())
        warnings.append(
            f"{metric} has a standard error of about {' and '.join(sizes)}: scores less than {apart:.2g} apart say"
            f" little; some {math.ceil(math.ceil(enough) / unit) * unit:,} rows would do"
        )
    return warnings


_RESAMPLES, _MOST_ROWS = 100, 1000  # of the bootstrap; an error falls with the square root of the rows


def standard_error(metric: Metric, labels: Values, constant: float | str) -> dict[str, float]:
    """Return the standard error of a metric on these rows, and its reach; see `DataReport.standard_errors`.

    It depends on how good the answers are. Here half of them are right and half the constant answer: they are half-way
    between what costs nothing and what cannot be better.

    Args:
        metric: One that is taken of answers.
        labels: Of the rows, (N,).
    """
    guesses = repeated(constant, len(labels))
    reach = float(abs(metric.score(labels, labels) - metric.score(guesses, labels)))
    if metric.of_rows is not None:  # the mean of what rows score
        of_rows = np.concatenate([metric.of_rows(answers, labels) for answers in (labels, guesses)])
        return {"error": float(of_rows.std() / np.sqrt(len(labels))), "reach": reach}
    draw = np.random.default_rng(0)
    answers = np.where(draw.random(len(labels)) < 0.5, labels, guesses)
    size = min(len(labels), _MOST_ROWS)
    drawn = (draw.integers(len(labels), size=size) for _ in range(_RESAMPLES))
    if metric.row_counts is not None and metric.of_counts is not None:
        counts = metric.row_counts(answers, labels)
        scores = [float(metric.of_counts(counts[rows].sum(0, dtype=np.float64))) for rows in drawn]
    else:
        scores = [metric.score(answers[rows], labels[rows]) for rows in drawn]
    return {"error": float(np.std(scores) * np.sqrt(size / len(labels))), "reach": reach}
