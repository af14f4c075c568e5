"""A search warns of what its scores show, once, while it runs."""

from __future__ import annotations

from support.reports import measured
from support.toy_language import writing

from loraxs_search.search.driver.session import ScoreWatch

CUT = {"exact_match": 0.1, "unparsed": 0.0, "unended": 0.5}


def test_a_young_trial_proves_nothing_and_one_warning_is_enough(caplog):
    watch = ScoreWatch(writing(), max_steps=20)
    watch.reported(measured("00000", 9, CUT))
    assert not caplog.records
    watch.reported(measured("00001", 10, CUT))
    watch.reported(measured("00000", 20, CUT))
    watch.scored("00001", CUT)
    (record,) = caplog.records
    assert record.getMessage().startswith("trial 00001: 50% of the answers were cut at max_new_tokens=6: raise")
    watch.scored("00001", {**CUT, "unparsed": 0.3})  # another matter
    assert "30% of the answers are empty" in caplog.records[-1].getMessage()
