"""Comparisons on the same test rows, and what tolerance counts from: through the registry, and as pure functions."""

from __future__ import annotations

import contextlib
import dataclasses
from pathlib import Path

import pytest
from support.toys import rows

from loraxs_search.errors import RegistryError, TrackingError
from loraxs_search.records.search import Decision, PromotionRule
from loraxs_search.registry.changes import Promoter
from loraxs_search.registry.promotion import PromotionTest, Scored, ToleranceReference
from loraxs_search.registry.store import DECISIONS_EXPERIMENT

from .conftest import scored_anew

RULE = PromotionRule(require="constant")


@pytest.fixture
def promote(promote):
    """Decide on one finalist with its answers to 400 rows; again with the same name, on the same study."""
    return lambda trial_id, right, *, test="rows", **other: promote(trial_id, right, data=test, **other)[0]


def numbers(decision: Decision) -> list[int]:
    return [made.number for made in decision.comparisons]


# ---- looks -----------------------------------------------------------------------------------------------------------
def test_each_comparison_on_the_same_rows_is_held_to_more(promote):
    assert numbers(promote("t0", 300)) == [1]
    assert numbers(promote("t1", 302)) == [2]
    third = promote("t2", 307)  # p = 1/128: enough for a first look, not for a third
    assert (numbers(third), third.promoted) == ([3], False)
    assert third.comparisons[0].confidence == pytest.approx(1 - 0.05 / 12)
    assert "comparison 3 on these rows" in third.reasons[-1]


def test_deciding_again_on_the_same_study_is_the_same_look(registry, promote):
    promote("t0", 300)
    first = promote("t1", 303)
    for again in (promote("t1", 303), promote("t1", 303)):
        assert (again.promoted, again.comparisons, again.reasons) == (first.promoted, first.comparisons, first.reasons)
    assert numbers(promote("t2", 304)) == [3]
    forced = promote("t1", 303, forced=True)
    assert (forced.promoted, forced.forced, numbers(forced)) == (True, True, [2])
    assert numbers(promote("t1", 303)) == [], "the champion is compared with nobody"
    assert numbers(promote("t2", 304)) == [4], "with another champion it is another comparison"
    assert len(registry.history("movie-reviews")) == 8


def test_decisions_whose_experiment_was_deleted_are_no_empty_history(registry, promote):
    promote("t0", 180)
    experiment = registry.client.get_experiment_by_name(DECISIONS_EXPERIMENT).experiment_id
    registry.client.delete_experiment(experiment)
    for ask in (lambda: promote("t1", 340), lambda: registry.history("movie-reviews")):
        with pytest.raises(TrackingError, match="deleted"):
            ask()
    assert registry.champion("movie-reviews") is None
    registry.client.restore_experiment(experiment)
    assert numbers(promote("t1", 340)) == [2]


def test_new_test_rows_start_the_count_anew(promote):
    promote("t0", 300)
    promote("t1", 302)
    decision = promote("t2", 330, test="new rows", rescore=scored_anew(rows(280), "new rows"))
    assert (numbers(decision), decision.promoted) == ([1], True)
    assert numbers(promote("t3", 302)) == [], "and the champion, whose answers to the old rows are not here, stays"


def test_a_promoter_that_has_lost_the_lease_writes_no_decision_and_moves_no_champion(
    registry, promote, task, monkeypatch, promoter
):
    promote("t0", 320)

    def lost() -> None:
        raise RegistryError("another holds it")

    with monkeypatch.context() as patch:
        patch.setattr(Promoter, "locked", lambda _: contextlib.nullcontext(lost))
        for right in (321, 399):  # refused, and promoted
            with pytest.raises(RegistryError):
                promote(f"t{right}", right)
        with pytest.raises(RegistryError):
            promoter.promote(RULE, task, [], {})
    assert [decision.number for decision in registry.history("movie-reviews")] == [1]
    assert registry.champion("movie-reviews").version == 1


# ---- what tolerance counts from --------------------------------------------------------------------------------------
SMALLER = PromotionRule(require="constant", margin=0.05)


def test_a_reference_without_its_answers_decides_nothing_unless_it_is_scored_anew(registry, promote):
    promote("t0", 340, rule=SMALLER)
    promote("t1", 338, rule=SMALLER, stored_bytes=900)
    for version in registry.versions("movie-reviews"):
        (Path(version.source) / "evidence" / "test_rows.safetensors").unlink()
    refused = promote("t2", 338, rule=SMALLER, stored_bytes=800)
    assert "not comparable" in refused.reasons[-1]
    assert "has no whole answers" in refused.reasons[1]

    def rescore(version):
        right = {"t0": 340, "t1": 338}[version.candidate.trial_id]
        return scored_anew(rows(right), "rows")(version)

    assert promote("t2", 338, rule=SMALLER, stored_bytes=800, rescore=rescore).promoted
    assert promote("t3", 200, rule=SMALLER, forced=True).forced


def test_on_new_rows_the_champion_as_it_is_scored_there_is_the_reference_also_later(promote):
    promote("t0", 390, rule=SMALLER, test="old rows")
    first = promote("t1", 337, rule=SMALLER, stored_bytes=900, rescore=scored_anew(rows(340), "rows"))
    assert (first.promoted, first.comparisons[0].reference_version, first.comparisons[0].reference_metric) == (
        True,
        1,
        0.85,
    )
    second = promote("t2", 334, rule=SMALLER, stored_bytes=800)
    assert (second.promoted, second.comparisons[0].reference_version) == (False, 1)


# ---- pure ------------------------------------------------------------------------------------------------------------
def made(version: int | None, score: float, **other) -> Decision:
    known = {"task": "t", "study": "s", "promoted": True, "winner": f"t{version}", "winner_metric": score}
    known |= {"champion_metric": None, "metric": "accuracy", "reasons": (), "version": version}
    return Decision(**(known | {"test_fingerprint": "rows"} | other))


def test_the_reference_is_the_best_that_held_this_name_on_these_rows(task, candidate):
    champion = Scored(candidate("t6", 0.79, test_fingerprint="rows"))

    def reference(past, champion=champion, rule=SMALLER, test_rows="rows"):
        finalist = Scored(candidate("new", 0.8, test_fingerprint=test_rows))
        return PromotionTest(rule, task, finalist).reference(past, champion, 6)

    elsewhere = [made(3, 0.90, test_fingerprint="other rows"), made(4, 0.95, metric="f1")]
    past = [made(1, 0.80), *elsewhere, made(5, 0.81), made(6, 0.79)]
    assert reference(past) == ToleranceReference(5, 0.81)
    assert reference(past, None, dataclasses.replace(SMALLER, direction="minimize")) == ToleranceReference(6, 0.79)
    assert reference(past, None, test_rows="nowhere") is None
    back = [*past, made(5, 0.81, action="rollback"), made(6, 0.79, action="rollback")]
    assert reference(back) == ToleranceReference(1, 0.80)
    removed = [*past, made(5, 0.81, action="remove", promoted=False)]
    assert reference(removed) == ToleranceReference(1, 0.80)
    assert reference([*removed, made(1, 0.80, forced=True)]) == ToleranceReference(6, 0.79)


@pytest.fixture
def compared(task, candidate):
    """Compare a finalist `s1/NAME`, behind other decisions, with the constant answer or a champion, and record it."""

    def compare(past, name, opponent=None, *, seen=(), p=None):
        finalist = Scored(candidate(name, 0.75, test_fingerprint="rows"), rows(300))
        champion = opponent and Scored(candidate(opponent, 0.7, test_fingerprint="rows"), rows(280))
        decision = PromotionTest(RULE, task, finalist).decide(champion, past, seen=seen)
        (record,) = decision.comparisons
        record = record if p is None else dataclasses.replace(record, p_value=p)
        past.append(dataclasses.replace(decision, comparisons=(record,)))
        return record

    return compare


def test_each_finalist_that_was_scored_on_the_rows_counts_once_whatever_happened_next(compared):
    seen, past = ["s1/t1", "s1/t2", "s1/t3"], list[Decision]()
    assert compared([], "t1", seen=["s1/t1"]).number == 1, "the same finalist is the same comparison"
    assert compared([], "new", seen=[f"s1/t{i}" for i in range(300)]).number == 301, "more than one record names"
    assert compared(past, "t3", seen=seen, p=0.5).number == 3
    assert len(past[0].seen) == 2
    assert compared([*past], "t4", seen=seen).number == 4
    assert compared(past, "t2", seen=seen, p=0.5).number == 3, "it was counted already"
    assert compared(past, "t4", seen=seen).number == 4


def test_a_finalist_that_could_not_be_compared_counts_once(registry, promote):
    promote("t0", 300, rule=PromotionRule(require="constant", confidence=0))
    champion = registry.champion("movie-reviews")
    other = {"test_metrics": {"accuracy": 0.75}, "validation_metrics": {"accuracy": 0.75, "loss": 0.75}}
    refused = promote("t1", 302, rule=PromotionRule(require="constant", metric="loss"), **other)
    assert (refused.comparisons, len(refused.seen)) == ((), 1)
    assert numbers(promote("t1", 302, rule=RULE)) == [2]
    assert numbers(promote("t2", 303)) == [3]
    assert registry.champion("movie-reviews") == champion


def test_a_comparison_that_finds_a_gain_hands_its_share_on_but_not_to_the_best_of_many(compared):
    past, shares = list[Decision](), [0.05 / (n * (n + 1)) for n in range(1, 5)]
    levels = [1 - compared(past, f"t{n}", p=p).confidence for n, p in enumerate((0.001, 0.001, 0.9, 0.9))]
    assert levels == pytest.approx([shares[0], sum(shares[:2]), sum(shares[:3]), shares[3]])
    past.clear()
    compared(past, "t0", p=1e-9)
    late = compared(past, "t7", "t0", seen=[f"s1/t{n}" for n in range(1, 21)])
    assert (late.number, late.confidence) == (21, pytest.approx(1 - 0.05 / (21 * 22)))
