"""`check` from Python: what the command line prints, as a typed result."""

from __future__ import annotations

import json

import pytest

import loraxs_search
from loraxs_search.errors import UsageError
from loraxs_search.records.codec import to_json


def test_it_is_what_the_command_line_prints_and_reports_every_fault(fresh_home, tiny_space, say):
    checked = loraxs_search.check(str(tiny_space), data=True, overrides={"search.trials": 3})
    printed = say("check", str(tiny_space), "--data", "--set", "search.trials=3", "--json").ok
    assert json.loads(printed) == json.loads(to_json(checked))
    assert set(checked.rows or {}) == {"train", "validation", "test"}
    assert loraxs_search.check(str(tiny_space)).rows is None
    with pytest.raises(UsageError, match=r"search\.trials[\s\S]*search\.max_steps"):
        loraxs_search.check(str(tiny_space), overrides={"search.trials": 0, "search.max_steps": 0})
