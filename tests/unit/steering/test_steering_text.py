"""What people type into a tag is read as the command line reads it, or says why it cannot be."""

from __future__ import annotations

import pytest
from hypothesis import given
from hypothesis import strategies as st

from loraxs_search.errors import CommandError
from loraxs_search.steering.text import parse, read_params


@pytest.mark.parametrize(
    ("text", "own", "verb", "trials", "arguments"),
    [
        ("stop", "00003", "stop", ("00003",), {}),
        ("stop --now", "00003", "stop", ("00003",), {"now": True}),
        (" stop 4 --now 00005 4 ", "00003", "stop", ("00004", "00005"), {"now": True}),
        ("pause", None, "pause", (), {}),
        ("finish", "00003", "finish", (), {}),
    ],
)
def test_a_command_as_it_is_typed(
    text: str, own: str | None, verb: str, trials: tuple[str, ...], arguments: dict
) -> None:
    command = parse(text, "c1", own)
    assert (command.verb, command.trial_ids, command.arguments, command.malformed) == (verb, trials, arguments, "")


@pytest.mark.parametrize(
    ("text", "why"),
    [
        ("", "must begin with a verb"),
        ("stopp 3", "must be one of: stop, "),
        ("stop --nwo", "takes these options: --now, but got --nwo"),
        ("finish --now", "takes these options: none, but got --now"),
        ("stop --set rank=8", "takes these options: --now, but got --set"),
        ("stop '3", "quotes closed"),
    ],
)
def test_what_cannot_be_read_says_why(text: str, why: str) -> None:
    assert why in parse(text, "c1").malformed


@given(st.text(max_size=60), st.none() | st.just("00003"))
def test_nothing_that_is_typed_raises(text: str, own: str | None) -> None:
    parse(text, "c1", own)


def test_values_of_params_are_read_as_numbers_where_they_are() -> None:
    pairs = ["rank=16", "learning_rate=1e-3", "flag=true", "target_modules=attention", "note=a=b", "word=null"]
    assert read_params(pairs) == {
        **{"rank": 16, "learning_rate": 1e-3, "flag": True},
        **{"target_modules": "attention", "note": "a=b", "word": "null"},
    }
    with pytest.raises(CommandError, match="NAME=VALUE"):
        read_params(["rank"])
