"""The sampler's memory on disk: read by Optuna, safe against torn lines, refused with its place when it cannot be."""

from __future__ import annotations

from pathlib import Path

import optuna
import pytest
from optuna.storages import JournalStorage
from optuna.storages.journal import JournalFileBackend
from optuna.trial import TrialState

from loraxs_search.errors import HomeError
from loraxs_search.search.ledger.optuna_storage import SingleWriterJournal, open_optuna_study
from loraxs_search.search.tune.sampler import live_trial


def test_what_was_written_is_there_when_it_is_opened_again(tmp_path: Path) -> None:
    first = open_optuna_study(tmp_path / "o.jsonl", "s", "minimize")
    for value in (0.3, 0.1, 0.2):
        trial = first.ask()
        trial.suggest_float("lr", 0, 1)
        trial.report(value + 1, 10)
        first.tell(trial, value)
    first.ask()
    second = open_optuna_study(tmp_path / "o.jsonl", "s", "minimize")
    assert [t.params for t in second.trials] == [t.params for t in first.trials]
    assert [t.state for t in second.trials] == [TrialState.COMPLETE] * 3 + [TrialState.RUNNING]
    assert second.best_trial.number == 1
    assert second.best_trial.intermediate_values == {10: 1.1}


@pytest.mark.parametrize("torn", ['{"op_code": 4, "wor', '{"op_code": 4}'])
def test_a_torn_line_is_not_read_and_cut_off_by_the_next_write(torn: str, tmp_path: Path) -> None:
    path = tmp_path / "o.jsonl"
    study = open_optuna_study(path, "s", "minimize")
    study.tell(study.ask(), 0.5)
    whole = path.read_bytes()
    path.write_bytes(whole + torn.encode())
    again = open_optuna_study(path, "s", "minimize")
    assert again.best_value == 0.5
    again.tell(again.ask(), 0.25)
    assert path.read_bytes().startswith(whole)
    assert torn.encode() not in path.read_bytes()
    assert open_optuna_study(path, "s", "minimize").best_value == 0.25


def test_a_log_keeps_only_what_was_not_read(tmp_path: Path) -> None:
    log = SingleWriterJournal(tmp_path / "o.jsonl")
    log.append_logs([{"a": 1}, {"b": 2}])
    assert log.read_logs(0) == [{"a": 1}, {"b": 2}]
    log.append_logs([{"c": 3}])
    assert log.read_logs(2) == [{"c": 3}]
    assert log.read_logs(3) == []


def test_a_trial_asked_for_in_another_process_can_end(tmp_path: Path) -> None:
    """Holds the one private name we use, `FrozenTrial._trial_id`, to its meaning."""
    first = open_optuna_study(tmp_path / "o.jsonl", "s", "maximize")
    first.ask().suggest_float("lr", 0, 1)
    second = open_optuna_study(tmp_path / "o.jsonl", "s", "maximize")
    frozen = second.get_trials()[0]
    trial = live_trial(second, frozen)
    assert trial.number == frozen.number
    assert trial.suggest_float("lr", 0, 1) == frozen.params["lr"]
    second.tell(frozen.number, 0.5)
    theirs = JournalStorage(JournalFileBackend(str(tmp_path / "o.jsonl")))
    assert optuna.load_study(study_name="s", storage=theirs).trials[0].value == 0.5, "Optuna itself reads it"


def test_a_log_that_cannot_be_opened_is_refused_with_its_place(tmp_path: Path) -> None:
    (tmp_path / "file").write_text("")
    with pytest.raises(HomeError, match="file/o"):
        open_optuna_study(tmp_path / "file" / "o.jsonl", "s", "minimize")
