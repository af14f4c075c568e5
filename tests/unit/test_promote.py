"""What a promotion knows beside its candidates: finalists of other studies, and what baselines answered."""

from __future__ import annotations

from dataclasses import replace

import pytest
from support.studies import Tried, confirm, searched

import loraxs_search
from loraxs_search.errors import HomeError
from loraxs_search.housekeeping import collect, remove_study
from loraxs_search.records.search import Baseline, PromotionRule
from loraxs_search.registry.changes import Promoter
from loraxs_search.search.driver.result import lacks_baseline
from loraxs_search.studies.folder import StudyFolder

LABELS = [0, 1] * 20


def finalist(name: str, right: int = 20, test_fingerprint: str = "test", **other) -> StudyFolder:
    """Return a finished study whose finalist answers so many of 40 test rows rightly."""
    folder = searched(name, [Tried({"rank": 4}, 0.8)], **other)
    answers = [label if row < right else 1 - label for row, label in enumerate(LABELS)]
    confirm(folder, "00000", [0.8], answers, LABELS, test_fingerprint)
    return folder


def number(study: str) -> int:
    """Decide on a study; return which comparison on its test rows that was."""
    return loraxs_search.promote(study).comparisons[0].number


def test_finalists_of_other_studies_have_looked_at_the_test_rows_whatever_becomes_of_them(store_uri):
    for name, rows in (("first", "test"), ("second", "test"), ("elsewhere", "other")):
        finalist(name, test_fingerprint=rows)
    assert [number(study) for study in ("second", "elsewhere", "first", "second")] == [2, 1, 2, 2]
    StudyFolder.open("first").set_candidates_aside()  # it goes on
    assert number("second") == 2
    third = finalist("third")
    (third.path / "candidates.json").unlink()  # interrupted before it came to its end
    finalist("fourth")
    remove_study("first", force=True)
    collect(0.0)
    assert number("fourth") == 4


def test_a_use_on_another_machine_counts_and_a_damaged_list_of_uses_promotes_nothing(
    store_uri, fresh_home, monkeypatch
):
    Promoter(store_uri, "t").record_use(finalist("first").candidates()[0])
    monkeypatch.setenv("LORAXS_HOME", str(fresh_home / "another"))
    monkeypatch.setenv("MLFLOW_TRACKING_URI", store_uri)
    finalist("second")
    assert [number("second"), number("second")] == [2, 2]
    (path,) = (fresh_home / "another" / "test_set_uses").glob("*.json")
    path.write_text("[")
    with pytest.raises(HomeError):
        number("second")


@pytest.mark.parametrize(("answers", "rows"), [(True, "test"), (True, "others"), (False, "test")])
def test_what_baselines_answered_is_kept_apart_and_held_against_the_finalist(store_uri, answers, rows):
    folder = finalist("s", 36, promotion=PromotionRule())
    said = tuple(map(float, [*LABELS[:38], 1, 0]))  # right in 38 rows
    scores = ({"accuracy": 0.95}, {"accuracy": 0.95})
    kept = {"test_answers": said if answers else (), "test_rows": rows}
    linear = [Baseline(name, *scores, **kept) for name in ("tfidf", "features")]
    folder.write_baselines([Baseline("constant", answer=0), *linear])
    assert {one.test_answers for one in folder.baselines() or ()} == {()}
    assert folder.baseline_answers() == ({one.name: one for one in linear} if answers else {})
    folder.write_candidates([replace(one, baselines=folder.baselines() or ()) for one in folder.candidates() or []])
    decision = loraxs_search.promote("s")
    assert not decision.promoted
    why = "worse than tfidf (accuracy 0.9500)" if rows == "test" else "are to test rows with fingerprint others"
    assert (why if answers else "the answers of tfidf to the test rows are missing") in decision.reasons[-1]
    assert lacks_baseline(folder) is not answers
    if answers:  # of another task's study
        stored = folder.path / "baselines.answers.json"
        stored.write_text(stored.read_text().replace('{"t"', '{"another"'))
        assert folder.baseline_answers() == {}


def test_require_constant_is_for_one_decision_and_recorded(store_uri):
    finalist("s", promotion=PromotionRule())
    assert "was not measured" in loraxs_search.promote("s").reasons[-1]
    decision = loraxs_search.promote("s", require="constant")
    assert "no better than the constant answer" in decision.reasons[-1]
    assert "`require: constant`, for this decision" in loraxs_search.history("t")[-1].reasons
