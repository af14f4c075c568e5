"""What has been confirmed of a study's candidates, file by file: a killed driver finds here what it has done."""

from __future__ import annotations

from dataclasses import dataclass
from pathlib import Path

from loraxs_search.home import write_atomic
from loraxs_search.records import Candidate, Refit, from_json, to_json


@dataclass(frozen=True)
class ScoredRefit:
    """A refit and its answer to each test row."""

    refit: Refit
    predictions: tuple[int, ...] | tuple[float, ...] = ()


class Confirmations:
    """Scored candidates and their refits in `confirmed/` of a study's folder.

    A file is written whole, once its work is done: what has none is to be done, what has one is not done again.
    """

    def __init__(self, path: Path) -> None:
        self._path = path

    def candidate(self, trial_id: str) -> Candidate | None:
        """Return a candidate that has been scored and kept."""
        path = self._path / f"{trial_id}.json"
        return from_json(Candidate, path.read_bytes()) if path.exists() else None

    def write_candidate(self, candidate: Candidate, rows: bytes) -> None:
        """Keep a scored candidate and its answers, which are written first."""
        write_atomic(self.rows_path(candidate.trial_id), rows)
        write_atomic(self._path / f"{candidate.trial_id}.json", to_json(candidate, indent=2))

    def rows_path(self, trial_id: str) -> Path:
        """Return where a candidate's answers to the test rows lie, as a safetensors file."""
        return self._path / f"{trial_id}.safetensors"

    def refit(self, name: str) -> ScoredRefit | None:
        """Return a refit that has been trained and scored."""
        path = self._path / f"{name}.refit.json"
        return from_json(ScoredRefit, path.read_bytes()) if path.exists() else None

    def write_refit(self, name: str, scored: ScoredRefit) -> None:
        """Keep a refit that has come to its end."""
        write_atomic(self._path / f"{name}.refit.json", to_json(scored))
