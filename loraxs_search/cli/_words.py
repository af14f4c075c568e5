"""What a search's state is called in words and numbers, in terminals and in pipes."""

from __future__ import annotations

from collections.abc import Mapping

from loraxs_search.errors import counted
from loraxs_search.log import Phase
from loraxs_search.records import Scalar, TrialState
from loraxs_search.reports import SearchState

_SHORT_NAMES = {"learning_rate": "lr", "head_learning_rate": "head_lr", "target_modules": "modules"}


def time_left_in_words(seconds: float | None) -> str:
    """Return an estimate for people; empty while there is none."""
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
        server: Its address, for people; empty for the embedded store.
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
    paused = len(state.paused)
    if state.is_waiting:
        what = counted(paused, "trial") if paused else "no trial begun"
        return f"paused, {what}: `loraxs-search continue {state.study}` goes on"
    if state.steering.finishing:
        return f"finishing, no new trials: {state.num_training} still running"
    if state.steering.is_paused:
        return f"pausing, no new trials: {state.num_training} still to report"
    return f"training, {paused} paused" if paused else "training"


def _trials(state: SearchState) -> str:
    counts = state.counts
    some = [(counts[TrialState.PRUNED], "stopped early"), (counts[TrialState.FAIL], "failed")]
    known = ", ".join(f"{number} {what}" for number, what in some if number)
    return f"{state.num_ended} of {state.num_trials} ended{f' ({known})' if known else ''}"


def _steps(state: SearchState) -> str:
    refits = f" ({state.refit_steps:,} in refits)" if state.refit_steps else ""
    return f"{state.steps_done:,} of about {state.trial_steps() + state.refit_steps:,.0f}{refits}"


def _best(state: SearchState) -> str:
    best, mark, lead = state.best, state.best_yardstick, state.lead
    if best is None or state.facts is None:
        return ""
    text = f"{best.name}  {state.facts.metric} {best.value:.4f}"
    if mark is None or lead is None:
        return text
    return f"{text}, {abs(lead):.4f} {'better' if lead > 0 else 'worse'} than {mark.name} ({mark.value:.4f})"


def _short(value: Scalar) -> str:
    return f"{value:.3g}" if isinstance(value, float) else str(value)
