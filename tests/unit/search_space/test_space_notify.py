"""`promotion.notify`: who is notified of a promotion, checked with the space and its line, its secrets not shown."""

from __future__ import annotations

import re

import pytest

from loraxs_search.records import Notification, PromotionRule, from_json, to_json


@pytest.mark.parametrize(
    ("written", "expected"),
    [
        ("https://hooks.example.com/T0/x", Notification("https://hooks.example.com/T0/x")),
        ("{url: $TEAM_WEBHOOK}", Notification("$TEAM_WEBHOOK")),
        ("{url: 'http://me:pass@host:8080/x?y=1'}", Notification("http://me:pass@host:8080/x?y=1")),
        ("{command: [python, tell.py, --loud]}", Notification("", ("python", "tell.py", "--loud"))),
        ("{url: http://host, command: [x]}", Notification("http://host", ("x",))),
        ("", None),
    ],
)
def test_an_address_a_program_or_both(parse, text, written, expected):
    space = parse(text.replace("  metric: f1", f"  metric: f1\n  notify: {written}"))
    assert space.promotion.notify == expected
    assert from_json(PromotionRule, to_json(space.promotion)) == space.promotion


def test_nobody_is_told_unless_asked_and_older_studies_are_read(parse, text):
    assert parse(text).promotion.notify is None
    assert from_json(PromotionRule, '{"candidates": 3}').notify is None


@pytest.mark.parametrize(
    ("written", "key", "said"),
    [
        ("{}", "promotion.notify", "must have a url, a command, or both"),
        ("7", "promotion.notify", "must hold keys (one of: url, command)"),
        ("{uri: x}", "promotion.notify.uri", "must be one of: url"),
        ("{command: []}", "promotion.notify.command", "must hold at least one item"),
        ("{command: tell.py}", "promotion.notify.command", "must be a list"),
        ("{command: [a, 7]}", "promotion.notify.command[1]", "must be text"),
        ("{url: ''}", "promotion.notify.url", "must not be empty"),
        ("ftp://me:SECRET@host", "promotion.notify.url", "must be an address, http(s)://SERVER/..., or $NAME"),
        ("{url: hooks.example.com/SECRET}", "promotion.notify.url", "got another text of 24 characters"),
        ("{url: 'http:///SECRET'}", "promotion.notify.url", "must be an address"),
        ("{url: 'http://host:99999/SECRET'}", "promotion.notify.url", "must be an address"),
        ('{url: "http://host/a SECRET"}', "promotion.notify.url", "must be an address"),
        ("{url: $SECRET-X}", "promotion.notify.url", "must be an address"),
    ],
)
def test_a_fault_has_its_line_and_no_secret(faults, text, written, key, said):
    (line,) = faults(text.replace("  metric: f1", f"  metric: f1\n  notify: {written}"))
    assert re.match(rf"\s*space.yaml:{text.count(chr(10)) + 1}: {re.escape(key)}: ", line)
    assert said in line
    assert "SECRET" not in line
