"""Who the finalist of a search is: validation rows choose. Whether it becomes champion: test rows decide."""

from __future__ import annotations

import math
from dataclasses import replace

import numpy as np
import pytest
from support.toys import rows

from loraxs_search.records.search import AnswerFlips, Baseline, Candidate, Decision, OperatingPoint, PromotionRule
from loraxs_search.records.task import Task
from loraxs_search.registry.evidence import ScoredRows, slice_scores
from loraxs_search.registry.finalist import choose
from loraxs_search.registry.promotion import PromotionTest, Scored, ToleranceReference
from loraxs_search.tasks.kinds import TOKEN_METRICS

from .conftest import TASK, candidate, plain_candidate


def _chosen(rule: PromotionRule, candidates: list[Candidate], task: Task = TASK) -> str | None:
    finalist = choose(rule, task, candidates)[0]
    return finalist.trial_id if finalist else None


def test_the_best_on_validation_rows_is_chosen_whatever_it_reaches_on_test_rows():
    found = [plain_candidate("t0", 0.7, test_metrics={"accuracy": 0.9}), plain_candidate("t0.1", 0.8)]
    assert _chosen(PromotionRule(), found) == "t0.1"
    assert choose(PromotionRule(), TASK, found)[1] == (
        "best of 2 on validation rows: t0.1 (accuracy 0.8000, 1,000 bytes)",
    )


def test_within_tolerance_the_smallest_is_chosen():
    found = [plain_candidate("t0", 0.805, 3000), plain_candidate("t1", 0.800, 1000), plain_candidate("t2", 0.799, 10)]
    choice = choose(PromotionRule(tolerance=0.005), TASK, found)
    assert choice[0] == found[1]  # 0.805 - 0.800 > 0.005 in floating point, and yet within it
    assert "smallest within tolerance=0.005" in choice[1][1]


def test_equal_size_goes_to_the_better_metric_then_the_lower_id():
    same = [plain_candidate("t2", 0.80), plain_candidate("t1", 0.80), plain_candidate("t0", 0.79)]
    assert _chosen(PromotionRule(tolerance=0.1), same) == "t1"


def test_another_metric_is_read_in_its_own_direction_unless_the_rule_says():
    scores = {"t0": {"accuracy": 0.8, "mse": 0.1}, "t1": {"accuracy": 0.7, "mse": 0.2}}
    found = [plain_candidate(name, 0, validation_metrics=metrics) for name, metrics in scores.items()]
    assert _chosen(PromotionRule(metric="mse"), found) == "t0"
    assert _chosen(PromotionRule(), found, replace(TASK, metric="mse", direction="minimize")) == "t0"
    assert _chosen(PromotionRule(metric="mse", direction="maximize"), found) == "t1"


def test_what_may_not_take_part_is_named_with_its_reason():
    rule = PromotionRule(max_bytes=4000)
    for other, why in (
        ({"validation_metrics": {}}, "no validation accuracy"),
        ({"validation_metrics": {"accuracy": math.nan}}, "is nan"),
        ({"stored_bytes": 5000}, "more than max_bytes=4,000"),
        ({"task": "elsewhere"}, "of task elsewhere"),
    ):
        bad = replace(plain_candidate("bad", 0.99), **other)
        finalist, reasons = choose(rule, TASK, [bad, plain_candidate("t0", 0.5)])
        assert finalist is not None
        assert finalist.trial_id == "t0"
        assert why in reasons[0]
        assert choose(rule, TASK, [bad])[0] is None
    assert choose(PromotionRule(), TASK, [])[0] is None


RATINGS = replace(TASK, kind="regression", labels=(), metric="mse", direction="minimize", metrics=("mse",))
RULE = PromotionRule(require="constant")
NUMBERS = replace(RULE, confidence=0)  # numbers as they stand
SMALLER = replace(RULE, margin=0.02)


def _scored(trial_id: str, right: int, stored_bytes: int = 1000, **other) -> Scored:
    """An adapter that answers `right` of 1000 rows correctly."""
    return Scored(plain_candidate(trial_id, right / 1000, stored_bytes, **other), rows(right, 1000))


def decide(rule, task, finalist, champion, *, number=1, **other):
    """Decide when `number` - 1 other finalists have answered the same rows."""
    seen = [f"others/{n}" for n in range(1, number)]
    return PromotionTest(rule, task, finalist).decide(champion, seen=seen, **other)


def _old(right: int, stored_bytes: int = 1000, **other) -> Scored:
    return _scored("old", right, stored_bytes, study="s0", **other)


# ---- the first champion ----------------------------------------------------------------------------------------------
@pytest.mark.parametrize(("right", "promoted"), [(560, True), (510, False), (400, False)])
def test_a_first_champion_must_beat_the_constant_answer_significantly(right, promoted):
    constant = Baseline("constant", test_metrics={"accuracy": 0.5}, answer=1)
    decision = decide(RULE, TASK, _scored("t0", right, baselines=(constant,)), None)
    assert decision.promoted is promoted
    assert (decision.comparisons[0].opponent, decision.comparisons[0].number) == ("constant", 1)
    forced = decide(RULE, TASK, _scored("t0", right, baselines=(constant,)), None, forced=True)
    assert (forced.promoted, forced.forced) == (True, not promoted), "what the rule promotes is not forced"


def test_without_rows_a_first_champion_takes_force():
    finalist = Scored(plain_candidate("t0", 0.9))
    refused = decide(RULE, TASK, finalist, None)
    assert not refused.promoted
    assert "--force" in refused.reasons[-1]
    assert decide(RULE, TASK, finalist, None, forced=True).forced
    assert not decide(NUMBERS, TASK, finalist, None).promoted, "there is no constant answer to compare with"
    measured = Scored(
        plain_candidate("t0", 0.9, baselines=(Baseline("constant", test_metrics={"accuracy": 0.5}, answer=0),))
    )
    assert decide(NUMBERS, TASK, measured, None).promoted


# ---- against a champion ----------------------------------------------------------------------------------------------
@pytest.mark.parametrize(
    ("min_gain", "right", "promoted"), [(0.0, 800, False), (0.0, 801, True), (0.01, 805, False), (0.01, 810, True)]
)
def test_a_finalist_must_gain_more_than_nothing_and_at_least_min_gain(min_gain, right, promoted):
    rule = replace(NUMBERS, min_gain=min_gain)
    decision = decide(rule, TASK, _scored("t0", right), _old(800))
    assert decision.promoted is promoted
    assert decision.champion == "s0/old"
    assert decision.champion_metric == 0.80


@pytest.mark.parametrize(("confidence", "right", "promoted"), [(0.95, 803, False), (0.95, 810, True), (0.0, 803, True)])
def test_a_gain_on_the_same_rows_must_be_sure(confidence, right, promoted):
    rule = replace(RULE, confidence=confidence)
    decision = decide(rule, TASK, _scored("t0", right), _old(800))
    assert decision.promoted is promoted
    if confidence:
        assert decision.p_value == pytest.approx(0.5 ** (right - 800))  # McNemar: it won every row they differ in
    elsewhere = decide(rule, TASK, Scored(plain_candidate("t0", right / 1000)), _old(800))
    assert elsewhere.promoted is not bool(confidence), "what cannot be tested is not promoted"


def test_few_test_rows_decide_nothing():
    few, enough = (Scored(plain_candidate("t0", 1.0), rows(number, number)) for number in (9, 20))
    for held in (None, Scored(plain_candidate("old", 0.0, study="s0"), rows(0, 9))):
        refused = decide(RULE, TASK, few, held)
        assert (refused.promoted, refused.comparisons) == (False, ())
        assert "at least 10 test rows are needed" in refused.reasons[-1]
        assert decide(RULE, TASK, few, held, forced=True).forced
        assert decide(NUMBERS, TASK, few, held).promoted
    assert decide(RULE, TASK, enough, None).promoted


def test_a_guarded_metric_must_not_fall_further_than_it_may():
    rule, champion = (
        replace(RULE, guards={"unended": 0.05}),
        _old(800, test_metrics={"accuracy": 0.8, "unended": 0.2}),
    )
    for unended, promoted in ((0.14, False), (0.15, True), (math.nan, False), (None, False)):
        known = {} if unended is None else {"unended": unended}
        found = _scored("t0", 900, test_metrics={"accuracy": 0.9} | known)
        decision = decide(rule, TASK, found, champion)
        assert decision.promoted is promoted
        assert ("guard: unended" in decision.reasons[-1]) is not promoted
        assert decide(rule, TASK, found, champion, forced=True).promoted


def test_answers_decide_and_what_a_tag_says_of_them_does_not():
    edited = _old(950, test_metrics={"accuracy": 0.1})
    decision = decide(RULE, TASK, _scored("t0", 900, test_metrics={"accuracy": 0.99}), edited)
    assert (decision.promoted, decision.winner_metric, decision.champion_metric) == (False, 0.9, 0.95)
    other = decide(RULE, TASK, _scored("t0", 900), _old(100, test_metrics={"f1": 0.1}))
    assert (other.promoted, other.champion_metric) == (True, 0.1), "by another metric than it was judged by"


def _right_between(start, stop):
    """Return answers to a hundred rows, of which these are right."""
    rows, labels = np.arange(100), np.arange(100) % 2
    return ScoredRows(np.where((start <= rows) & (rows < stop), labels, 1 - labels), labels)


@pytest.mark.parametrize(("allowed", "promoted"), [(0.04, False), (0.05, True)])
def test_answers_that_become_wrong_are_counted_and_may_be_guarded(allowed, promoted):
    champion = replace(_old(500), rows=_right_between(0, 50))
    found = replace(_scored("t0", 850), rows=_right_between(5, 90))
    decision = decide(replace(RULE, guards={"negative_flips": allowed}), TASK, found, champion)
    assert decision.flips == AnswerFlips(negative=5, positive=40, num_rows=100)
    assert decision.promoted is promoted
    assert any("100 test rows, 5 (5.0%) that the champion answers right become wrong" in it for it in decision.reasons)
    assert ("guard: negative_flips is 0.0500" in decision.reasons[-1]) is not promoted


def test_numbers_and_answers_that_nobody_asked_for_have_no_flips():
    none = ScoredRows(np.full(100, -1), np.arange(100) % 2)
    numbers = ScoredRows(np.zeros(100, np.float32), np.ones(100, np.float32))
    assert numbers.flips_from(numbers) is None
    assert none.flips_from(none) is None
    assert rows(50, 100).flips_from(rows(50, 99)) is None, "these are other rows"


# ---- slices ----------------------------------------------------------------------------------------------------------
def _sliced(rows, **sizes):
    """Return rows of which the first are of one group, the next of another, and so on."""
    groups = [name for name, size in sizes.items() for _ in range(size)]
    return replace(rows, slices={"group": np.array(groups, object)})


@pytest.mark.parametrize(("size", "allowed", "promoted"), [(30, 0.1, False), (30, 0.2, True), (29, 0.1, True)])
def test_no_slice_of_enough_rows_may_lose_more_than_its_guard_allows(size, allowed, promoted):
    champion = replace(_old(500), rows=_right_between(0, 50))
    found = replace(_scored("t0", 850), rows=_sliced(_right_between(size // 5, 100), a=size, b=50, c=50 - size))
    decision = decide(replace(RULE, guards={"slice_loss": allowed}), TASK, found, champion)
    assert decision.promoted is promoted
    assert [(each.name, each.num_rows, each.champion_score) for each in decision.slices] == [
        ("group=a", size, 1.0),
        ("group=b", 50, pytest.approx((50 - size) / 50)),
        ("group=c", 50 - size, 0.0),
    ]
    assert decision.slices[0].loss == pytest.approx((size // 5) / size)
    assert any(reason.startswith("slices that lose: 1 of 3, group=a by 0.") for reason in decision.reasons)
    assert ("guard: slice_loss of group=a" in decision.reasons[-1]) is not promoted


@pytest.mark.parametrize(
    ("rows", "why"),
    [
        (_right_between(0, 99), "needs a slice with 30 test rows or more, but there is none"),
        (
            replace(
                _sliced(_right_between(0, 99), a=50, b=50),
                slices={"group": np.array(["a"] * 100, object), "age": np.arange(100) // 25},
            ),
            "needs a slice of `age` with 30 test rows or more",
        ),
        (_sliced(rows(100, 101), a=101), "needs the scores of both on group=a, but they cannot be compared"),
    ],
)
def test_what_a_guarded_slice_loses_must_be_known(rows, why):
    champion = replace(_old(500), rows=_right_between(0, 50))
    found = replace(_scored("t0", 850), rows=rows)
    decision = decide(replace(NUMBERS, guards={"slice_loss": 1.0}), TASK, found, champion)
    assert not decision.promoted
    assert decision.reasons[-1].startswith(f"guard: slice_loss {why}")


# ---- operating points ------------------------------------------------------------------------------------------------
def _sure(scored, rows, *thresholds):
    """Return an adapter that gives row i the confidence i / 100, with thresholds for .9 and .95."""
    points = [OperatingPoint(point, own, 100) for point, own in zip((0.9, 0.95), thresholds, strict=False)]
    found = replace(scored.candidate, operating_points=tuple(points))
    return replace(scored, candidate=found, rows=replace(rows, confidences=np.arange(100) / 100))


@pytest.mark.parametrize(
    ("thresholds", "allowed", "why"),
    [
        ((0.5, 0.65), 0.05, ""),
        ((0.4, 0.66), 0.05, "at 0.95 would go from 0.4000 to 0.3400, and may fall by 0.05"),
        ((0.4, None), 0.3, "at 0.95 would go from 0.4000 to 0.0000"),
        ((), 0.9, "needs operating points of both on the test rows, but s1/t0 has none"),
    ],
)
def test_no_point_may_answer_fewer_rows_than_its_guard_allows(thresholds, allowed, why):
    champion = _sure(_old(500), _right_between(0, 50), 0.5, 0.6)
    found = _sure(_scored("t0", 850), _right_between(5, 90), *thresholds)
    decision = decide(replace(RULE, guards={"coverage": allowed}), TASK, found, champion)
    assert decision.promoted is not bool(why)
    assert not why or decision.reasons[-1].startswith(f"guard: coverage {why}")
    assert any("sure at 0.9: " in reason for reason in decision.reasons) is bool(thresholds)


def test_slices_are_scored_by_the_metric_that_decides_and_a_first_champion_too():
    labels, groups = np.linspace(0, 1, 80, dtype=np.float32), {"group": np.array(["a", "b"] * 40, object)}
    near, far = (ScoredRows(labels + np.where(np.arange(80) % 2, off, 0.1), labels) for off in (0.2, 0.3))
    found = Scored(plain_candidate("t0", 0, test_metrics={"mse": 0.02}), replace(near, slices=groups))
    first = decide(RULE, RATINGS, found, None)
    assert [(each.score, each.champion_score) for each in first.slices] == [
        (pytest.approx(0.01), None),
        (pytest.approx(0.04), None),
    ]
    champion = Scored(plain_candidate("old", 0, study="s0", test_metrics={"mse": 0.05}), far)
    assert [each.loss for each in decide(RULE, RATINGS, found, champion).slices] == [0.0, pytest.approx(0.04 - 0.09)]
    others = replace(champion, candidate=replace(champion.candidate, test_fingerprint="others"))
    assert [each.champion_score for each in decide(RULE, RATINGS, found, others).slices] == [None, None]


def test_sums_over_tokens_are_scored_by_slice_and_none_without_tokens():
    labels, counts = np.zeros(4, np.int64), np.array([1, 3, 0, 0])
    rows = ScoredRows(labels, labels, np.array([1, 2, 0, 0], np.float32), counts, counts)
    groups = {"group": np.array(["a", "a", "b", "b"], object)}
    found = slice_scores(TOKEN_METRICS["loss"], -1.0, replace(rows, slices=groups))
    assert [(each.value, each.num_rows, each.score) for each in found] == [("a", 2, 0.75), ("b", 2, None)]


# ---- smaller ---------------------------------------------------------------------------------------------------------
def _apart(won: int, lost: int, num_rows: int) -> tuple[ScoredRows, ScoredRows]:
    """Answers of two adapters: the first alone is right in `won` rows, the second alone in `lost`."""
    labels, rows = np.arange(num_rows) % 2, np.arange(num_rows)
    first, second = (rows < num_rows // 2) | (rows >= num_rows - won), (rows < num_rows // 2 + lost)
    return tuple(ScoredRows(np.where(right, labels, 1 - labels), labels) for right in (first, second))


@pytest.mark.parametrize(
    ("num_rows", "lost", "stored_bytes", "promoted"),
    [(10_000, 0, 999, True), (10_000, 90, 999, False), (10_000, 0, 1000, False), (100, 0, 999, False)],
)
def test_a_smaller_one_is_promoted_if_rows_show_that_it_is_hardly_worse(num_rows, lost, stored_bytes, promoted):
    new, old = _apart(10, 10 + lost, num_rows)
    reference = ToleranceReference(1, 0.5, old)
    finalist = Scored(plain_candidate("t0", 0.5, stored_bytes), new)
    champion = Scored(plain_candidate("old", 0.5, study="s0"), old)
    assert decide(RULE, TASK, finalist, champion, reference=reference).promoted is promoted
    assert not decide(replace(RULE, margin=0), TASK, finalist, champion, reference=reference).promoted
    later = decide(RULE, TASK, finalist, champion, number=1000, reference=reference)
    assert promoted or not later.promoted


def test_margin_counts_from_the_best_champion_there_was_and_takes_its_answers():
    new, best = _apart(0, 300, 10_000)
    champion = Scored(plain_candidate("old", 0.5, study="s0"), new)
    finalist = Scored(plain_candidate("t0", 0.5, 999), new)
    promoted = [
        decide(RULE, TASK, finalist, champion, reference=reference).promoted
        for reference in (
            ToleranceReference(2, 0.5, new),
            ToleranceReference(1, 0.53, best),
            ToleranceReference(2, 0.5, None, "they are gone"),
            None,
        )
    ]
    assert promoted == [True, False, False, False]


def test_metrics_that_are_no_shares_have_no_margin_of_their_own():
    labels = np.linspace(0, 1, 4000)
    noise = np.random.default_rng(0).normal(0, 0.1, 4000)
    champion = Scored(
        plain_candidate("old", 0, study="s0", test_metrics={"mse": 0.01}), ScoredRows(labels + noise, labels)
    )
    finalist = Scored(plain_candidate("t0", 0, 10, test_metrics={"mse": 0.01}), ScoredRows(labels - noise, labels))
    reference = ToleranceReference(1, 0.01, champion.rows)
    for margin, promoted in ((None, False), (1e-6, True), (0.01, True)):
        rule = replace(RULE, margin=margin)
        assert decide(rule, RATINGS, finalist, champion, reference=reference).promoted is promoted


# ---- what is not compared --------------------------------------------------------------------------------------------
def test_a_champion_that_cannot_be_compared_stays_unless_forced():
    without = replace(_old(100, test_metrics={"f1": 0.1}), rows=None)
    for champion, why in ((_old(100, test_fingerprint="d2"), "other test rows"), (without, "no finite test")):
        refused = decide(RULE, TASK, _scored("t0", 900), champion)
        assert (refused.promoted, refused.comparisons) == (False, ()), "nothing was looked at"
        assert "not comparable" in refused.reasons[-1]
        assert why in refused.reasons[-1]
        forced = decide(RULE, TASK, _scored("t0", 900), champion, forced=True)
        assert (forced.promoted, forced.forced) == (True, True)
        assert forced.reasons[-2:] == (refused.reasons[-1], "promoted by force")


def test_not_even_force_promotes_the_champion_again_or_a_finalist_without_a_test_score():
    champion = _scored("t0", 900)
    unscored = [Scored(plain_candidate("t0", 0.9, test_metrics=metrics)) for metrics in ({}, {"accuracy": math.nan})]
    for finalist, held, why in (
        (champion, champion, "already is the champion"),
        *((it, None, "cannot be judged") for it in unscored),
    ):
        decision = decide(RULE, TASK, finalist, held, forced=True)
        assert (decision.promoted, decision.comparisons) == (False, ())
        assert why in decision.reasons[-1]


# ---- baselines ------------------------------------------------------------------------------------------------------
ALL = PromotionRule()
CHOOSING = {"prompt": "{q}", "options": "choices", "label": "right"}
LM = replace(TASK, kind="multiple-choice", settings=CHOOSING)
CONSTANT = Baseline("constant", test_metrics={"accuracy": 0.5}, answer=0)


def _asked(right: int, base: int | None, *more: Baseline, zero: float = 0.1, **failed: str) -> Scored:
    """An adapter that chooses, and its base alone with four worked examples."""
    answered = {} if base is None else {"accuracy": base / 1000}
    shots = (Baseline("zero-shot", {"accuracy": zero}, **failed), Baseline("4-shot", answered, answered))
    alone = None if base is None else rows(base, 1000)
    return replace(_scored("t0", right, baselines=(CONSTANT, *shots, *more)), untouched=alone)


@pytest.mark.parametrize(("base", "promoted"), [(300, True), (700, True), (797, False)])
def test_a_first_champion_must_beat_the_better_of_constant_answer_and_base_alone(base, promoted):
    decision = decide(ALL, LM, _asked(800, base), None)
    assert decision.promoted is promoted
    named = "constant answer (accuracy 0.5000)" if base < 500 else f"untouched base (4-shot) (accuracy 0.{base}0)"
    assert f"{'over' if base < 800 else 'worse than'} the {named}" in decision.reasons[-1]
    assert [made.opponent for made in decision.comparisons] == ["constant"], "all baselines are one comparison"
    assert decide(NUMBERS, LM, _asked(800, base), None).promoted
    assert decide(replace(ALL, confidence=0), LM, _asked(800, base), None).promoted is (base < 800)


def _answered(num_rows: int, **about) -> dict[str, Baseline]:
    said = Baseline("tfidf", test_answers=rows(600, num_rows).predictions.tolist(), **about)
    return {"tfidf": said, "features": said}


FEATURES = Baseline("features", test_metrics={"accuracy": 0.55})


def _beside(right: int, tfidf: int = 600, features: Baseline = FEATURES, kept: dict | None = None) -> Scored:
    """An adapter beside a study's three baselines; TF-IDF is right in the first `tfidf` of 1000 rows."""
    said = {"tfidf": tfidf, "features": 550}
    answers = {name: Baseline(name, test_answers=rows(n, 1000).predictions.tolist()) for name, n in said.items()}
    baselines = (CONSTANT, Baseline("tfidf", test_metrics={"accuracy": tfidf / 1000}), features)
    own = _scored("t0", right, test_fingerprint="rows", baselines=baselines)
    return replace(own, answers=answers if kept is None else kept)


@pytest.mark.parametrize(
    ("task", "finalist", "why"),
    [
        (LM, _asked(900, None, zero=0.2, failed="disk full"), "zero-shot) was not measured: disk full"),
        (LM, _asked(900, None), "the untouched base was not asked"),
        (LM, replace(_asked(900, 100), untouched=None), "untouched base (4-shot) to the test rows are missing"),
        (LM, _scored("t0", 900), "constant was not measured"),
        (TASK, _beside(900, features=Baseline("features", failed="too many", applies=False)), "too many"),
        (TASK, _beside(900, kept={}), "the answers of tfidf to the test rows are missing"),
        (TASK, _beside(900, kept=_answered(899)), "to 899 test rows, but there are 1000"),
        (TASK, _beside(900, kept=_answered(1000, test_rows="others")), "with fingerprint others"),
        (LM, _asked(900, 600, Baseline("9-shot", failed="they do not fit", applies=False)), ""),
        (TASK, _beside(900, features=Baseline("features", test_metrics={"accuracy": 0.5}, answer=0)), ""),
        (TASK, _beside(900), ""),
    ],
)
def test_what_is_not_known_of_a_baseline_promotes_nothing(task, finalist, why):
    finalist = replace(finalist, candidate=replace(finalist.candidate, test_fingerprint="rows"))
    for champion in (None, _old(700, test_fingerprint="rows")):
        decision = decide(ALL, task, finalist, champion)
        assert decision.promoted is not bool(why)
        assert why in decision.reasons[-1]
        assert ("`loraxs-search resume s1`" in decision.reasons[-1]) is ("was not" in why or "missing" in why)
        assert decision.comparisons or why
        assert decide(RULE, task, finalist, champion).promoted
        assert decide(ALL, task, finalist, champion, forced=True).promoted


@pytest.mark.parametrize(("tfidf", "first", "later"), [(700, True, True), (798, False, True), (809, False, False)])
def test_a_first_champion_must_beat_every_baseline_significantly_and_a_later_one_score_no_lower(tfidf, first, later):
    finalist = _beside(800, tfidf=tfidf)
    for champion, promoted in ((None, first), (_old(700, test_fingerprint="rows"), later)):
        decision = decide(ALL, TASK, finalist, champion)
        assert decision.promoted is promoted
        assert promoted or f"tfidf (accuracy 0.{tfidf}0)" in decision.reasons[-1]
        assert len(decision.comparisons) == 1
        assert decide(RULE, TASK, finalist, champion).promoted


def test_the_constant_answer_is_the_best_one_for_the_metric_that_decides():
    """Always `a` is right in 60 of 100 rows, always `b` has the better F1 of `b`."""
    labels = (np.arange(100) % 5 >= 3).astype(int)  # 40 are `b`
    task = replace(TASK, metrics=("accuracy", "f1"))
    constant = Baseline("constant", test_metrics={"accuracy": 0.6, "f1": 0.0}, answer=0)
    said = ScoredRows(np.where(np.arange(100) < 45, labels, 0), labels)
    finalist = plain_candidate("t0", 0.7, test_metrics={"accuracy": 0.78, "f1": 0.62}, baselines=(constant,))
    decision = decide(replace(RULE, metric="f1"), task, Scored(finalist, said), None)
    assert not decision.promoted
    assert "the constant answer (f1 0.5714)" in decision.reasons[-1]


def _by_loss(trial_id: str, loss: float, counts: int = 3, **other) -> Scored:
    labels = np.zeros(200, np.int64)
    noise = np.random.default_rng(len(trial_id)).normal(0, 0.01, 200)
    losses = ((loss + noise) * counts).astype(np.float32)
    rows = ScoredRows(labels, labels, losses, np.full(200, counts), np.zeros(200, np.int64))
    return Scored(plain_candidate(trial_id, 0.5, test_metrics={"loss": loss, "accuracy": 1.0}, **other), rows)


BY_LOSS = PromotionRule(metric="loss")


def _loss_beside(loss: float, base: float, counts: int = 3) -> Scored:
    shots = (Baseline("zero-shot"), Baseline("4-shot", test_metrics={"loss": base}))
    finalist = _by_loss("t0", loss, baselines=(CONSTANT, *shots))
    return replace(finalist, untouched=_by_loss("base", base, counts).rows)


@pytest.mark.parametrize(("base", "counts", "promoted"), [(0.6, 3, True), (0.4, 3, False), (0.6, 4, False)])
def test_a_loss_is_held_against_the_base_alone_as_no_constant_answer_has_one(base, counts, promoted):
    decision = decide(BY_LOSS, LM, _loss_beside(0.5, base, counts), None)
    assert decision.promoted is promoted
    assert "the untouched base (4-shot) (loss 0." in decision.reasons[-1]
    assert counts == 3 or "of other tokens" in decision.reasons[-1]
    without = decide(replace(BY_LOSS, require="constant"), LM, _by_loss("t0", 0.5), None)
    assert "loss of the constant answer cannot be computed" in without.reasons[-1]


def test_a_baseline_whose_score_is_not_finite_is_not_beaten():
    finalist = _loss_beside(4.0, 2.0)
    losses = finalist.untouched.losses.copy()
    losses[0] = math.inf
    finalist = replace(finalist, untouched=replace(finalist.untouched, losses=losses))
    for champion in (None, _by_loss("old", 5.0, study="s0")):
        decision = decide(BY_LOSS, LM, finalist, champion)
        assert not decision.promoted
        assert "must be finite" in decision.reasons[-1]
        assert decide(BY_LOSS, LM, finalist, champion, forced=True).forced


def test_losses_of_other_tokens_are_not_comparable():
    rule, champion = replace(BY_LOSS, require="constant"), _by_loss("old", 0.6, counts=4, study="s0")
    decision = decide(rule, TASK, _by_loss("t0", 0.5), champion)
    assert not decision.promoted
    assert "loss is a mean over tokens, and the champion's rows have others" in decision.reasons[-1]
    assert decide(rule, TASK, _by_loss("t0", 0.5), _by_loss("old", 0.6, study="s0")).promoted


# ---- earlier decisions on the same rows ------------------------------------------------------------------------------
def made(version: int | None, score: float, **other) -> Decision:
    known = {"task": "t", "study": "s", "promoted": True, "winner": f"t{version}", "winner_metric": score}
    known |= {"champion_metric": None, "metric": "accuracy", "reasons": (), "version": version}
    return Decision(**(known | {"test_fingerprint": "rows"} | other))


def test_the_reference_is_the_best_that_held_this_name_on_these_rows():
    champion = Scored(candidate("t6", 0.79, test_fingerprint="rows"))

    def reference(past, champion=champion, rule=SMALLER, test_rows="rows"):
        finalist = Scored(candidate("new", 0.8, test_fingerprint=test_rows))
        return PromotionTest(rule, TASK, finalist).reference(past, champion, 6)

    elsewhere = [made(3, 0.90, test_fingerprint="other rows"), made(4, 0.95, metric="f1")]
    past = [made(1, 0.80), *elsewhere, made(5, 0.81), made(6, 0.79)]
    assert reference(past) == ToleranceReference(5, 0.81)
    assert reference(past, None, replace(SMALLER, direction="minimize")) == ToleranceReference(6, 0.79)
    assert reference(past, None, test_rows="nowhere") is None
    back = [*past, made(5, 0.81, action="rollback"), made(6, 0.79, action="rollback")]
    assert reference(back) == ToleranceReference(1, 0.80)
    removed = [*past, made(5, 0.81, action="remove", promoted=False)]
    assert reference(removed) == ToleranceReference(1, 0.80)
    assert reference([*removed, made(1, 0.80, forced=True)]) == ToleranceReference(6, 0.79)


def compared(past, name, opponent=None, *, seen=(), p=None):
    """Compare a finalist `s1/NAME`, behind other decisions, with the constant answer or a champion, and record it."""
    finalist = Scored(candidate(name, 0.75, test_fingerprint="rows"), rows(300))
    champion = opponent and Scored(candidate(opponent, 0.7, test_fingerprint="rows"), rows(280))
    decision = PromotionTest(RULE, TASK, finalist).decide(champion, past, seen=seen)
    (record,) = decision.comparisons
    record = record if p is None else replace(record, p_value=p)
    past.append(replace(decision, comparisons=(record,)))
    return record


def test_each_finalist_that_was_scored_on_the_rows_counts_once_whatever_happened_next():
    seen, past = ["s1/t1", "s1/t2", "s1/t3"], list[Decision]()
    assert compared([], "t1", seen=["s1/t1"]).number == 1, "the same finalist is the same comparison"
    assert compared([], "new", seen=[f"s1/t{i}" for i in range(300)]).number == 301, "more than one record names"
    assert compared(past, "t3", seen=seen, p=0.5).number == 3
    assert len(past[0].seen) == 2
    assert compared([*past], "t4", seen=seen).number == 4
    assert compared(past, "t2", seen=seen, p=0.5).number == 3, "it was counted already"
    assert compared(past, "t4", seen=seen).number == 4


def test_a_comparison_that_finds_a_gain_hands_its_share_on_but_not_to_the_best_of_many():
    past, shares = list[Decision](), [0.05 / (n * (n + 1)) for n in range(1, 5)]
    levels = [1 - compared(past, f"t{n}", p=p).confidence for n, p in enumerate((0.001, 0.001, 0.9, 0.9))]
    assert levels == pytest.approx([shares[0], sum(shares[:2]), sum(shares[:3]), shares[3]])
    past.clear()
    compared(past, "t0", p=1e-9)
    late = compared(past, "t7", "t0", seen=[f"s1/t{n}" for n in range(1, 21)])
    assert (late.number, late.confidence) == (21, pytest.approx(1 - 0.05 / (21 * 22)))
