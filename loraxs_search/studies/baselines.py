"""Two files of a study: the scores of simple models on its rows, and their answers to its test rows."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass, replace
from pathlib import Path

from loraxs_search.home import write_atomic
from loraxs_search.records.codec import to_json
from loraxs_search.records.promotion import Baseline, KeptAnswers, is_alone
from loraxs_search.studies.info import StudyInfo, read_record

_SCORES, _ANSWERS = "baselines.json", "baselines.answers.json"


@dataclass(frozen=True)
class _Scores:
    baselines: tuple[Baseline, ...]


@dataclass(frozen=True)
class _TestAnswers:
    answers: Mapping[str, tuple[float | str, ...]]
    task: str
    rows: Mapping[str, str]


class BaselineFiles:
    """What a study folder keeps of baselines: their scores, and apart from these their answers to the test rows."""

    path: Path
    info: StudyInfo

    def write_baselines(self, baselines: Sequence[Baseline]) -> None:
        """Record what simple models reach on the study's rows, and the answers to test rows that they bring.

        What the untouched base reaches stays unless it is among them.
        """
        if not any(is_alone(one.name) for one in baselines):
            baselines = [*baselines, *(one for one in self.baselines() or () if is_alone(one.name))]
        if answers := {one.name: one.test_answers for one in baselines if one.test_answers}:
            rows = {one.name: one.test_rows for one in baselines if one.test_answers}
            kept = _TestAnswers(answers, self.info.task.registered_name, rows)
            write_atomic(self.path / _ANSWERS, to_json(kept))
        scores = tuple(replace(one, test_answers=(), test_rows="") for one in baselines)
        write_atomic(self.path / _SCORES, to_json(_Scores(scores), indent=2))

    def baseline_answers(self) -> Mapping[str, KeptAnswers]:
        """Return the answers of simple models to the test rows, by baseline; none if they were not kept."""
        path = self.path / _ANSWERS
        if not path.exists():
            return {}
        kept = read_record(_TestAnswers, path)
        return {name: KeptAnswers(said, kept.task, kept.rows[name]) for name, said in kept.answers.items()}

    def baselines(self) -> tuple[Baseline, ...] | None:
        """Return what simple models reach, or None when that has not been computed."""
        path = self.path / _SCORES
        return read_record(_Scores, path).baselines if path.exists() else None
