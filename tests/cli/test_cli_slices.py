"""Scores by slice of the test rows: what `promote` and `history` say of them, and what a guard on them refuses."""

from __future__ import annotations

from dataclasses import replace

from support.searched_studies import Tried, confirm, searched
from support.studies import TASK
from support.toys import adapter

from loraxs_search.records.search import PromotionRule

LABELS = [0, 1] * 100
LANGUAGES = ["de"] * 40 + ["en"] * 150 + ["fr"] * 10
SLICED = replace(TASK, slices=("language",))


def test_a_guard_refuses_a_finalist_that_gains_on_the_whole_and_loses_a_slice(store_uri, say):
    loses = [*range(4), *range(100, 110), 195]
    for study, wrong, sliced in (("first", range(100, 170), False), ("worse", loses, True)):
        task, slices = (SLICED, {"language": LANGUAGES}) if sliced else (TASK, None)
        rule = PromotionRule(guards={"slice_loss": 0.05} if sliced else {}, require="constant")
        folder = searched(study, [Tried({"rank": 4}, 0.8)], task=task, promotion=rule)
        answers = [1 - label if row in wrong else label for row, label in enumerate(LABELS)]
        confirm(folder, "00000", [0.8], answers, LABELS, slices=slices)
        adapter(folder.adapter_path("00000"), "00000", study.encode(), task=task, study=study)
        said = say("promote", study, "--tracking-uri", store_uri).ok
        assert said.startswith("t: not promoted" if sliced else "t: promoted")
    past = say("history", "t", "--tracking-uri", store_uri).ok
    for line in (
        "slices that lose: 2 of 3, language=de by 0.1000 (40 rows), language=fr by 0.1000 (10 rows)",
        "language=en: accuracy 0.9333, champion 0.5333, 150 rows",
    ):
        assert f"  {line}\n" in said
        assert f"    {line}\n" in past
