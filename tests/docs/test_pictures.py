"""The picture of the README shows today's report."""

from __future__ import annotations

from dataclasses import replace

from support.pages import ROOT, fixed_words
from support.searched_studies import recorded_search
from support.studies import TASK

from loraxs_search.records.adapter import ClassReport, ClassScores
from loraxs_search.records.search import Baseline
from loraxs_search.reports.html.page import write_report
from loraxs_search.reports.html.summary import ReportFacts


def test_its_words_are_those_of_a_report_of_today(fresh_home, monkeypatch):
    """Where this fails, `python tests/docs/screenshots.py` makes the pictures anew."""
    folder = recorded_search("reviews", 6, task=replace(TASK, labels=("negative", "positive")))
    folder.write_baselines([Baseline("tfidf", {"accuracy": 0.7}, {"accuracy": 0.7})])
    facts = ReportFacts.of(folder)
    classes = tuple(ClassScores(label, 2, 0.5, 0.5, 0.5) for label in facts.task.labels)
    vars(facts)["by_class"] = ClassReport(classes, ((1, 1), (1, 1)))
    monkeypatch.setattr(ReportFacts, "of", staticmethod(lambda _: facts))
    pictured = (ROOT / "tests" / "docs" / "pictures" / "words.txt").read_text().splitlines()
    assert len(pictured) > 20
    assert set(pictured) <= set(fixed_words(write_report(folder).read_text()))
