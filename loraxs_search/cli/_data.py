"""A task's rows in a few lines that fit 60 columns: a split in each column."""

from __future__ import annotations

from collections.abc import Iterator, Mapping

from rich.cells import cell_len, set_cell_size

from loraxs_search.records import DataReport, Split

_WIDTHS: Mapping[Split, int] = {"train": 8, "validation": 10, "test": 8}  # columns of a terminal
_NAME = 18
_FEW, _MANY = 3, 20  # facts of answers that are shown, in short and at length

Line = tuple[str, Mapping[Split, str]]  # a name, and what is said of each split


def data_lines(report: DataReport, scored: Mapping[Split, int], metric: str, *, short: bool = False) -> list[str]:
    """Return what is known of a task's rows.

    Args:
        scored: Rows of each split that are scored, for validation maybe a part.
        metric: The task's; the others are left out where it is short.
        short: Whether to leave out all that warnings say, and many labels.
    """
    lines = [*_rows(report, scored), *_facts(report, _FEW if short else _MANY), *_tokens(report)]
    if not short:
        lines += _counts(report)
    errors = report.standard_errors.get("validation", {})
    names = [name for name in dict.fromkeys((metric, *errors)) if name in errors]
    lines += [line for name in names[: 1 if short else None] for line in _scores(report, name)]
    return [_line("data", {split: split for split in report.num_rows}), *(_line(*line) for line in lines)]


def _rows(report: DataReport, scored: Mapping[Split, int]) -> Iterator[Line]:
    every = {split: f"{rows:,}" for split, rows in report.num_rows.items()}
    yield "rows", every
    if scored.get("validation", 0) != report.num_rows.get("validation", 0):
        yield "scored in reports", {"validation": f"{scored['validation']:,}"}


def _facts(report: DataReport, limit: int) -> Iterator[Line]:
    """Yield what is said of answers: of many facts the first ones and the last one."""
    facts = report.answers
    left_out = len(facts) - limit if len(facts) > limit + 1 else 0
    for number, fact in enumerate(facts):
        if not left_out or number < limit - 1 or number == len(facts) - 1:
            yield fact.name.strip(), {split: _number(value) for split, value in fact.values.items()}
        elif number == limit:
            yield f"... {left_out} more", {}


def _tokens(report: DataReport) -> Iterator[Line]:
    if report.tokens:
        both = {split: f"{own.median:,}/{own.longest:,}" for split, own in report.tokens.items()}
        yield "tokens, median/max", both
    if any(report.cut.values()):
        yield "cut to max_length", {split: f"{cut:,}" for split, cut in report.cut.items()}


def _counts(report: DataReport) -> Iterator[Line]:
    yield "without text", {split: f"{number:,}" for split, number in report.blank.items()}
    yield "repeated", {split: f"{number:,}" for split, number in report.repeated.items()}
    for other in ("train", "validation"):
        shared = {it.split: f"{it.folded:,}" for it in report.overlaps if it.other == other}
        yield f"also in {other}", shared


def _scores(report: DataReport, metric: str) -> Iterator[Line]:
    """Yield the name of a metric, and below it what the constant answer reaches and how sure a score is."""
    yield metric, {}
    if report.constant is not None:
        scores = {split: f"{own[metric]:.4f}" for split, own in report.constant.scores.items()}
        yield f"  always {report.constant.answer}", scores
    errors = {split: f"{own[metric].error:.2g}" for split, own in report.standard_errors.items()}
    yield "  standard error", errors


def _number(value: float) -> str:
    return f"{value:,}" if isinstance(value, int) else f"{value:.4g}"


def _line(name: str, values: Mapping[Split, str]) -> str:
    cells = "".join(f"  {values.get(split, ''):>{width}}" for split, width in _WIDTHS.items())
    return f"{_fitted(name, _NAME)}{cells}".rstrip()


def _fitted(text: str, width: int) -> str:
    """Return one line of a text that takes so many columns, indented as it is."""
    line = text[: len(text) - len(text.lstrip(" "))] + " ".join(text.split())
    return set_cell_size(line if cell_len(line) <= width else f"{set_cell_size(line, width - 3)}...", width)
