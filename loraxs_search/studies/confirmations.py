"""What is known of a study's candidates: they themselves, and results on them, file by file.

A driver that was killed continues from them.
"""

from __future__ import annotations

import time
from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path

from loraxs_search.home import write_atomic
from loraxs_search.records.codec import check_trial_id, to_json
from loraxs_search.records.host import Answers
from loraxs_search.records.literals import Split
from loraxs_search.records.promotion import Candidate, Refit
from loraxs_search.studies.info import read_record
from loraxs_search.studies.test_set_uses import record_use


@dataclass(frozen=True)
class _BaseFailure:
    """Why the untouched base could not be asked, and whether it could have been."""

    reason: str
    applies: bool = True


class Confirmations:
    """Refits, scores on all validation rows, answers to test rows, and the finalist, in `confirmed/` of a study.

    A file is written whole, once its work is done: what has none is to be done, what has one is not done again.
    """

    def __init__(self, path: Path) -> None:
        self._path = path

    def candidate(self, trial_id: str) -> Candidate | None:
        """Return the finalist, once it has been scored on the test rows and kept."""
        path = self._path / f"{check_trial_id(trial_id)}.json"
        return read_record(Candidate, path) if path.exists() else None

    def finalists(self) -> tuple[str, ...]:
        """Return the adapters that have answered all test rows, by name."""
        return tuple(sorted(path.stem for path in self._path.glob("*.safetensors") if path != self.base_rows_path))

    def write_candidate(self, candidate: Candidate, rows: bytes) -> None:
        """Keep the scored finalist and its answers, which are written first; before that, that they were made."""
        record_use(candidate)
        write_atomic(self.rows_path(candidate.trial_id), rows)
        write_atomic(self._path / f"{check_trial_id(candidate.trial_id)}.json", to_json(candidate, indent=2))

    def rows_path(self, trial_id: str) -> Path:
        """Return the safetensors file with the finalist's answers to the test rows."""
        return self._path / f"{check_trial_id(trial_id)}.safetensors"

    def refit(self, name: str) -> Refit | None:
        """Return a refit that has been trained."""
        path = self._path / f"{check_trial_id(name)}.refit.json"
        return read_record(_RefitFile, path).refit if path.exists() else None

    def write_refit(self, name: str, refit: Refit) -> None:
        """Keep a finished refit."""
        write_atomic(self._path / f"{check_trial_id(name)}.refit.json", to_json(_RefitFile(refit)))

    def validation(self, name: str) -> Mapping[str, float] | None:
        """Return a candidate's metrics on all validation rows; empty where it has none."""
        path = self._path / f"{check_trial_id(name)}.validation.json"
        return read_record(_ValidationFile, path).metrics if path.exists() else None

    def write_validation(self, name: str, metrics: Mapping[str, float]) -> None:
        """Keep a candidate's metrics on all validation rows."""
        write_atomic(self._path / f"{check_trial_id(name)}.validation.json", to_json(_ValidationFile(metrics)))

    def answers(self, name: str) -> dict[range, Answers]:
        """Return the finalist's answers to test rows, by the rows that they are to, first rows first."""
        return self._answers(f"{check_trial_id(name)}.test")

    def write_answers(self, name: str, rows: range, answers: Answers) -> None:
        """Keep the finalist's answers to these test rows."""
        write_atomic(self._path / f"{check_trial_id(name)}.test-{rows.start}-{rows.stop}.json", to_json(answers))

    # ---- the untouched base ------------------------------------------------------------------------------------------
    @property
    def base_rows_path(self) -> Path:
        """The safetensors file with the answers of the untouched base to the test rows."""
        return self._path / "base.safetensors"

    def write_base_rows(self, rows: bytes) -> None:
        """Keep the answers of the untouched base to all test rows."""
        write_atomic(self.base_rows_path, rows)

    def base_answers(self, shots: int, split: Split) -> dict[range, Answers]:
        """Return answers of the untouched base to rows of a split, as `answers` does.

        Args:
            shots: Worked examples in each prompt.
        """
        return self._answers(f"base-{shots}.{split}")

    def write_base_answers(self, shots: int, split: Split, rows: range, answers: Answers) -> None:
        """Keep answers of the untouched base to these rows."""
        write_atomic(self._path / f"base-{shots}.{split}-{rows.start}-{rows.stop}.json", to_json(answers))

    def base_failure(self, shots: int) -> _BaseFailure | None:
        """Return why the untouched base could not answer; None if that is not known."""
        path = self._path / f"base-{shots}.failed.json"
        return read_record(_BaseFailure, path) if path.exists() else None

    def forget_base_failures(self) -> None:
        """Have the untouched base asked again for what it could not answer."""
        for path in self._path.glob("base-*.failed.json"):
            path.unlink()

    def write_base_failure(self, shots: int, reason: str, *, applies: bool = True) -> None:
        """Keep why the untouched base could not answer, and whether it could have."""
        write_atomic(self._path / f"base-{shots}.failed.json", to_json(_BaseFailure(reason, applies)))

    # ---- inside ------------------------------------------------------------------------------------------------------
    def _answers(self, start: str) -> dict[range, Answers]:
        by_rows = {}
        for path in self._path.glob(f"{start}-*-*.json"):
            start, stop = path.stem.rpartition(".")[2].split("-")[1:]
            by_rows[range(int(start), int(stop))] = read_record(Answers, path)
        return dict(sorted(by_rows.items(), key=lambda item: item[0].start))


@dataclass(frozen=True)
class _RefitFile:
    refit: Refit


@dataclass(frozen=True)
class _ValidationFile:
    metrics: Mapping[str, float]


_ROUND, _EARLIER = "round.json", "candidates-"  # the latter and a number: those of before the search continued


class CandidateFiles:
    """What a study folder keeps of its candidates, once the search has come to its end."""

    path: Path

    def write_candidates(self, candidates: list[Candidate]) -> None:
        """Record the scored candidates; their presence means that the search is finished."""
        made = {"at": time.time(), "candidates": candidates, "round": self._round()}
        write_atomic(self.path / "candidates.json", to_json(made, indent=2))

    def candidates(self) -> list[Candidate] | None:
        """Return the scored candidates, best first by validation, or None when the search is not finished."""
        path = self.path / "candidates.json"
        if not path.exists():
            return None
        file = read_record(_CandidateFile, path)
        return file.candidates if file.round >= self._round() else None

    def set_candidates_aside(self) -> None:
        """Have the candidates be none any more, since the search continues; what is known of each of them stays.

        Refits and scores of adapters that become candidates again need not be made again, and test rows that an adapter
        has answered are not asked again. No file is taken away: a storage that has a copy would keep it.
        """
        if self.candidates() is None:
            return
        number = self._round() + 1
        write_atomic(self.path / f"{_EARLIER}{number}.json", (self.path / "candidates.json").read_bytes())
        write_atomic(self.path / _ROUND, to_json(_RoundFile(number)))

    def earlier_finalists(self) -> tuple[str, ...]:
        """Return the adapters that had answered the test rows when the search continued, in order."""
        paths = (self.path / f"{_EARLIER}{number}.json" for number in range(1, self._round() + 1))
        earlier = [read_record(_CandidateFile, path).candidates for path in paths]
        return tuple(dict.fromkeys(each.trial_id for some in earlier for each in some if each.test_metrics))

    def _round(self) -> int:
        """Return how often the search has continued after candidates were scored."""
        path = self.path / _ROUND
        return read_record(_RoundFile, path).number if path.exists() else 0


@dataclass(frozen=True)
class _CandidateFile:
    at: float
    candidates: list[Candidate]
    round: int = 0


@dataclass(frozen=True)
class _RoundFile:
    number: int
