"""Answers that were cut are warned of in `status` and at the end of a search, with the remedy."""

from __future__ import annotations

import json

import pytest
from support.reports import measured
from support.studies import study
from support.toy_language import writing

from loraxs_search.cli.launch import show_results
from loraxs_search.log.events import TrialEnded, TrialReported, TrialStarted
from loraxs_search.records.trial import TrialState
from loraxs_search.search.driver.result import SearchResult

WARNING = "trial 00000: 50% of the answers were cut at max_new_tokens=6: raise `generation.max_new_tokens`, or"


@pytest.fixture
def cut(store_uri):
    folder = study("s", store_uri, task=writing())
    journal = folder.journal()
    journal.append(TrialStarted(trial_id="00000", params={"rank": 4}))
    journal.append(
        TrialReported(report=measured("00000", 8, {"exact_match": 0.1, "unparsed": 0.0, "unended": 0.5, "loss": 1.0}))
    )
    journal.append(TrialEnded(trial_id="00000", state=TrialState.COMPLETE, reason="ran all steps"))
    return folder


def test_status_warns_below_the_table(say, cut):
    shown = say("status", "s")
    assert f"warning: {WARNING}" in " ".join(shown.err.split())
    assert "unended" in shown.out
    (warning,) = json.loads(say("status", "s", "--json").out)["warnings"]
    assert warning.startswith(WARNING)


def test_the_end_of_a_search_warns_too(cut, capsys):
    result = SearchResult("s", tuple(cut.journal().records.values()), (), 1.0)
    show_results([result], as_json=False)
    assert f"warning: {WARNING}" in capsys.readouterr().err
    show_results([result], as_json=True)
    shown = capsys.readouterr()
    assert json.loads(shown.out)["warnings"][0].startswith(WARNING)
    assert f"warning: {WARNING}" in shown.err
