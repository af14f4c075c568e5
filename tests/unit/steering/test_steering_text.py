"""Trials and params are read as people type them."""

from __future__ import annotations

import pytest

from loraxs_search.errors import CommandError
from loraxs_search.steering.text import read_params, trial_name


@pytest.mark.parametrize(
    ("text", "name"), [("3", "00003"), ("00003", "00003"), ("123456", "123456"), ("0", "00000"), ("x", "x")]
)
def test_a_trial_by_its_number(text: str, name: str) -> None:
    assert trial_name(text) == name


def test_a_number_of_any_length_is_a_trial_that_there_is_not() -> None:
    assert trial_name("9" * 5000) == "9" * 5000


def test_values_of_params_are_read_as_numbers_where_they_are() -> None:
    pairs = ["rank=16", "learning_rate=1e-3", "flag=true", "target_modules=attention", "note=a=b", "word=null"]
    assert read_params([*pairs, "step=1_6"]) == {
        **{"rank": 16, "learning_rate": 1e-3, "flag": True, "step": "1_6"},
        **{"target_modules": "attention", "note": "a=b", "word": "null"},
    }
    with pytest.raises(CommandError, match="NAME=VALUE"):
        read_params(["rank"])
