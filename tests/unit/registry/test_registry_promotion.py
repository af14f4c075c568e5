from __future__ import annotations

import dataclasses
import math

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from loraxs_search.records import Candidate, DataSource, Latency, PromotionRule, Task
from loraxs_search.registry import ScoredRows, decide

TASK = Task(
    name="toy",
    kind="sequence-classification",
    source=DataSource(hub="toy"),
    text="text",
    label="label",
    metric="accuracy",
    direction="maximize",
    metrics=("accuracy",),
    labels=("a", "b"),
)


def _candidate(trial_id: str, accuracy: float, stored_bytes: int = 1000, **other) -> Candidate:
    fields = {
        "study": "s1",
        "trial_id": trial_id,
        "task": "toy",
        "test_metrics": {"accuracy": accuracy},
        "validation_metrics": {},
        "stored_bytes": stored_bytes,
        "data_fingerprint": "data",
        "base_digest": "base",
    }
    return Candidate(**(fields | other))


def _rows(right: int, wrong: int, refits=()) -> ScoredRows:
    """Rows of which the first `right` are answered correctly."""
    labels = np.arange(right + wrong) % 2
    predictions = np.where(np.arange(right + wrong) < right, labels, 1 - labels)
    return ScoredRows(predictions, labels, np.empty((0, right + wrong), np.int64))


# ---- examples --------------------------------------------------------------------------------------------------------
def test_without_a_champion_the_best_is_promoted():
    decision = decide(PromotionRule(), TASK, [_candidate("t0", 0.7), _candidate("t1", 0.8)], None)
    assert (decision.promoted, decision.winner, decision.winner_metric) == (True, "t1", 0.8)
    assert decision.reasons[-1] == "there was no champion"


def test_within_tolerance_the_smallest_is_chosen():
    candidates = [_candidate("t0", 0.805, 3000), _candidate("t1", 0.800, 1000), _candidate("t2", 0.799, 10)]
    decision = decide(PromotionRule(tolerance=0.005), TASK, candidates, None)
    assert decision.winner == "t1"  # 0.805 - 0.800 > 0.005 in floating point, and yet within it
    assert "smallest within tolerance=0.005" in decision.reasons[1]


def test_equal_size_goes_to_the_better_metric_then_the_lower_id():
    same = [_candidate("t2", 0.80), _candidate("t1", 0.80), _candidate("t0", 0.79)]
    assert decide(PromotionRule(tolerance=0.1), TASK, same, None).winner == "t1"


def test_minimised_metrics_turn_the_order_round():
    task = dataclasses.replace(TASK, metric="error", direction="minimize")
    candidates = [_candidate(f"t{n}", 0, test_metrics={"error": n / 10}) for n in (3, 1, 2)]
    assert decide(PromotionRule(), task, candidates, None).winner == "t1"
    champion = _candidate("old", 0, test_metrics={"error": 0.05})
    refused = decide(PromotionRule(), task, candidates, champion)
    assert not refused.promoted
    assert "gain -0.05" in refused.reasons[-1]


@pytest.mark.parametrize(
    ("min_gain", "accuracy", "promoted"),
    [(0.0, 0.80, False), (0.0, 0.801, True), (0.01, 0.805, False), (0.01, 0.81, True), (0.0, 0.79, False)],
)
def test_a_candidate_must_gain_more_than_nothing_and_at_least_min_gain(min_gain, accuracy, promoted):
    decision = decide(
        PromotionRule(min_gain=min_gain), TASK, [_candidate("t0", accuracy)], _candidate("old", 0.80, study="s0")
    )
    assert decision.promoted is promoted
    assert decision.champion == "s0/old"
    assert decision.champion_metric == 0.80


@pytest.mark.parametrize(
    ("confidence", "right", "promoted"), [(0.95, 803, False), (0.95, 810, True), (0.0, 803, True), (0.8, 803, True)]
)
def test_a_gain_on_the_same_rows_must_be_sure(confidence, right, promoted):
    rows = {"s1/t0": _rows(right, 1000 - right), "s0/old": _rows(800, 200)}
    rule, champion = PromotionRule(confidence=confidence), _candidate("old", 0.8, study="s0")
    decision = decide(rule, TASK, [_candidate("t0", right / 1000)], champion, rows=rows)
    assert decision.promoted is promoted
    if confidence:
        assert decision.p_value == pytest.approx(0.5 ** (right - 800))  # McNemar: it won every row they differ in
        assert f"p={decision.p_value:.3g}, confidence={confidence:g}" in decision.reasons[-1]
    elsewhere = decide(rule, TASK, [_candidate("t0", right / 1000)], champion)
    assert elsewhere.promoted  # without rows numbers are taken as they stand, which the reasons say
    assert ("not tested" in elsewhere.reasons[-1]) is bool(confidence)


def test_a_smaller_one_that_is_surely_worse_is_no_peer():
    candidates = [_candidate("t0", 0.81, 3000), _candidate("t1", 0.80, 10), _candidate("t2", 0.808, 100)]
    rows = {"s1/t0": _rows(810, 190), "s1/t1": _rows(800, 200), "s1/t2": _rows(808, 192)}
    rule = PromotionRule(tolerance=0.02)
    assert decide(rule, TASK, candidates, None).winner == "t1"
    assert decide(rule, TASK, candidates, None, rows=rows).winner == "t2"
    champion = dataclasses.replace(candidates[0], study="s0", trial_id="old")
    rows["s0/old"] = rows["s1/t0"]
    refused = decide(rule, TASK, [candidates[1]], champion, rows=rows)
    assert "smaller but surely worse" in refused.reasons[-1]


@pytest.mark.parametrize(("f1", "promoted"), [(0.69, False), (0.70, True), (math.nan, False), (None, False)])
def test_a_guarded_metric_must_not_fall_further_than_it_may(f1, promoted):
    rule = PromotionRule(guards={"f1": 0.05})
    found = _candidate("t0", 0.9, test_metrics={"accuracy": 0.9} | ({} if f1 is None else {"f1": f1}))
    champion = _candidate("old", 0.8, study="s0", test_metrics={"accuracy": 0.8, "f1": 0.75})
    decision = decide(rule, TASK, [found], champion)
    assert decision.promoted is promoted
    assert ("guard: f1" in decision.reasons[-1]) is not promoted
    assert decide(rule, TASK, [found], champion, forced=True).promoted


def test_another_metric_is_read_in_its_own_direction_unless_the_rule_says():
    scores = {"t0": {"accuracy": 0.8, "mse": 0.1}, "t1": {"accuracy": 0.7, "mse": 0.2}}
    found = [_candidate(name, 0, test_metrics=metrics) for name, metrics in scores.items()]
    assert decide(PromotionRule(metric="mse"), TASK, found, None).winner == "t0"
    assert decide(PromotionRule(metric="mse", direction="maximize"), TASK, found, None).winner == "t1"


@pytest.mark.parametrize(
    ("accuracy", "stored_bytes", "promoted"),
    [(0.798, 999, True), (0.80, 999, True), (0.798, 1000, False), (0.79, 10, False)],
)
def test_within_tolerance_of_the_champion_a_strictly_smaller_one_replaces_it(accuracy, stored_bytes, promoted):
    rule = PromotionRule(min_gain=0.01, tolerance=0.005)
    decision = decide(rule, TASK, [_candidate("t0", accuracy, stored_bytes)], _candidate("old", 0.80, 1000, study="s0"))
    assert decision.promoted is promoted
    assert ("and smaller" in decision.reasons[-1]) is promoted


@pytest.mark.parametrize(
    ("other", "why"),
    [({"data_fingerprint": "d2"}, "other data"), ({}, "no finite test")],
)
def test_a_champion_that_cannot_be_compared_stays_unless_forced(other, why):
    champion = _candidate("old", 0.1, study="s0", **(other or {"test_metrics": {"f1": 0.1}}))
    refused = decide(PromotionRule(), TASK, [_candidate("t0", 0.9)], champion)
    assert not refused.promoted
    assert "not comparable" in refused.reasons[-1]
    assert why in refused.reasons[-1]
    forced = decide(PromotionRule(), TASK, [_candidate("t0", 0.9)], champion, forced=True)
    assert forced.promoted
    assert forced.forced
    assert forced.reasons[-2:] == (refused.reasons[-1], "promoted by force")


def test_the_champion_is_not_promoted_again_even_by_force():
    champion = _candidate("t0", 0.9)
    for forced in (False, True):
        decision = decide(PromotionRule(), TASK, [champion], champion, forced)
        assert not decision.promoted
        assert decision.reasons[-1] == "s1/t0 already is the champion"


def test_the_same_name_in_another_study_is_another_candidate():
    champion, found = _candidate("t0", 0.8, study_id="a"), _candidate("t0", 0.9, study_id="b")
    rows = {"s1/t0 a": _rows(80, 20), "s1/t0 b": _rows(90, 10)}
    decision = decide(PromotionRule(), TASK, [found], champion, rows=rows)
    assert decision.promoted
    assert decision.p_value == pytest.approx(2**-10)
    assert not decide(PromotionRule(), TASK, [champion], champion).promoted


@pytest.mark.parametrize(
    ("other", "why"),
    [
        ({"test_metrics": {}}, "no test accuracy"),
        ({"test_metrics": {"accuracy": math.nan}}, "is nan"),
        ({"stored_bytes": 5000}, "more than max_bytes=4,000"),
        ({"task": "elsewhere"}, "of task elsewhere"),
    ],
)
def test_what_may_not_take_part_is_named_with_its_reason(other, why):
    bad = dataclasses.replace(_candidate("bad", 0.99), **other)
    decision = decide(PromotionRule(max_bytes=4000), TASK, [bad, _candidate("t0", 0.5)], None, forced=True)
    assert decision.winner == "t0"
    assert why in decision.reasons[0]
    alone = decide(PromotionRule(max_bytes=4000), TASK, [bad], None, forced=True)
    assert (alone.promoted, alone.winner, alone.winner_metric) == (False, None, None)


@pytest.mark.parametrize(
    ("latency", "why"),
    [
        (Latency(1.151), "takes 1.151 times the bare base's time, more than max_latency=1.15"),
        (Latency(math.nan), "more than max_latency"),
        (Latency(failed="its base is not here"), "known to be within max_latency=1.15, but its base is not here"),
        (None, "but it was not measured"),
    ],
)
def test_what_is_too_slow_or_was_not_timed_may_not_take_part(latency, why):
    rule, quick = PromotionRule(max_latency=1.15), _candidate("t0", 0.5, latency=Latency(1.15))
    slow = _candidate("slow", 0.99, latency=latency)
    decision = decide(rule, TASK, [slow, quick], None, forced=True)
    assert (decision.winner, decision.latency) == ("t0", 1.15)
    assert why in decision.reasons[0]
    assert "t0 (accuracy 0.5000, 1,000 bytes, 1.150 times the bare base's time)" in decision.reasons[1]
    assert decide(rule, TASK, [slow], None, forced=True).winner is None
    assert decide(PromotionRule(), TASK, [slow, quick], None).winner == "slow"


def test_no_candidates_is_a_refusal():
    assert not decide(PromotionRule(), TASK, [], None, forced=True).promoted


# ---- laws ------------------------------------------------------------------------------------------------------------
law = settings(deadline=None, max_examples=100)  # a busy machine is no fault of the rule
scores = st.one_of(st.integers(0, 100).map(lambda n: n / 100), st.floats(0, 1), st.just(math.nan))


latencies = st.one_of(st.none(), st.just(Latency(failed="no base")), st.floats(0.9, 2).map(Latency))


@st.composite
def candidates(draw, min_size: int = 0) -> list[Candidate]:
    sizes = st.integers(1, 50).map(lambda n: n * 100)
    drawn = draw(st.lists(st.tuples(scores, sizes, latencies), min_size=min_size, max_size=6))
    return [_candidate(f"t{n}", score, size, latency=latency) for n, (score, size, latency) in enumerate(drawn)]


@st.composite
def champions(draw) -> Candidate | None:
    known = {"data_fingerprint": draw(st.sampled_from(["data", "data", "data2"]))}
    made = _candidate("old", draw(st.floats(0, 1)), draw(st.integers(1, 5000)), study="s0", **known)
    return draw(st.sampled_from([None, made, made]))


rules = st.builds(
    PromotionRule,
    min_gain=st.sampled_from([0.0, 0.01, 0.1]),
    tolerance=st.sampled_from([0.0, 0.005, 0.05]),
    max_bytes=st.sampled_from([None, 500, 3000]),
    max_latency=st.sampled_from([None, None, 1.15]),
)


@law
@given(rules, candidates(), champions(), st.booleans(), st.randoms())
def test_the_order_of_candidates_does_not_matter(rule, found, champion, forced, random):
    shuffled = list(found)
    random.shuffle(shuffled)
    assert decide(rule, TASK, shuffled, champion, forced) == decide(rule, TASK, found, champion, forced)


@law
@given(rules, candidates(), champions(), st.booleans())
def test_deciding_again_after_acting_changes_nothing(rule, found, champion, forced):
    first = decide(rule, TASK, found, champion, forced)
    if first.promoted:
        champion = next(c for c in found if c.trial_id == first.winner)
        assert not decide(rule, TASK, found, champion, forced).promoted


@st.composite
def answered(draw):
    """Candidates and a champion with their answers to the same 60 rows, and scores that fit them."""
    labels = np.arange(60) % 2
    found, rows = [], {}
    for number in range(draw(st.integers(1, 5))):
        wrong = draw(st.sets(st.integers(0, 59), max_size=30))
        predictions = np.array([1 - y if n in wrong else y for n, y in enumerate(labels)])
        study, trial_id = ("s0", "old") if number == 0 else ("s1", f"t{number}")
        made = _candidate(trial_id, 1 - len(wrong) / 60, draw(st.integers(1, 50)), study=study)
        found.append(made)
        rows[f"{study}/{trial_id}"] = ScoredRows(predictions, labels, np.empty((0, 60), np.int64))
    return found[1:], found[0], rows


@law
@given(st.sampled_from([0.0, 0.02, 0.1]), st.sampled_from([0.5, 0.9, 0.99]), answered(), st.randoms())
def test_with_rows_too_order_does_not_matter_and_deciding_again_changes_nothing(tolerance, confidence, found, random):
    candidates, champion, rows = found
    rule = PromotionRule(tolerance=tolerance, confidence=confidence)
    first = decide(rule, TASK, candidates, champion, rows=rows)
    shuffled = list(candidates)
    random.shuffle(shuffled)
    assert decide(rule, TASK, shuffled, champion, rows=rows) == first
    if first.promoted:
        winner = next(c for c in candidates if c.trial_id == first.winner)
        assert not decide(rule, TASK, candidates, winner, rows=rows).promoted


@law
@given(rules, candidates(), champions(), st.booleans())
def test_nothing_above_max_bytes_or_max_latency_or_without_a_score_is_ever_chosen(rule, found, champion, forced):
    decision = decide(rule, TASK, found, champion, forced)
    if decision.winner is not None:
        winner = next(c for c in found if c.trial_id == decision.winner)
        assert math.isfinite(winner.test_metrics["accuracy"])
        assert rule.max_bytes is None or winner.stored_bytes <= rule.max_bytes
        assert rule.max_latency is None or winner.latency.ratio <= rule.max_latency + 1e-6


@law
@given(rules, candidates(min_size=1), champions())
def test_unforced_promotion_never_loses_more_than_tolerance(rule, found, champion):
    decision = decide(rule, TASK, found, champion)
    if decision.promoted and champion is not None:
        assert decision.winner_metric is not None
        assert decision.winner_metric >= champion.test_metrics["accuracy"] - rule.tolerance - 1e-6


@law
@given(rules, candidates(min_size=1), champions(), st.floats(0, 1))
def test_a_better_score_never_costs_a_lone_candidate_its_promotion(rule, found, champion, more):
    lone = found[0]
    before = decide(rule, TASK, [lone], champion)
    if before.promoted:
        better = dataclasses.replace(lone, test_metrics={"accuracy": lone.test_metrics["accuracy"] + more})
        assert decide(rule, TASK, [better], champion).promoted
