"""Scores by slice of the test rows: what `promote` and `history` say of them, and what a guard on them refuses."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import replace

import pytest
from support.said import Said
from support.searched_studies import Tried, confirm, searched
from support.studies import TASK
from support.toys import adapter

from loraxs_search.records.search import PromotionRule

LABELS = [0, 1] * 100
LANGUAGES = ["de"] * 40 + ["en"] * 150 + ["fr"] * 10
SLICED = replace(TASK, slices=("language",))
Promote = Callable[..., Said]


@pytest.fixture
def promote(store_uri, say):
    """Promote a study whose finalist answers these of 200 test rows wrong."""

    def run(study: str, wrong: Sequence[int], *given: str, guards: dict[str, float], sliced: bool = True) -> Said:
        task, slices = (SLICED, {"language": LANGUAGES}) if sliced else (TASK, None)
        folder = searched(
            study, [Tried({"rank": 4}, 0.8)], task=task, promotion=PromotionRule(guards=guards, require="constant")
        )
        answers = [1 - label if row in wrong else label for row, label in enumerate(LABELS)]
        confirm(folder, "00000", [0.8], answers, LABELS, slices=slices)
        adapter(folder.adapter_path("00000"), "00000", study.encode(), task=task, study=study)
        return say("promote", study, *given, "--tracking-uri", store_uri)

    return run


def test_a_guard_refuses_a_finalist_that_gains_on_the_whole_and_loses_a_slice(promote, store_uri, say):
    first = promote("first", range(100, 170), guards={}, sliced=False)
    assert first.ok.startswith("t: promoted")
    better, loses = [*range(100, 110)], [*range(4), 195]
    refused = promote("worse", [*better, *loses], guards={"slice_loss": 0.05})
    assert refused.ok.startswith("t: not promoted")
    assert "guard: slice_loss of language=de is 0.1000 (1.0000 to 0.9000 on 40 rows), and may be at most 0.05" in (
        refused.ok
    )
    lines = [
        "slices that lose: 2 of 3, language=de by 0.1000 (40 rows), language=fr by 0.1000 (10 rows)",
        "language=de: accuracy 0.9000, champion 1.0000, 40 rows",
        "language=en: accuracy 0.9333, champion 0.5333, 150 rows",
        "language=fr: accuracy 0.9000, champion 1.0000, 10 rows",
    ]
    past = say("history", "t", "--tracking-uri", store_uri)
    for line in lines:
        assert f"  {line}\n" in refused.ok
        assert f"    {line}\n" in past.ok
