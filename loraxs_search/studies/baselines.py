"""Two files of a study: the scores of simple models on its rows, and their answers to its test rows."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field, replace
from pathlib import Path

from loraxs_search.home import write_atomic
from loraxs_search.records import STORED_NAMES, Baseline, KeptAnswers, is_alone, to_json
from loraxs_search.studies.info import read_record


@dataclass(frozen=True)
class _Scores:
    __pydantic_config__ = STORED_NAMES

    baselines: tuple[Baseline, ...]


@dataclass(frozen=True)
class _TestAnswers:
    answers: Mapping[str, tuple[float | str, ...]]
    task: str = ""
    rows: Mapping[str, str] = field(default_factory=dict)


class BaselineFiles:
    """The scores of baselines, and apart from these their answers to the test rows."""

    def __init__(self, study: Path) -> None:
        self._scores, self._answers = study / "yardsticks.json", study / "yardsticks.answers.json"

    def write(self, baselines: Sequence[Baseline], task: str) -> None:
        """Record them, and the answers that they bring; the base alone stays unless it is among them."""
        if not any(is_alone(one.name) for one in baselines):
            baselines = [*baselines, *(one for one in self.read() or () if is_alone(one.name))]
        if answers := {one.name: one.test_answers for one in baselines if one.test_answers}:
            rows = {one.name: one.test_rows for one in baselines if one.test_answers}
            write_atomic(self._answers, to_json(_TestAnswers(answers, task, rows)))
        scores = tuple(replace(one, test_answers=(), test_rows="") for one in baselines)
        write_atomic(self._scores, to_json(_Scores(scores), indent=2))

    def answers(self) -> Mapping[str, KeptAnswers]:
        """Return their answers to the test rows, by name; none if they were not kept."""
        if not self._answers.exists():
            return {}
        kept = read_record(_TestAnswers, self._answers)
        return {name: KeptAnswers(said, kept.task, kept.rows.get(name, "")) for name, said in kept.answers.items()}

    def read(self) -> tuple[Baseline, ...] | None:
        """Return their scores, or None when they have not been computed."""
        return read_record(_Scores, self._scores).baselines if self._scores.exists() else None
