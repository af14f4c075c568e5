"""What is known of a study's candidates: they themselves, and results on them, file by file.

A driver that was killed continues from them.
"""

from __future__ import annotations

import json
from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path

from loraxs_search.errors import HomeError
from loraxs_search.home import disk_faults, ensure_dir, exclusive, home, write_atomic
from loraxs_search.records.codec import check_trial_id, to_json
from loraxs_search.records.host import Answers
from loraxs_search.records.literals import Split
from loraxs_search.records.promotion import Candidate, Refit
from loraxs_search.studies.info import read_record, stored


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
        return stored(Candidate, self._path / f"{check_trial_id(trial_id)}.json")

    def finalists(self) -> tuple[str, ...]:
        """Return the adapters that have answered all test rows, by name."""
        return tuple(sorted(path.stem for path in self._path.glob("*.safetensors") if path != self.base_rows_path))

    def write_candidate(self, candidate: Candidate, rows: bytes) -> None:
        """Keep the scored finalist and its answers, which are written first; before that, that they were made."""
        _record_use(candidate)
        write_atomic(self.rows_path(candidate.trial_id), rows)
        write_atomic(self._path / f"{check_trial_id(candidate.trial_id)}.json", to_json(candidate, indent=2))

    def rows_path(self, trial_id: str) -> Path:
        """Return the safetensors file with the finalist's answers to the test rows."""
        return self._path / f"{check_trial_id(trial_id)}.safetensors"

    def refit(self, name: str) -> Refit | None:
        """Return a refit that has been trained."""
        return stored(Refit, self._path / f"{check_trial_id(name)}.refit.json")

    def write_refit(self, name: str, refit: Refit) -> None:
        """Keep a finished refit."""
        write_atomic(self._path / f"{check_trial_id(name)}.refit.json", to_json(refit))

    def validation(self, name: str) -> Mapping[str, float] | None:
        """Return a candidate's metrics on all validation rows; empty where it has none."""
        return stored(dict[str, float], self._path / f"{check_trial_id(name)}.validation.json")

    def write_validation(self, name: str, metrics: Mapping[str, float]) -> None:
        """Keep a candidate's metrics on all validation rows."""
        write_atomic(self._path / f"{check_trial_id(name)}.validation.json", to_json(metrics))

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
        return stored(_BaseFailure, self._path / f"base-{shots}.failed.json")

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


# ---- which finalists have answered which test rows on this machine: each counts as a comparison on them --------------
# A file for each set of test rows, by its fingerprint. It is written when answers are kept, and outlives its study.
def _record_use(finalist: Candidate) -> None:
    """Record that a finalist has answered its test rows; again changes nothing."""
    if not finalist.test_fingerprint:
        return
    path, own = _uses_path(finalist.test_fingerprint), [finalist.task, finalist.key]
    ensure_dir(path.parent)
    with disk_faults(path), exclusive(path):
        if own not in (known := _read_uses(path)):
            write_atomic(path, json.dumps([*known, own], indent=1))


def uses(task: str, test_fingerprint: str) -> list[str]:
    """Return the keys of a task's finalists that have answered these test rows, in order.

    Raises:
        HomeError: the file is damaged.
    """
    return [key for known, key in _read_uses(_uses_path(test_fingerprint)) if known == task]


def _uses_path(test_fingerprint: str) -> Path:
    return home() / "test_set_uses" / f"{test_fingerprint}.json"


def _read_uses(path: Path) -> list[list[str]]:
    try:
        return [[str(task), str(key)] for task, key in json.loads(path.read_text())]
    except FileNotFoundError:
        return []
    except (ValueError, TypeError) as error:
        raise HomeError(
            f"{path} must list the finalists that have answered these test rows, but it is damaged.",
            hint="restore it from a backup: without it, a comparison on these rows would be held to too little",
        ) from error
