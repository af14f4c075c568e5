"""`compare` from the command line and from Python, on studies that were never run."""

from __future__ import annotations

import json

import pytest
from support.searched_studies import Tried, confirm, searched


@pytest.fixture
def studies(fresh_home):
    """Studies of two methods, both confirmed."""
    xs = searched("xs", [Tried({"rank": 4}, 0.7, 500, 50), Tried({"rank": 8}, 0.8, 1000, 100)])
    lora = searched("lora", [Tried({"rank": 4}, 0.8, 10_000, 1000)] * 2, space="method: lora\n")
    confirm(xs, "00001", [0.8, 0.7, 0.75], [0] * 40, [0, 1] * 20)
    confirm(lora, "00000", [0.8, 0.81, 0.79], [0, 1] * 20, [0, 1] * 20)
    return xs, lora


def test_a_line_a_group(say, studies):
    said = say("compare", "xs", "lora")
    heading, first, second = said.ok.splitlines()
    assert heading.split() == [
        *("method", "trials", "steps", "best", "accuracy", "over", "seeds", "test", "accuracy", "gain", "p", "by"),
        *("R", "bytes"),
    ]
    assert first.split()[:6] == ["lora-xs", "2", "of", "2", "40", "xs/00001"]
    assert first.split()[6:11] == ["0.8000", "0.7500", "±", "0.0500", "0.5000"]
    assert first.split()[11:] == ["-", "-", "-", "100", "1,000"]
    assert second.split()[11:] == ["+0.5000", "1.91e-06", "rows", "1,000", "10,000"]
    assert "note: 2 trials of each group are few: " in said.err
    assert "no importances of xs: they need " in said.err


def test_what_a_seed_gives_back_is_counted_apart(say, fresh_home):
    searched("s", [Tried({"method": "vera"}, 0.7, 5000, without_projection=900), Tried({}, 0.7)])
    heading, vera, own = say("compare", "s").ok.splitlines()[:3]
    assert "bytes  learnt bytes" in heading
    assert vera.split()[-2:] == ["5,000", "900"]
    assert own.split()[-2:] == ["1,000", "-"]


def test_json_has_all_numbers_and_nothing_else_on_stdout(say, studies):
    comparison = json.loads(say("compare", "xs", "lora", "--by", "rank", "--against", "8", "--json").ok)
    assert [(group["value"], group["num_trials"]) for group in comparison["groups"]] == [(8, 1), (4, 3)]
    assert (comparison["budget"], comparison["studies"]) == (1, {"xs": "finished", "lora": "finished"})
    assert comparison["notes"]


def test_a_request_that_cannot_be_met(say, studies):
    assert say("compare", "xs", "--by", "rnk").is_error(2, "must be one of: rank, method, study, but got 'rnk'.")
