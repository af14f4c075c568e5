"""What a decision cites of a log of `serve --shadow`."""

from __future__ import annotations

import json

import pytest

from loraxs_search.errors import UsageError
from loraxs_search.records import PromotionRule, ShadowRecord
from loraxs_search.registry import Beside, Registry
from loraxs_search.registry.manifest import folder_digest
from loraxs_search.registry.shadow_log import read_shadow_log

RULE = PromotionRule(confidence=0)


def row(champion, challenger, minute, agree):
    names = {"champion_digest": champion, "challenger_digest": challenger, "agree": agree}
    names["at"] = f"2026-11-29T05:{minute:02}:00.123456+00:00"
    return json.dumps({"sentence": f"about {challenger}"} | {f"shadow_{name}": value for name, value in names.items()})


@pytest.fixture
def log(tmp_path):
    """Write a log of rows; the last line has no end."""

    def write(*rows):
        path = tmp_path / "log.jsonl"
        path.write_text("\n".join(rows))
        return path

    return write


def test_rows_of_each_champion_are_counted_apart(log):
    rows = [row("old", "new", 7, True), row("old", "new", 3, False), row("older", "new", 1, True)]
    others = [row("old", "other", 0, True), "", "null", '{"shadow_challenger_digest": "new"}']
    found = read_shadow_log(log(*rows, *others, row("old", "new", 9, True), row("old", "new", 10, True)[:-1]), "new")
    at = "2026-11-29T05:{:02}:00.123456+00:00".format
    assert found == {
        "old": ShadowRecord("old", "new", 3, 2, at(3), at(9)),
        "older": ShadowRecord("older", "new", 1, 1, at(1), at(1)),
    }


def test_numbers_are_rows_that_neither_agree_nor_differ(log):
    assert read_shadow_log(log(*[row("old", "new", 1, None)] * 3), "new")["old"].num_agreed is None


@pytest.mark.parametrize("name", [".", "nowhere.jsonl"])
def test_a_log_that_cannot_be_read_is_refused(name, tmp_path):
    with pytest.raises(UsageError, match="--shadow-log") as refused:
        read_shadow_log(tmp_path / name, "new")
    assert "shadow/TASK.jsonl" in refused.value.hint


@pytest.fixture
def promoted(store_uri, task, candidate, make_folder, log):
    """Promote t1 over t0 with a log that the digests of both are given for."""

    def promote(rows, accuracy=0.9):
        registry, first = Registry(store_uri), make_folder("t0")
        registry.promote(RULE, task, [candidate("t0", 0.8)], {"t0": first})
        second = make_folder("t1")
        path = log(*rows(folder_digest(first), folder_digest(second)))
        beside = Beside(shadow_log=path)
        decision, _ = registry.promote(RULE, task, [candidate("t1", accuracy)], {"t1": second}, beside=beside)
        assert registry.history("movie-reviews")[-1] == decision, "it is recorded"
        return decision

    return promote


@pytest.mark.parametrize("accuracy", [0.9, 0.7])
def test_a_decision_cites_what_a_server_saw_of_both(promoted, accuracy):
    decision = promoted(lambda old, new: [row(old, new, minute, minute < 7) for minute in range(2, 10)], accuracy)
    assert decision.promoted is (accuracy == 0.9), "whatever the log says"
    shadow = decision.shadow
    assert (shadow.num_rows, shadow.num_agreed) == (8, 5)
    said = "it answered 8 rows of the champion's requests since 2026-11-29 05:02 UTC, 62.5% of them alike"
    assert decision.reasons[1] == f"shadow: {said} ({shadow.challenger[:12]} beside {shadow.champion[:12]})"


def test_a_log_of_other_adapters_is_not_cited(promoted):
    decision = promoted(lambda old, new: [row(*both, 1, True) for both in (("x", new), (old, "x"), (new, old))])
    assert decision.promoted
    assert decision.shadow is None
    assert not any("shadow" in reason for reason in decision.reasons)


def test_a_first_champion_has_no_shadow(store_uri, task, candidate, make_folder, log):
    folder = make_folder("t0")
    path = log(row("old", folder_digest(folder), 1, True))
    decision, _ = Registry(store_uri).promote(
        RULE, task, [candidate("t0", 0.8)], {"t0": folder}, beside=Beside(shadow_log=path)
    )
    assert decision.promoted
    assert decision.shadow is None
