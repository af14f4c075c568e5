"""The finalist's answers to test rows, class by class."""

from __future__ import annotations

from dataclasses import replace

import pytest
from support.studies import TASK

from loraxs_search.records.adapter import ClassScores, Sample
from loraxs_search.records.host import Answers
from loraxs_search.search.driver.work_items import class_report

TASK_OF_THREE = replace(TASK, labels=("Law", "News", "Sports"))
WRONG = Sample("a text", "Law", "News")


def test_classes_are_counted_over_all_parts() -> None:
    parts = [Answers((1, 1), (0, 1), 0.0, wrong=(WRONG,)), Answers((1, 2), (0, 2), 0.0, wrong=(WRONG,) * 30)]
    report = class_report(parts, TASK_OF_THREE)
    assert report is not None
    law, news, sports = report.classes
    assert law == ClassScores("Law", 2, None, 0.0, 0.0), "no answer counts for its precision"
    assert (news.rows, news.precision, news.recall, news.f1) == (1, pytest.approx(1 / 3), 1.0, 0.5)
    assert (sports.precision, sports.recall, sports.f1) == (1.0, 1.0, 1.0)
    assert report.confusion == ((0, 2, 0), (0, 1, 0), (0, 0, 1))
    assert report.never_answered == ["Law"]
    assert report.wrong == (WRONG,) * 20


def test_numbers_have_no_classes() -> None:
    assert class_report([Answers((0.5,), (0.25,), 0.0)], replace(TASK, labels=())) is None
