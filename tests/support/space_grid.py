"""A walk over the whole grid of a space: every way that a trial could draw."""

from __future__ import annotations

from collections.abc import Iterator
from typing import Any

from loraxs_search.search_space.space import Space


def walk(space: Space) -> Iterator[tuple[dict[str, Any], dict[str, Any]]]:
    """Yield what Optuna is asked for in each way to draw, with the answers, and the params that a trial has then."""
    waiting: list[dict[str, Any]] = [{}]
    while waiting:
        script = waiting.pop()
        trial = _Scripted(script)
        params = space.suggest(trial)  # type: ignore[arg-type]  # a trial is what answers
        if trial.open is None:
            yield script, params
        else:
            name, options = trial.open
            waiting += [script | {name: option} for option in options]


class _Scripted:
    """Answers from a script; the first question that is not in it stays open (and gets a stand-in answer)."""

    def __init__(self, script: dict[str, Any]) -> None:
        self.script = script
        self.open: tuple[str, list[Any]] | None = None

    def suggest_categorical(self, name: str, options: list[Any]) -> Any:
        if name in self.script:
            return self.script[name]
        if self.open is None:
            self.open = (name, options)
        return options[0]
