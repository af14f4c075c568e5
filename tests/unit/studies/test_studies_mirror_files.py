"""What of a study is copied, and in which order."""

from __future__ import annotations

from loraxs_search.studies.mirror_files import in_copy_order


def test_what_speaks_of_other_files_is_copied_after_them() -> None:
    """A copy that was cut short is one of an earlier moment; `study.json`, with which it exists, comes last."""
    last_to_first = [
        *("study.json", "candidates.json", "confirmed/00001.json", "journal.jsonl", "adapters/00001/manifest.json"),
        *("snapshots/00001", "yardsticks.json", "identity.json", "space.yaml", "tracking.jsonl"),
    ]
    assert in_copy_order(last_to_first) == last_to_first[::-1]


def test_what_belongs_to_one_machine_is_not_copied() -> None:
    assert in_copy_order(["optuna.jsonl", ".tracking.lock", "snapshots/.00001.part", "tune/x", "study.lock"]) == []
