"""`search.objectives` beside other keys and the promotion rule."""

from __future__ import annotations

CONTRADICTING = """\
search:
  objectives: [accuracy, stored_bytes]
  metric: f1
promotion:
  metric: f1
  direction: minimize
  choose: smallest
  candidates: 1
"""


def test_objectives_that_contradict_the_promotion_rule_are_told_all_at_once(text, faults):
    begin = text[: text.index("search:")]
    assert faults(begin + CONTRADICTING) == [
        "space.yaml:19: search.metric: must be left out, or be what search.objectives begin with: accuracy, but got"
        ' "f1".',
        "space.yaml:21: promotion.metric: search.objectives and promotion must go by one metric, but got accuracy and"
        " f1; write search.objectives: [f1, stored_bytes], or promotion.metric: accuracy.",
        "space.yaml:22: promotion.direction: must be left out, or be maximize, the direction of f1, but got minimize.",
        "space.yaml:23: promotion.choose: smallest must stand beside a tolerance, which says what fewer bytes may cost,"
        " but there is none; write tolerance: 0.005, or choose: best.",
        "space.yaml:24: promotion.candidates: must be at least 2 beside choose: smallest, since tolerance counts from"
        " the best, but got 1.",
    ]
    (fault,) = faults(begin + CONTRADICTING.partition("  metric")[0] + "promotion: {direction: minimize}\n")
    assert "promotion.direction: must be left out, or be maximize, the direction of accuracy" in fault


def test_where_promotion_says_nothing_the_objectives_contradict_the_task(text, faults):
    begin = text[: text.index("search:")]
    (fault,) = faults(begin + "search: {objectives: [f1, stored_bytes]}\n")
    assert fault.startswith(
        "space.yaml:17: search.objectives[0]: search.objectives and promotion must go by one metric"
    )
