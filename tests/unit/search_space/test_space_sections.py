"""Keys of the promotion rule that cannot stand beside each other."""

from __future__ import annotations


def test_what_the_smallest_cannot_stand_beside_is_told_all_at_once(text, faults):
    begin = text[: text.index("promotion:")]
    first, second = faults(begin + "promotion: {choose: smallest, candidates: 1}\n")
    assert "promotion.choose: smallest must stand beside a tolerance" in first
    assert "promotion.candidates: must be at least 2 beside choose: smallest" in second
