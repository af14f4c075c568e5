"""Two adapters on the same rows: when is one ahead, and when is it luck."""

from __future__ import annotations

import itertools
import tracemalloc
from dataclasses import replace

import numpy as np
import pytest
from safetensors.numpy import load
from scipy.stats import binomtest, norm

from loraxs_search.errors import IntegrityError
from loraxs_search.registry import evidence
from loraxs_search.registry.evidence import ScoredRows, loss_bound
from loraxs_search.tasks.metrics import METRICS, NUMBER_METRICS, TEXT_METRICS, TOKEN_METRICS


def p_value(metric, sign, first, second):
    known = (METRICS | TEXT_METRICS)[metric] if isinstance(metric, str) else metric
    return evidence.p_value(known, sign, first, second)


def rows(predictions, labels) -> ScoredRows:
    return ScoredRows.of(list(predictions), list(labels))


def noisy(labels: np.ndarray, share: float, seed: int) -> ScoredRows:
    """Answers of which about `share` are right."""
    random = np.random.default_rng(seed)
    wrong = random.random(len(labels)) > share
    return rows(np.where(wrong, 1 - labels, labels).tolist(), labels.tolist())


LABELS = np.random.default_rng(5).integers(0, 2, 600)


def test_accuracy_is_mcnemars_exact_test():
    ours, theirs = noisy(LABELS, 0.8, 1), noisy(LABELS, 0.75, 2)
    right, other = ours.predictions == LABELS, theirs.predictions == LABELS
    won, lost = int((right & ~other).sum()), int((~right & other).sum())
    assert p_value("accuracy", 1.0, ours, theirs) == binomtest(won, won + lost, alternative="greater").pvalue
    assert p_value("accuracy", 1.0, rows([0] * 5, [0] * 5), rows([1] * 5, [0] * 5)) == pytest.approx(1 / 32)
    assert p_value("accuracy", 1.0, ours, ours) == 1.0


def by_definition(metric: str, sign: float, ours: ScoredRows, theirs: ScoredRows) -> float:
    """The plain formula: of all ways to exchange the two answers to a row, those that put `ours` as far ahead."""
    score, labels = METRICS[metric].score, ours.labels

    def gain(exchanged: np.ndarray) -> float:
        first = np.where(exchanged, theirs.predictions, ours.predictions)
        second = np.where(exchanged, ours.predictions, theirs.predictions)
        return sign * (score(first, labels) - score(second, labels))

    ways = [np.array(way) for way in itertools.product((False, True), repeat=len(labels))]
    return float(np.mean([gain(way) >= gain(ways[0]) - 1e-9 for way in ways]))


@pytest.mark.parametrize(("metric", "sign"), [("macro_f1", 1.0), ("spearman", 1.0), ("mse", -1.0)])
def test_few_rows_give_the_exact_chance_of_the_permutation_test(metric, sign, monkeypatch):
    monkeypatch.setattr(evidence, "_CHUNK_BYTES", 8 * 7 * 40)  # many chunks, and one that is not full
    for seed in range(2):
        random = np.random.default_rng(seed)
        if metric in NUMBER_METRICS:
            labels = random.normal(3, size=7)
            both = labels + random.normal(size=(2, 7)) * np.array([[0.5], [0.9]])
        else:
            labels = random.integers(0, 2, 7)
            both = np.where(random.random((2, 7)) < np.array([[0.8], [0.5]]), labels, 1 - labels)
        ours, theirs = (rows(values.tolist(), labels.tolist()) for values in both)
        assert p_value(metric, sign, ours, theirs) == pytest.approx(by_definition(metric, sign, ours, theirs))


def test_equal_adapters_differ_no_more_often_than_the_level_says():
    random, found = np.random.default_rng(50), 0
    for _ in range(200):
        labels = random.integers(0, 2, 50)
        both = np.where(random.random((2, 50)) < 0.7, labels, 1 - labels)
        ours, theirs = (rows(values.tolist(), labels.tolist()) for values in both)
        found += p_value("macro_f1", 1.0, ours, theirs) <= 0.05
    assert found <= 200 * 0.05 + 3 * (200 * 0.05 * 0.95) ** 0.5


def test_adapters_that_answer_alike_never_gain():
    """A constant answer has no correlation, and the same answers differ by no rounding."""
    labels = np.linspace(0, 1, 30).tolist()
    alike, flat = rows([0.1 * value for value in labels], labels), rows([0.1] * 30, labels)
    for metric, sign in (("pearson", 1.0), ("mse", -1.0)):
        assert p_value(metric, sign, alike, alike) == 1.0
    assert p_value("pearson", 1.0, flat, flat) == 1.0
    assert p_value("pearson", 1.0, alike, flat) < 0.01


# ---- texts and tokens ------------------------------------------------------------------------------------------------
def tokens(losses: np.ndarray, counts: np.ndarray, correct: np.ndarray) -> ScoredRows:
    texts = [""] * len(losses)
    return ScoredRows.of(texts, texts, losses.tolist(), counts.tolist(), correct.tolist())


def test_means_over_tokens_are_exchanged_as_sums_of_rows():
    random, metric, sign = np.random.default_rng(4), "loss", -1.0
    counts = random.integers(1, 12, 8)
    ours, theirs = (
        tokens(random.exponential(mean, 8) * counts, counts, random.binomial(counts, share))
        for mean, share in ((1.0, 0.52), (1.05, 0.5))
    )
    one, other = (rows_of.column(TOKEN_METRICS[metric].column).astype(float) for rows_of in (ours, theirs))
    signs = np.array(list(itertools.product((1, -1), repeat=8)))
    gains = sign * signs @ (one - other)
    chance = p_value(metric, sign, ours, theirs)
    assert chance == np.mean(gains >= gains[0] - 1e-9)
    assert 0.05 < chance < 0.95, "else there is nothing to compare"
    assert p_value(metric, sign, ours, ours) == 1.0
    assert chance + p_value(metric, sign, theirs, ours) >= 1, "ties count against both"


def test_rows_with_tokens_and_slices_survive_their_file_which_is_not_code():
    full = tokens(np.array([1.5, 0.25]), np.array([2, 1]), np.array([1, 0]))
    read = ScoredRows.from_bytes(full.to_bytes())
    for name in ("losses", "counts", "correct"):
        np.testing.assert_array_equal(read.column(name), full.column(name))
        assert read.column(name).dtype == full.column(name).dtype
    plain, groups = rows([1, 0], [1, 1]), {"token_losses": ["a", "b"], "Sprache.größe": ["", "x y"]}
    assert plain.to_bytes() == rows([1, 0], [1, 1]).to_bytes()
    assert load(plain.to_bytes())["correct"].tolist() == [1, 0]
    read = ScoredRows.from_bytes(ScoredRows.of([1, 0], [1, 1], slices=groups).to_bytes())
    assert {name: values.tolist() for name, values in read.slices.items()} == groups
    assert (read.losses, read.predictions.tolist(), read.labels.tolist()) == (None, [1, 0], [1, 1])
    assert ScoredRows.from_bytes(rows([0.5], [0.25]).to_bytes()).labels.tolist() == [0.25]
    losses = ScoredRows(full.predictions, full.labels, full.losses[:1], full.counts, full.correct)
    for torn in (losses, ScoredRows.of([1, 0], [1, 1], slices={"group": ["a"]})):
        with pytest.raises(IntegrityError, match=r"\[\(1,\), \(2,\)\]"):
            ScoredRows.from_bytes(torn.to_bytes())
    for bad in (b"", b"\x80\x04N.", plain.to_bytes()[:-1]):
        with pytest.raises(IntegrityError):
            ScoredRows.from_bytes(bad)


def test_memory_does_not_grow_with_the_labels():
    """All combinations of 150 labels and two answers, 2,000 times, would be 50 GiB."""
    random = np.random.default_rng(3)
    labels = random.integers(0, 150, 3000)
    good, bad = (
        rows(np.where(random.random(3000) < share, labels, random.integers(0, 150, 3000)).tolist(), labels.tolist())
        for share in (0.8, 0.75)
    )
    tracemalloc.start()
    chance = p_value("macro_f1", 1.0, good, bad)
    peak = tracemalloc.get_traced_memory()[1]
    tracemalloc.stop()
    assert chance < 0.01
    assert p_value("macro_f1", 1.0, good, good) == 1.0
    assert peak < 256 * 2**20


def test_a_small_level_is_reached_by_a_bounded_number_of_draws():
    random, drawn = np.random.default_rng(1), []
    labels = random.normal(size=400)
    ours, theirs = (rows((labels + random.normal(size=400) * size).tolist(), labels.tolist()) for size in (0.7, 1.5))
    known = METRICS["spearman"].of_many
    counted = replace(METRICS["spearman"], of_many=lambda said, true: drawn.append(len(said)) or known(said, true))
    assert 0 < p_value(counted, 1.0, ours, theirs) < 1e-6
    assert sum(drawn) <= evidence.MAX_DRAWS + 4


def test_a_heavier_tail_than_the_normal_one_is_not_taken_for_it():
    random = np.random.default_rng(1)
    ours, theirs = (rows((random.normal(size=200) + 0.6 * n).tolist(), [0.0] * 200) for n in (1, 0))
    light = replace(METRICS["spearman"], of_many=lambda said, true: said.sum(1))
    heavy = replace(METRICS["spearman"], of_many=lambda said, true: ((said - true).sum(1) + 20) ** 5)
    chances = [p_value(metric, 1.0, ours, theirs) for metric in (light, heavy)]
    assert chances[0] < 1e-5 < 1 / (1 + evidence.MAX_DRAWS) <= chances[1]


# ---- how much worse it may be ----------------------------------------------------------------------------------------
@pytest.mark.parametrize(("won", "lost", "n", "level"), [(8, 12, 100, 0.05), (0, 3, 60, 0.01)])
def test_a_bound_on_the_loss_is_the_margin_that_tangos_score_test_just_rejects(won, lost, n, level):
    """Its variance is that of the likeliest shares that differ by the margin."""
    labels, row = np.zeros(n, int), np.arange(n)
    ours, theirs = rows((row < lost).astype(int), labels), rows((row >= n - won).astype(int), labels)
    margin = loss_bound(METRICS["accuracy"], 1.0, ours, theirs, level)
    shares = np.linspace(margin + 1e-9, (1 + margin) / 2 - 1e-9, 2_000_001)  # of rows lost
    likelihood = lost * np.log(shares) + (n - won - lost) * np.log1p(margin - 2 * shares)
    likelihood += won * np.log(shares - margin) if won else 0.0
    best = shares[likelihood.argmax()]
    z = (won - lost + n * margin) / np.sqrt(n * (2 * best - margin - margin**2))
    assert norm.sf(z) == pytest.approx(level, rel=1e-3)
    assert loss_bound(METRICS["accuracy"], 1.0, ours, theirs, level / 10) > margin


@pytest.mark.parametrize("metric", ["macro_f1", "spearman", "mse"])
def test_a_bootstrap_bounds_the_loss_of_other_metrics(metric):
    random, sign = np.random.default_rng(4), -1.0 if metric in ("mse", "mae", "rmse") else 1.0
    if metric in NUMBER_METRICS:
        labels = random.normal(size=300)
        ours, theirs = (rows((labels + random.normal(size=300)).tolist(), labels.tolist()) for _ in range(2))
    else:
        ours, theirs = noisy(LABELS, 0.8, 1), noisy(LABELS, 0.8, 2)
    low, high = (loss_bound(METRICS[metric], sign, ours, theirs, level) for level in (0.1, 0.001))
    score = METRICS[metric].score
    loss = sign * (score(theirs.predictions, ours.labels) - score(ours.predictions, ours.labels))
    assert max(loss, 0.0) < low < high < 1.0
    known, direct = METRICS[metric], []
    for _ in range(300):
        chosen = random.integers(0, len(ours.labels), len(ours.labels))
        direct.append(known.score(ours.predictions[chosen], ours.labels[chosen]))
        direct[-1] -= known.score(theirs.predictions[chosen], ours.labels[chosen])
    assert high - loss == pytest.approx(norm.isf(0.001) * np.std(direct), rel=0.2)


def test_a_few_rows_that_are_answered_alike_do_not_show_that_nothing_is_lost():
    labels = LABELS[:100]
    right = ScoredRows(labels, labels)
    assert 0.03 < loss_bound(METRICS["matthews"], 1.0, right, right, 0.025) < 0.1, (
        "2 of 100 are lost unseen in one case of 8"
    )
    once = labels.copy()
    once[0] = 1 - once[0]
    assert loss_bound(METRICS["matthews"], 1.0, ScoredRows(once, labels), right, 0.025) > 0.04


def test_other_rows_and_means_over_other_tokens_are_not_compared():
    ours = noisy(LABELS, 0.9, 1)
    assert p_value("accuracy", 1.0, ours, noisy(1 - LABELS, 0.9, 1)) is None
    assert p_value("accuracy", 1.0, ours, noisy(LABELS[:-1], 0.9, 1)) is None
    counts, losses = np.array([2, 3, 1]), np.array([1.0, 2.0, 0.5])
    ours, without = tokens(losses, counts, counts), ScoredRows.of([""] * 3, [""] * 3)
    assert p_value("loss", -1.0, ours, tokens(losses, counts + 1, counts)) is None, "another tokenizer"
    assert p_value("loss", -1.0, ours, without) is None
