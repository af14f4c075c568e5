"""What a study keeps of trials that people add, and of the candidates that it had before it went on."""

from __future__ import annotations

import json
from pathlib import Path

import pytest
from safetensors.numpy import load, save
from support.reports import report
from support.searched_studies import Tried, confirm, searched
from support.studies import study

from loraxs_search.errors import StudyError
from loraxs_search.records import Lineage, Origin, TrialRecord, TrialState, to_json
from loraxs_search.studies import read_reports
from loraxs_search.studies.lineage import Stage, seed_trial, stages
from loraxs_search.studies.snapshots import handed_on, is_whole


def snapshot(**header: object) -> bytes:
    import numpy as np

    values = {"version": 1, "trial_id": "00000", "step": 20, "device_s": 3.0, "num_tokens": 5, **header}
    values.setdefault("reports", json.loads(to_json([report("00000", 10, 0.5), report("00000", 20, 0.6)])))
    return save({"parameter/R": np.ones((3, 3), np.float32)}, {"trial": json.dumps(values)})


def test_origin_and_lineage_are_in_the_journal_and_come_back(fresh_home: Path) -> None:
    folder = study("s")
    lineage = Lineage("s", "00000", 20)
    journal = folder.journal()
    journal.trial_started("00000", {"rank": 4})
    journal.trial_started("00001", {"rank": 4}, Origin(command="abc", lineage=lineage, is_hidden=True))
    plain, clone = folder.journal().records.values()
    assert (plain.command, plain.lineage, plain.is_hidden) == ("", None, False)
    assert (clone.command, clone.lineage, clone.is_hidden) == ("abc", lineage, True)
    assert folder.journal().records == journal.records


def test_a_state_that_is_handed_on_is_the_same_but_for_whose_it_is() -> None:
    given = handed_on(snapshot(), "00007")
    (first,) = read_reports(given)
    assert (first.trial_id, first.step, first.device_s) == ("00007", 20, 0.0)
    assert (load(given)["parameter/R"] == load(snapshot())["parameter/R"]).all()
    assert handed_on(given, "00000") == handed_on(snapshot(), "00000")
    assert is_whole(given)
    assert not is_whole(snapshot(elsewhere="a file"))


def test_a_state_without_a_report_or_none_at_all_is_refused() -> None:
    with pytest.raises(StudyError, match="must have a report"):
        handed_on(snapshot(reports=[]), "00007")
    with pytest.raises(StudyError, match="must be a safetensors file"):
        handed_on(b"not one", "00007")


def test_a_clone_whose_state_is_gone_is_refused(fresh_home: Path) -> None:
    with pytest.raises(StudyError, match=r"A clone must have the state that it begins with, but .* is missing"):
        study("s").begin_clone("00001", "abc")


def test_stages_lead_back_to_the_first_trial() -> None:
    def trial(name: str, *lineage: object) -> TrialRecord:
        origin = Lineage("s", *lineage) if lineage else None  # type: ignore[arg-type]
        return TrialRecord(name, {"own": name}, TrialState.COMPLETE, lineage=origin)

    records = {each.trial_id: each for each in (trial("0"), trial("1", "0", 20), trial("2", "1", 30), trial("3", "2"))}
    assert stages(records["2"], records) == (
        Stage("0", {"own": "0"}, 20),
        Stage("1", {"own": "1"}, 30),
        Stage("2", {"own": "2"}),
    )
    assert seed_trial(records["2"], records) == "0"
    assert stages(records["3"], records) == (Stage("3", {"own": "3"}),), "a cold clone begins anew"


def test_candidates_of_before_are_set_aside_with_their_finalists(fresh_home: Path) -> None:
    folder = searched("s", [Tried({"rank": 4}, 0.9), Tried({"rank": 8}, 0.8)])
    for _ in range(2):  # a driver may be killed in between
        confirm(folder, "00000", [0.9], [1, 0], [1, 1])
        folder.set_candidates_aside()
        folder.set_candidates_aside()
        assert folder.candidates() is None
    assert folder.earlier_finalists() == ("00000",)
    confirm(folder, "00001", [0.8], [1, 1], [1, 1])
    folder.set_candidates_aside()
    assert folder.earlier_finalists() == ("00000", "00001")
    assert folder.confirmations().rows_path("00000").is_file(), "what it has answered is not asked again"
    assert folder.confirmations().finalists() == ("00000", "00001"), "also where the end of a search was interrupted"


def test_a_study_that_goes_on_has_no_end_in_its_journal(fresh_home: Path) -> None:
    folder = searched("s", [Tried({"rank": 4}, 0.9)])
    journal = folder.journal()
    journal.search_ended("out of time")
    journal.reopened(1)
    for each in (journal, folder.journal()):
        assert (each.notice, each.is_reopened, each.num_reopenings) == (None, True, 1)
    journal.search_ended("")
    assert (folder.journal().notice, folder.journal().is_reopened) == ("", False)
