"""What is known of a study's candidates: they themselves, and results on them, file by file.

A driver that was killed continues from them.
"""

from __future__ import annotations

import json
from pathlib import Path

from loraxs_search.errors import HomeError
from loraxs_search.home import disk_faults, ensure_dir, exclusive, home, write_atomic
from loraxs_search.records.adapter import Answers
from loraxs_search.records.codec import Split, check_trial_id, to_json
from loraxs_search.records.search import Baseline, Candidate, Refit
from loraxs_search.studies.info import RecordFile


class Confirmations:
    """Refits, scores on all validation rows, answers to test rows, and the finalist, in `confirmed/` of a study.

    A file is written whole, once its work is done: what has none is to be done, what has one is not done again.

    Attributes:
        base_rows_path: The safetensors file with the answers of the untouched base to the test rows.
    """

    def __init__(self, path: Path) -> None:
        self._path, self.base_rows_path = path, path / "base.safetensors"

    def finalist(self, trial_id: str) -> Candidate | None:
        """Return the finalist, once it has been scored on the test rows and kept."""
        return RecordFile(Candidate, self._path / f"{check_trial_id(trial_id)}.json").read()

    def finalists(self) -> tuple[str, ...]:
        """Return the adapters that have answered all test rows, by name."""
        return tuple(sorted(path.stem for path in self._path.glob("*.safetensors") if path != self.base_rows_path))

    def keep_finalist(self, finalist: Candidate, rows: bytes) -> None:
        """Keep the scored finalist and its answers, which are written first; before that, that they were made."""
        if finalist.test_fingerprint:
            path, own = _uses_path(finalist.test_fingerprint), [finalist.task, finalist.key]
            ensure_dir(path.parent)
            with disk_faults(path), exclusive(path):
                if own not in (known := _read_uses(path)):
                    write_atomic(path, json.dumps([*known, own], indent=1))
        write_atomic(self.rows_path(finalist.trial_id), rows)
        write_atomic(self._path / f"{finalist.trial_id}.json", to_json(finalist, indent=2))

    def rows_path(self, trial_id: str) -> Path:
        """Return the safetensors file with the finalist's answers to the test rows."""
        return self._path / f"{check_trial_id(trial_id)}.safetensors"

    def refit(self, name: str) -> RecordFile[Refit]:
        """Return the file of a refit that has been trained."""
        return RecordFile(Refit, self._path / f"{check_trial_id(name)}.refit.json")

    def validation(self, name: str) -> RecordFile[dict[str, float]]:
        """Return the file of a candidate's metrics on all validation rows; they are empty where it has none."""
        return RecordFile(dict[str, float], self._path / f"{check_trial_id(name)}.validation.json")

    def base_failure(self, shots: int) -> RecordFile[Baseline]:
        """Return the file that says why the untouched base could not answer with so many worked examples."""
        return RecordFile(Baseline, self._path / f"base-{shots}.failed.json")

    def answers(self, of: str | int, split: Split = "test") -> dict[range, Answers]:
        """Return answers to rows of a split, by the rows that they are to, first rows first.

        Args:
            of: An adapter's name; of the untouched base, the number of worked examples in each prompt.
        """
        by_rows = {}
        for path in self._path.glob(f"{_owner(of)}.{split}-*-*.json"):
            start, stop = path.stem.rpartition(".")[2].split("-")[1:]
            by_rows[range(int(start), int(stop))] = RecordFile(Answers, path).load()
        return dict(sorted(by_rows.items(), key=lambda item: item[0].start))

    def write_answers(self, of: str | int, rows: range, answers: Answers, split: Split = "test") -> None:
        """Keep answers to these rows of a split; see `answers`."""
        write_atomic(self._path / f"{_owner(of)}.{split}-{rows.start}-{rows.stop}.json", to_json(answers))


def _owner(of: str | int) -> str:
    return check_trial_id(of) if isinstance(of, str) else f"base-{of}"


# ---- which finalists have answered which test rows on this machine: each counts as a comparison on them --------------
# A file for each set of test rows, by its fingerprint. It is written when answers are kept, and outlives its study.
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
