"""What the head of a report says was found, and whether it beats the baselines."""

from __future__ import annotations

from dataclasses import replace
from html import unescape

import pytest
from support.html_tables import tables_of
from support.searched_studies import Tried, confirm, recorded_search, searched
from support.studies import TASK
from support.toys import adapter

import loraxs_search
from loraxs_search.records.adapter import ClassReport, ClassScores, Sample
from loraxs_search.records.search import Baseline, PromotionRule
from loraxs_search.records.trial import TrialState
from loraxs_search.reports.html.page import write_report
from loraxs_search.reports.html.summary import ReportFacts, summary
from loraxs_search.search_space.load import load_space


def of(folder):
    return summary(ReportFacts.of(folder))


@pytest.fixture
def folder(fresh_home):
    return searched("s", [Tried({"rank": 4}, 0.8), Tried({"rank": 8}, 0.7)])


# ---- found, and against what -----------------------------------------------------------------------------------------
@pytest.mark.parametrize(("right", "beats"), [(39, True), (33, False), (20, False)])
def test_the_rule_judges_the_finalist_and_a_decision_says_the_same(fresh_home, store_uri, right, beats):
    folder = searched("s", [Tried({"rank": 4}, 0.8)], promotion=PromotionRule())
    adapter(folder.adapter_path("00000"), "00000", task=TASK, study="s")
    labels = [0, 1] * 20
    confirm(folder, "00000", [0.79, 0.77], [y if row < right else 1 - y for row, y in enumerate(labels)], labels)
    tfidf = (*map(float, labels[:30]), *(1.0 - y for y in labels[30:]))
    linear = [Baseline(n, {}, {"accuracy": 0.75}, test_answers=tfidf, test_rows="test") for n in ("tfidf", "features")]
    folder.write_baselines([Baseline("constant", {}, {"accuracy": 0.5}, answer=0), *linear])
    folder.write_candidates([replace(one, baselines=folder.baselines()) for one in folder.candidates()])
    said = of(folder)
    assert (
        said.found == f"The finalist, trial 00000, reaches accuracy {right / 40:.4f} on the test rows, in 1,000 bytes."
    )
    sentence = said.verdict.removeprefix("By the rule of promotion: ").removesuffix(".")
    assert ("significant (" in sentence) is beats
    assert said.opening == ((said.found, said.verdict) if beats else (said.verdict, said.found))
    notes = {label: note for label, _, note in said.numbers}
    assert notes["mean over seeds"] == "± 0.0141, 2 seeds, validation rows"
    decision = loraxs_search.promote("s", tracking_uri=store_uri)
    assert decision.promoted is beats
    assert decision.reasons[-1] == f"there was no champion; {sentence}"


def test_before_the_end_the_best_trial_counts_by_validation_rows(fresh_home):
    task = replace(TASK, validation_rows=500)
    folder = searched("s", [Tried({}, 0.8), Tried({}, 0.9, state=TrialState.RUNNING)], task=task, finished=False)
    folder.write_baselines([Baseline("constant", {"accuracy": 0.85}, {"accuracy": 0.1})])
    said = of(folder)
    assert "best so far, trial 00000, reaches accuracy 0.8000 on at most 500 validation rows" in said.found
    assert "0.0500 worse than constant (0.8500)" in said.verdict
    assert "1 of 2 trials ended, 1 begun, 0 to come" in said.notes[0]


def test_where_less_is_better_a_lower_loss_beats_and_without_a_score_nothing_was_found(fresh_home):
    task = replace(TASK, report_metric="loss", report_direction="minimize")
    folder = searched("s", [Tried({}, 0.3), Tried({}, 0.2)], task=task, finished=False)
    folder.write_baselines([Baseline("zero-shot", {"loss": 0.5}), Baseline("tfidf", {"accuracy": 0.9})])
    said = of(folder)
    assert said.verdict == "It beats every baseline on the validation rows; the nearest, zero-shot (0.5000), by 0.3000."
    assert said.opening == (said.found, said.verdict)
    none = of(searched("none", [Tried({}, 0.5, state=TrialState.FAIL)]))
    assert (none.found, none.verdict) == ("No trial has a score: nothing was found.", "")


def test_a_class_that_is_never_answered_is_named(folder, monkeypatch):
    confirm(folder, "00000", [0.79], answers=[1, 1, 1, 0], labels=[1, 1, 1, 1])
    scores = (ClassScores("Law", 4, None, 0.0, 0.0), ClassScores("News", 3, 0.4, 1.0, 0.6))
    report = ClassReport(scores, ((0, 4), (0, 3)), (Sample("a <b> text", "Law", "News"),))
    facts = replace(ReportFacts.of(folder), by_class=report)
    assert summary(facts).opening[-1] == "It never answers Law."
    monkeypatch.setattr(ReportFacts, "of", staticmethod(lambda _: facts))
    rows = list(tables_of(write_report(folder).read_text()).values())
    for table in (
        [["Law", "4", "", "0.0000", "0.0000"], ["News", "3", "0.4000", "1.0000", "0.6000"]],
        [["Law", "0", "4"], ["News", "0", "3"]],
        [["a <b> text", "Law", "News"]],
    ):
        assert table in rows


# ---- what it cost ----------------------------------------------------------------------------------------------------
def test_the_time_of_trials_is_summed_by_how_they_ended(fresh_home):
    """They report every 10 of 30 steps, each step a tenth of a second of a device."""
    folder = searched("s", [Tried({}, 0.8), Tried({}, 0.6, state=TrialState.PRUNED)], max_steps=30)
    times = {row[0]: row[1:3] for row in list(tables_of(write_report(folder).read_text()).values())[-2]}
    assert times == {"complete": ["1", "3.0 s"], "stopped early": ["1", "1.0 s"], "all": ["2", "4.0 s"]}


# ---- tables ----------------------------------------------------------------------------------------------------------
def test_failures_are_grouped_by_reason_the_most_frequent_first(fresh_home):
    folder = recorded_search("s", 120)
    rows = tables_of(write_report(folder).read_text())["What failed, and why."]
    assert [row[0] for row in rows] == ["trial", "refit"]
    assert rows[0][2] == "its loss must be finite, but is nan at step 12"
    failed = [r.trial_id for r in folder.journal().records.values() if r.state is TrialState.FAIL]
    assert rows[0][3].startswith(", ".join(failed[:3]))


# ---- again -----------------------------------------------------------------------------------------------------------
def test_the_command_to_repeat_it_has_the_overrides(fresh_home):
    space = load_space("movie_reviews", overrides=["search.trials=24", "parameters.rank={choice: [4, 8]}"])
    folder = searched("s", [Tried({}, 0.8)], space=space.text)
    object.__setattr__(folder.info, "space_source", space.source)
    words = f"loraxs-search launch {space.source} --set search.trials=24 --set 'parameters.rank={{choice: [4, 8]}}'"
    assert f"{words} --name s-again" in unescape(write_report(folder).read_text())
