"""What a study keeps of trials that people add, and of the candidates that it had before it went on."""

from __future__ import annotations

from support.searched_studies import Tried, confirm, searched
from support.studies import study

from loraxs_search.log.events import Reopened, TrainingEnded, TrialStarted
from loraxs_search.records.trial import Lineage


def test_origin_and_lineage_are_in_the_journal_and_come_back(fresh_home):
    folder = study("s")
    lineage = Lineage("s", "00000")
    journal = folder.journal()
    journal.append(TrialStarted(trial_id="00000", params={"rank": 4}))
    journal.append(TrialStarted(trial_id="00001", params={"rank": 4}, command="abc", lineage=lineage))
    plain, clone = folder.journal().records.values()
    assert (plain.command, plain.lineage) == ("", None)
    assert (clone.command, clone.lineage) == ("abc", lineage)
    assert folder.journal().records == journal.records


def test_candidates_of_before_are_set_aside_with_their_finalists(fresh_home):
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
    assert folder.confirmed.rows_path("00000").is_file(), "what it has answered is not asked again"
    assert folder.confirmed.finalists() == ("00000", "00001"), "also where the end of a search was interrupted"


def test_a_study_that_goes_on_has_no_end_in_its_journal(fresh_home):
    folder = searched("s", [Tried({"rank": 4}, 0.9)])
    journal = folder.journal()
    journal.append(TrainingEnded(notice="out of time"))
    journal.append(Reopened(number=1))
    for each in (journal, folder.journal()):
        assert (each.notice, each.is_reopened, each.num_reopenings) == (None, True, 1)
    journal.append(TrainingEnded(notice=""))
    assert (folder.journal().notice, folder.journal().is_reopened) == ("", False)
