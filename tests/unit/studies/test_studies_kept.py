"""The state of a trial's best step, kept beside its last one, whatever is killed when and wherever it goes on."""

from __future__ import annotations

from collections.abc import Iterator
from pathlib import Path

import pytest
from support.reports import report
from support.studies import study

from loraxs_search.errors import StudyError
from loraxs_search.log.events import TrialStarted
from loraxs_search.records.search import SearchPlan
from loraxs_search.records.trial import TrialReport
from loraxs_search.studies import snapshots
from loraxs_search.studies.folder import StudyFolder
from loraxs_search.studies.mirror import Mirror, fetch
from loraxs_search.studies.snapshots import read_reports
from loraxs_search.studies.storage import Storage
from loraxs_search.trial.snapshot import Snapshot

SCORES = {10: 0.5, 20: 0.7, 30: 0.6, 40: 0.7, 50: 0.8, 60: 0.1}


def snapshot(step: int, scores: dict[int, float] = SCORES, trial: str = "00000") -> bytes:
    reports = tuple(report(trial, at, score) for at, score in scores.items() if at <= step)
    return Snapshot(trial, step, {}, {}, reports, 1.0, 10).to_bytes()


def step_of(state: bytes | None) -> int | None:
    return None if state is None else read_reports(state)[-1].step


@pytest.fixture
def kept(fresh_home):
    return study("best", search=SearchPlan(checkpoint="best"))


def files(kept: StudyFolder) -> list[str]:
    return sorted(path.name for path in (kept.path / "snapshots").iterdir())


def test_the_last_state_resumes_and_the_best_is_the_adapter(kept):
    assert kept.snapshots.read_kept("00000") is None
    best = {10: 10, 20: 20, 30: 20, 40: 20, 50: 50, 60: 50}
    for step in SCORES:
        kept.snapshots.write("00000", snapshot(step))
        assert step_of(kept.snapshots.read("00000")) == step
        assert step_of(kept.snapshots.read_kept("00000")) == best[step]
        assert len(files(kept)) <= 3  # the last, the best, and the one before that while the best is new
    assert files(kept) == ["00000.safetensors", "00000.step-50.safetensors"]
    for step in (10, 20):  # of a refit, which is apart
        kept.snapshots.write("00000.1", snapshot(step, {10: 0.9, 20: 0.1}, "00000.1"))
    assert (step_of(kept.snapshots.read_kept("00000")), step_of(kept.snapshots.read_kept("00000.1"))) == (50, 10)
    (kept.path / "snapshots" / "00000.step-50.safetensors").unlink()
    with pytest.raises(StudyError, match=r"00000\.step-50\.safetensors"):
        kept.snapshots.read_kept("00000")


@pytest.mark.parametrize("checkpoint", ["last", "best"])
def test_a_state_that_comes_late_replaces_no_newer_one(fresh_home, checkpoint):
    """As from a node that stood still while the trial went on elsewhere."""
    trial = study(checkpoint, search=SearchPlan(checkpoint=checkpoint))
    for step in (10, 20, 30, 40, 50):
        trial.snapshots.write("00000", snapshot(step))
    before, kept = files(trial), trial.snapshots.read_kept("00000")
    if checkpoint == "last":
        assert (before, kept) == (["00000.safetensors"], trial.snapshots.read("00000"))
    trial.snapshots.write("00000", snapshot(20, SCORES | {20: 0.99}))
    assert step_of(trial.snapshots.read("00000")) == 50
    assert (files(trial), trial.snapshots.read_kept("00000")) == (before, kept)
    (trial.path / "snapshots" / "00000.safetensors").write_bytes(b"damaged")
    trial.snapshots.write("00000", snapshot(20))
    assert step_of(trial.snapshots.read("00000")) == 20


def test_a_kill_between_two_writes_loses_nothing(kept, monkeypatch):
    for step in (10, 20, 30, 40):
        kept.snapshots.write("00000", snapshot(step))
    written: list[Path] = []

    def killed(path: Path, content: bytes) -> None:
        if written:
            raise KeyboardInterrupt
        written.append(path)
        write(path, content)

    write = snapshots.write_atomic
    with monkeypatch.context() as patched:
        patched.setattr(snapshots, "write_atomic", killed)
        with pytest.raises(KeyboardInterrupt):
            kept.snapshots.write("00000", snapshot(50))
    assert [path.name for path in written] == ["00000.step-50.safetensors"]
    assert (step_of(kept.snapshots.read("00000")), step_of(kept.snapshots.read_kept("00000"))) == (40, 20)
    scores = SCORES | {50: 0.3}  # repeated elsewhere, it is not the best again
    for step in (50, 60):
        kept.snapshots.write("00000", snapshot(step, scores))
    assert step_of(kept.snapshots.read_kept("00000")) == 20
    assert len(files(kept)) == 2


def test_a_copy_is_whole_at_every_moment(kept, storage, machine, monkeypatch):
    """However long a copy takes, and whatever the trial does meanwhile, it holds the best of the last that it holds."""
    machine("first")
    first = study("s", search=SearchPlan(checkpoint="best"), storage=storage.uri)
    steps: Iterator[int] = iter(SCORES)
    write = Storage.write

    def slowly(self: Storage, key: str, content: bytes, version: str | None) -> str:
        if "/snapshots/" in key and (step := next(steps, None)) is not None:
            first.snapshots.write("00000", snapshot(step))  # the trial reports while its states are copied
        version = write(self, key, content, version)
        last = storage.get("s/snapshots/00000.safetensors")
        if last is not None:
            reports: tuple[TrialReport, ...] = read_reports(last)
            best = first.checkpoint_selection.select(reports).step
            assert best == reports[-1].step or storage.get(f"s/snapshots/00000.step-{best}.safetensors") is not None
        return version

    first.journal().append(TrialStarted(trial_id="00000", params={}))
    first.snapshots.write("00000", snapshot(next(steps)))
    monkeypatch.setattr(Storage, "write", slowly)
    with Mirror(first, storage, lambda: None) as mirror:
        for _ in SCORES:
            mirror.copy()
    machine("second")
    second = fetch("s", storage)
    assert (step_of(second.snapshots.read("00000")), step_of(second.snapshots.read_kept("00000"))) == (60, 50)
