"""What a promotion knows beside its candidates: finalists of other studies, and what baselines answered."""

from __future__ import annotations

from dataclasses import replace

import pytest
from support.searched_studies import Tried, confirm, searched

import loraxs_search
from loraxs_search.records import Yardstick
from loraxs_search.studies import StudyFolder

LABELS = [0, 1] * 20


@pytest.fixture
def finalist(fresh_home):
    """Return a finished study whose finalist answers so many of 40 test rows rightly."""

    def make(name: str, right: int, test_fingerprint: str = "test"):
        folder = searched(name, [Tried({"rank": 4}, 0.8)])
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
        return loraxs_search.promote(study, tracking_uri=store_uri).looks[0].number

    assert number("second") == 2
    assert number("elsewhere") == 1
    assert number("first") == 2, "it was counted"
    assert number("second") == 2
    finalist("third", 20)
    assert number("third") == 3


def test_finalists_of_studies_that_go_on_count_too(finalist, store_uri):
    for name in ("first", "second"):
        finalist(name, 20)
    goes_on = StudyFolder.open("first")
    goes_on.set_candidates_aside()
    assert goes_on.candidates() is None
    assert loraxs_search.promote("second", tracking_uri=store_uri).looks[0].number == 2
    finalist("third", 20)
    (StudyFolder.open("third").path / "candidates.json").unlink()  # interrupted before it came to its end
    finalist("fourth", 20)
    assert loraxs_search.promote("fourth", tracking_uri=store_uri).looks[0].number == 4


@pytest.mark.parametrize("kept", [True, False])
def test_what_a_baseline_answered_is_kept_apart_and_held_against_the_finalist(finalist, store_uri, kept):
    folder = finalist("s", 36)
    answers = (*map(float, LABELS[:38]), 1.0, 0.0)  # right in 38 rows
    scores = ({"accuracy": 0.95}, {"accuracy": 0.95})
    folder.write_yardsticks([Yardstick("tfidf", *scores, test_answers=answers if kept else ())])
    assert [one.test_answers for one in folder.yardsticks() or ()] == [()]
    assert folder.yardstick_answers() == ({"tfidf": answers} if kept else {})
    folder.write_candidates([replace(one, yardsticks=folder.yardsticks() or ()) for one in folder.candidates() or []])
    decision = loraxs_search.promote("s", tracking_uri=store_uri)
    assert not decision.promoted
    assert "worse than tfidf (accuracy 0.9500)" in decision.reasons[-1]
