"""The candidates of a study: those that count, and those of before the search continued."""

from __future__ import annotations

import time
from dataclasses import dataclass
from pathlib import Path

from loraxs_search.home import write_atomic
from loraxs_search.records import Candidate, to_json
from loraxs_search.studies.reading import read_record

_ROUND, _EARLIER = "round.json", "candidates-"  # the latter and a number: those of before the search continued


class CandidateFiles:
    """Files of a study folder; they are there once the search has come to its end."""

    def __init__(self, folder: Path) -> None:
        self._folder = folder

    def write(self, candidates: list[Candidate]) -> None:
        """Record the scored candidates; their presence means that the search is finished."""
        made = {"at": time.time(), "candidates": candidates, "round": self._round()}
        write_atomic(self._folder / "candidates.json", to_json(made, indent=2))

    def read(self) -> list[Candidate] | None:
        """Return the scored candidates, best first by validation, or None when the search is not finished."""
        path = self._folder / "candidates.json"
        if not path.exists():
            return None
        file = read_record(_CandidateFile, path)
        return file.candidates if file.round >= self._round() else None

    def set_aside(self) -> None:
        """Have the candidates be none any more, since the search continues; what is known of each of them stays.

        Refits and scores of adapters that become candidates again need not be made again, and test rows that an adapter
        has answered are not asked again. No file is taken away: a storage that has a copy would keep it.
        """
        if self.read() is None:
            return
        number = self._round() + 1
        write_atomic(self._folder / f"{_EARLIER}{number}.json", (self._folder / "candidates.json").read_bytes())
        write_atomic(self._folder / _ROUND, to_json(_RoundFile(number)))

    def earlier_finalists(self) -> tuple[str, ...]:
        """Return the adapters that had answered the test rows when the search continued, in order."""
        paths = (self._folder / f"{_EARLIER}{number}.json" for number in range(1, self._round() + 1))
        earlier = [read_record(_CandidateFile, path).candidates for path in paths]
        return tuple(dict.fromkeys(each.trial_id for some in earlier for each in some if each.test_metrics))

    def _round(self) -> int:
        """Return how often the search has continued after candidates were scored."""
        path = self._folder / _ROUND
        return read_record(_RoundFile, path).number if path.exists() else 0


@dataclass(frozen=True)
class _CandidateFile:
    at: float
    candidates: list[Candidate]
    round: int = 0


@dataclass(frozen=True)
class _RoundFile:
    number: int
