"""The state of a search, and of its task's rows, in words and numbers: in terminals and pipes."""

from __future__ import annotations

from collections.abc import Iterator, Mapping

from rich.cells import cell_len, set_cell_size

from loraxs_search.log.events import Phase
from loraxs_search.records.literals import Scalar, Split
from loraxs_search.records.task import DataReport
from loraxs_search.records.trial import TrialState
from loraxs_search.reports.search_state import SearchState

_SHORT_NAMES = {"learning_rate": "lr", "head_learning_rate": "head_lr", "target_modules": "modules"}


def time_left_in_words(seconds: float | None) -> str:
    """Return an estimate as text; empty while there is none."""
    if seconds is None:
        return ""
    if seconds < 10:
        return "a few seconds left"
    if seconds < 90:
        return f"about {round(seconds)} s left"
    if seconds < 90 * 60:
        return f"about {round(seconds / 60)} min left"
    return f"about {seconds / 3600:.1f} h left"


def clock(seconds: float) -> str:
    """Return a time that has passed, as 1:05 or 2:01:05."""
    minutes, rest = divmod(max(0, int(seconds)), 60)
    hours, minutes = divmod(minutes, 60)
    return f"{hours}:{minutes:02d}:{rest:02d}" if hours else f"{minutes}:{rest:02d}"


def phase_in_words(phase: Phase) -> str:
    """Return what is being done, and how far it is where that is counted."""
    return phase.text if phase.total is None else f"{phase.text}: {phase.done:,} of {phase.total:,} {phase.unit}"


def browse(study: str, server: str) -> str:
    """Return how to see the trials of a study in MLflow.

    Args:
        server: Its address, as shown to users; empty for the embedded store.
    """
    return f"browse the trials: loraxs-search ui {study}" + (f" ({server})" if server else "")


def progress_in_words(state: SearchState) -> list[tuple[str, str]]:
    """Return labels and what is to be said of the search: where it is, its budget, its best trial."""
    lines = [("now", _now(state)), ("trials", _trials(state)), ("steps", _steps(state))]
    if best := _best(state):
        lines.append(("best", best))
    if state.steered:
        lines.append(("asked", state.steered))
    return lines


def params_in_short(params: Mapping[str, Scalar]) -> str:
    """Return params in a line, with names and numbers in short."""
    return " ".join(f"{_SHORT_NAMES.get(name, name)}={_short(value)}" for name, value in params.items())


def _now(state: SearchState) -> str:
    if state.ended is not None:
        return state.ended.state
    if state.phase is not None:
        return phase_in_words(state.phase)
    return _training(state)


def _training(state: SearchState) -> str:
    """Return what becomes of the trials, as people have asked for it."""
    return f"finishing: {state.counts[TrialState.RUNNING]} still running" if state.finishing else "training"


def _trials(state: SearchState) -> str:
    counts = state.counts
    some = [(counts[TrialState.PRUNED], "stopped early"), (counts[TrialState.FAIL], "failed")]
    known = ", ".join(f"{number} {what}" for number, what in some if number)
    return f"{state.num_ended} of {state.num_trials} ended{f' ({known})' if known else ''}"


def _steps(state: SearchState) -> str:
    refits = f" ({state.refit_steps:,} in refits)" if state.refit_steps else ""
    return f"{state.steps_done:,} of about {state.trial_steps() + state.refit_steps:,.0f}{refits}"


def _best(state: SearchState) -> str:
    best, mark, lead = state.best, state.best_baseline, state.lead
    if best is None or state.facts is None:
        return ""
    text = f"{best.name}  {state.facts.metric} {best.value:.4f}"
    if mark is None or lead is None:
        return text
    return f"{text}, {abs(lead):.4f} {'better' if lead > 0 else 'worse'} than {mark.name} ({mark.value:.4f})"


def _short(value: Scalar) -> str:
    return f"{value:.3g}" if isinstance(value, float) else str(value)


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
