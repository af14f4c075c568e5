"""Where baselines and warnings are printed: below a study's trials, and beside a task's versions."""

from __future__ import annotations

import json
from dataclasses import replace

import pytest
from support.reports import measured as report
from support.studies import study
from support.toy_language import writing
from support.toys import TASK, adapter, candidate

from loraxs_search.cli.launch import show_results
from loraxs_search.log.events import TrialEnded, TrialReported, TrialStarted
from loraxs_search.records.search import Baseline, PromotionRule
from loraxs_search.records.trial import AdapterSize, TrialReport, TrialState
from loraxs_search.registry.changes import Promoter
from loraxs_search.search.driver.result import SearchResult

BASELINES = (
    Baseline("constant", {"accuracy": 0.5}, {"accuracy": 0.52}, answer=1, seconds=0.04),
    Baseline("tfidf", {"accuracy": 0.75}, {"accuracy": 0.7412}, seconds=1.26),
    Baseline("features", seconds=10.0, failed="it needs 80 s of a core or more, and has 10"),
)
CELLS = [
    ["constant", "BASELINE", "-", "0.5000", "0.5200", "-", "-", "0.0", "-"],
    ["tfidf", "BASELINE", "-", "0.7500", "0.7412", "-", "-", "1.3", "-"],
    ["features", "BASELINE", "-", "-", "-", "-", "-", "10.0", "-"],
]


@pytest.fixture
def measured(store_uri):
    """A study with a trial and baselines whose search has not come to its end."""
    folder = study("s", store_uri)
    folder.write_baselines(BASELINES)
    journal = folder.journal()
    journal.append(TrialStarted(trial_id="00000", params={"rank": 4}))
    journal.append(TrialReported(report=TrialReport("00000", 8, {"accuracy": 0.6}, 0.5, 1.0, 10, AdapterSize(1, 1, 1))))
    journal.append(TrialEnded(trial_id="00000", state=TrialState.COMPLETE, reason="ran all steps"))
    return folder


def test_status_shows_baselines_below_the_trials_with_test_scores_once_the_search_has_chosen(say, measured):
    said = say("status", "s")
    assert f"no score of features: {BASELINES[2].failed}\n" in said.err
    shown = [line.split() for line in said.out.splitlines()]
    assert shown[1][:2] == ["00000", "COMPLETE"]
    assert shown[2:] == [[*row[:4], "-", *row[5:]] for row in CELLS]
    told = json.loads(say("status", "s", "--json").out)
    assert len(told["trials"]) == 1
    assert [y["test_metrics"] for y in told["baselines"]] == [{}, {}, {}]
    measured.write_candidates([])
    assert [line.split() for line in say("status", "s").out.splitlines()][2:] == CELLS
    constant, tfidf, features = json.loads(say("status", "s", "--json").out)["baselines"]
    assert (constant["answer"], tfidf["test_metrics"]) == (1, {"accuracy": 0.7412})
    assert features["failed"] == BASELINES[2].failed


def test_a_search_ends_with_its_baselines(measured, capsys):
    measured.write_candidates([])
    result = SearchResult("s", tuple(measured.journal().records.values()), (), 1.0)
    show_results([result], as_json=False)
    assert [line.split() for line in capsys.readouterr().out.splitlines()][2:] == CELLS
    show_results([result], as_json=True)
    assert len(json.loads(capsys.readouterr().out)["baselines"]) == 3


def test_show_has_them_beside_the_adapters_own_score(say, store_uri, tmp_path):
    better = replace(candidate("00000", 0.9), baselines=BASELINES)
    rule = PromotionRule(confidence=0, require="constant")
    Promoter(store_uri, "toy").promote(rule, TASK, [better], {"00000": adapter(tmp_path / "a", "00000")}, True)
    heading, row = say("show", "toy").out.splitlines()
    assert heading.split()[:5] == ["version", "accuracy", "constant", "tfidf", "features"], "no refit, no seeds"
    assert row.split()[:5] == ["1", "0.9000", "0.5200", "0.7412", "-"]
    assert heading.endswith("  aliases")
    assert row.endswith("  champion")
    (told,) = json.loads(say("show", "toy", "--json").out)
    assert [y["name"] for y in told["candidate"]["baselines"]] == ["constant", "tfidf", "features"]


def test_after_a_rollback_show_names_the_champion_and_marks_scores_of_other_test_rows(say, store_uri, tmp_path):
    rule = PromotionRule(confidence=0, require="constant")
    for name, rows in (("00000", "old"), ("00001", "new")):
        made = replace(candidate(name, 0.9), test_fingerprint=rows)
        Promoter(store_uri, "toy").promote(rule, TASK, [made], {name: adapter(tmp_path / name, name)}, True)
    Promoter(store_uri, "toy").rollback()
    shown = say("show", "toy")
    assert "load it: loraxs-search pull toy\n" in shown.err
    assert [line.split()[:3:2] for line in shown.out.splitlines()[1:]] == [["2", "0.5000"], ["1", "*"]]


# ---- answers that were cut -------------------------------------------------------------------------------------------
def test_cut_answers_are_warned_of_in_status_and_at_the_end_of_a_search(say, store_uri, capsys):
    warning = "trial 00000: 50% of the answers were cut at max_new_tokens=6: raise `generation.max_new_tokens`, or"
    journal = study("s", store_uri, task=writing()).journal()
    scores = {"exact_match": 0.1, "unparsed": 0.0, "unended": 0.5, "loss": 1.0}
    journal.append(TrialStarted(trial_id="00000", params={"rank": 4}))
    journal.append(TrialReported(report=report("00000", 8, scores)))
    journal.append(TrialEnded(trial_id="00000", state=TrialState.COMPLETE, reason="ran all steps"))
    shown = say("status", "s")
    assert f"warning: {warning}" in " ".join(shown.err.split())
    assert "unended" in shown.out
    assert json.loads(say("status", "s", "--json").out)["warnings"][0].startswith(warning)
    show_results([SearchResult("s", tuple(journal.records.values()), (), 1.0)], as_json=True)
    assert f"warning: {warning}" in capsys.readouterr().err
