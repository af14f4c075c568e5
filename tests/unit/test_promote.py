"""What a promotion knows beside its candidates: finalists of other studies, and what baselines answered."""

from __future__ import annotations

from dataclasses import replace

import pytest
from support.searched_studies import Tried, confirm, searched

import loraxs_search
from loraxs_search.errors import HomeError
from loraxs_search.housekeeping import collect, remove_study
from loraxs_search.records.search import Baseline, PromotionRule
from loraxs_search.registry.changes import Promoter
from loraxs_search.search.driver.result import lacks_baseline
from loraxs_search.studies.folder import StudyFolder

LABELS = [0, 1] * 20


@pytest.fixture
def finalist(fresh_home):
    """Return a finished study whose finalist answers so many of 40 test rows rightly."""

    def make(name: str, right: int, test_fingerprint: str = "test", **other):
        folder = searched(name, [Tried({"rank": 4}, 0.8)], **other)
        answers = [label if row < right else 1 - label for row, label in enumerate(LABELS)]
        confirm(folder, "00000", [0.8], answers, LABELS, test_fingerprint)
        return folder

    return make


def test_finalists_of_other_studies_have_looked_at_the_test_rows_whether_or_not_they_were_decided_on(
    finalist, store_uri
):
    for name, rows in (("first", "test"), ("second", "test"), ("elsewhere", "other")):
        finalist(name, 20, rows)

    def number(study: str) -> int:
        return loraxs_search.promote(study, tracking_uri=store_uri).comparisons[0].number

    assert number("second") == 2
    assert number("elsewhere") == 1
    assert number("first") == 2, "it was counted"
    assert number("second") == 2
    finalist("third", 20)
    assert number("third") == 3


def test_removing_a_study_removes_no_use_of_test_rows(finalist, store_uri):
    for name in ("first", "second", "third"):
        finalist(name, 20)
    remove_study("first")
    collect(0.0)
    assert loraxs_search.promote("third", tracking_uri=store_uri).comparisons[0].number == 3


def test_a_use_on_another_machine_counts(finalist, store_uri, fresh_home, monkeypatch):
    folder = finalist("first", 20)
    Promoter(store_uri, "t").record_use(folder.candidates()[0])
    monkeypatch.setenv("LORAXS_HOME", str(fresh_home / "another"))
    finalist("second", 20)
    for _ in range(2):
        assert loraxs_search.promote("second", tracking_uri=store_uri).comparisons[0].number == 2


def test_a_damaged_list_of_uses_promotes_nothing(finalist, store_uri, fresh_home):
    finalist("first", 20)
    (path,) = (fresh_home / "test_set_uses").glob("*.json")
    path.write_text("[")
    with pytest.raises(HomeError):
        loraxs_search.promote("first", tracking_uri=store_uri)


def test_finalists_of_studies_that_go_on_count_too(finalist, store_uri):
    for name in ("first", "second"):
        finalist(name, 20)
    goes_on = StudyFolder.open("first")
    goes_on.set_candidates_aside()
    assert goes_on.candidates() is None
    assert loraxs_search.promote("second", tracking_uri=store_uri).comparisons[0].number == 2
    finalist("third", 20)
    (StudyFolder.open("third").path / "candidates.json").unlink()  # interrupted before it came to its end
    finalist("fourth", 20)
    assert loraxs_search.promote("fourth", tracking_uri=store_uri).comparisons[0].number == 4


@pytest.mark.parametrize(("answers", "rows"), [(True, "test"), (True, "others"), (False, "test")])
def test_what_baselines_answered_is_kept_apart_and_held_against_the_finalist(finalist, store_uri, answers, rows):
    folder = finalist("s", 36, promotion=PromotionRule())
    said = tuple(map(float, [*LABELS[:38], 1, 0]))  # right in 38 rows
    scores = ({"accuracy": 0.95}, {"accuracy": 0.95})
    linear = [
        Baseline(name, *scores, test_answers=said if answers else (), test_rows=rows) for name in ("tfidf", "features")
    ]
    folder.write_baselines([Baseline("constant", answer=0), *linear])
    assert {one.test_answers for one in folder.baselines() or ()} == {()}
    assert folder.baseline_answers() == ({one.name: one for one in linear} if answers else {})
    folder.write_candidates([replace(one, baselines=folder.baselines() or ()) for one in folder.candidates() or []])
    decision = loraxs_search.promote("s", tracking_uri=store_uri)
    assert not decision.promoted
    why = "worse than tfidf (accuracy 0.9500)" if rows == "test" else "are to test rows with fingerprint others"
    assert (why if answers else "the answers of tfidf to the test rows are missing") in decision.reasons[-1]
    assert lacks_baseline(folder) is not answers
    if answers:  # of another task's study
        kept = folder.path / "baselines.answers.json"
        kept.write_text(kept.read_text().replace('{"t"', '{"another"'))
        assert folder.baseline_answers() == {}


def test_require_constant_is_for_one_decision_and_recorded(finalist, store_uri):
    finalist("s", 20, promotion=PromotionRule())
    refused = loraxs_search.promote("s", tracking_uri=store_uri)
    assert "was not measured" in refused.reasons[-1]
    decision = loraxs_search.promote("s", require="constant", tracking_uri=store_uri)
    assert "no better than the constant answer" in decision.reasons[-1]
    assert "`require: constant`, for this decision" in loraxs_search.history("t", tracking_uri=store_uri)[-1].reasons
