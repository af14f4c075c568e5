"""Scores and what they are worth: metrics, models without an adapter, and what the data say of themselves."""

from __future__ import annotations

import itertools
from dataclasses import replace
from pathlib import Path

import numpy as np
import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st
from sklearn import metrics as sklearn_metrics

from loraxs_search.records.task import DataReport, SplitOverlap
from loraxs_search.tasks.baselines import BASELINES, SPLITS, BaselineModel
from loraxs_search.tasks.metrics import LABEL_SET_METRICS, LEVEL_METRICS, METRICS, TAG_METRICS, TEXT_METRICS
from loraxs_search.tasks.prepared import prepare
from loraxs_search.tasks.report import data_warnings, standard_error

# ---- metrics ---------------------------------------------------------------------------------------------------------
TRUE = np.array([0, 1, 0, 1, 1, 1])


def test_numbers_of_any_size_are_scored_in_float64():
    for mean, spread in [(1e7, 10.0), (0.0, 1e25), (0.0, 1e-25)]:
        noise = np.random.default_rng(0).standard_normal((2, 1000))
        both = [(mean + spread * it).astype(np.float32) for it in (noise.sum(0), noise[0])]
        exact = [it.astype(np.float64) for it in both]
        assert METRICS["mse"].score(*both) == pytest.approx(np.square(exact[0] - exact[1]).mean(), rel=1e-9)
        assert METRICS["pearson"].score(*both) == pytest.approx(np.corrcoef(*exact)[0, 1], rel=1e-9)


def test_errors_of_numbers_are_those_of_sklearn():
    draw = np.random.default_rng(0)
    true = (150_000 + draw.standard_normal(500)).astype(np.float32)
    said = true.astype(np.float64) + draw.standard_normal(500)
    exact = true.astype(np.float64)
    for name, known in {
        "mae": sklearn_metrics.mean_absolute_error,
        "rmse": sklearn_metrics.root_mean_squared_error,
        "r2": sklearn_metrics.r2_score,
    }.items():
        assert METRICS[name].score(said, true) == pytest.approx(known(exact, said), rel=1e-9)
    assert METRICS["r2"].score(said, np.full(500, 7.0)) == 0.0


def test_answers_that_differ_by_rounding_alone_are_constant():
    same = np.full(100, 0.3, np.float32)
    same[::3] = np.nextafter(same[0], np.float32(1))
    labels = np.arange(100, dtype=np.float32)
    assert METRICS["pearson"].score(same, labels) == METRICS["spearman"].score(same, labels) == 0.0
    close = 150_000 + labels
    assert METRICS["pearson"].score(close, labels) == pytest.approx(1.0)


def test_constant_predictions_or_labels_give_a_number_without_warning():
    for name, metric in METRICS.items():
        same = np.full(6, 1)
        for predictions, labels in ((same, TRUE), (TRUE, same), (same, same), (same[:1], same[:1])):
            value = metric.score(predictions, labels)
            assert value == 0.0 if name in ("matthews", "pearson", "spearman") else np.isfinite(value)


NUMBERS = st.integers(-40, 40).map(lambda quarters: quarters / 4)  # ties and constants occur


@given(st.lists(st.tuples(NUMBERS, NUMBERS), min_size=1, max_size=20))
def test_many_answers_at_once_are_correlated_as_one_is(pairs):
    predictions, labels = (np.array(column) for column in zip(*pairs, strict=True))
    pearson, spearman = METRICS["pearson"], METRICS["spearman"]
    counts, some = pearson.row_counts(predictions, labels), slice(len(labels) // 2, None)
    for rows in (slice(None), some):  # of a draw, the labels' mean is another one
        known = pearson.score(predictions[rows], labels[rows])
        assert pearson.of_counts(counts[rows].sum(0)) == pytest.approx(known, rel=1e-6, abs=1e-6)
    (of_many,) = spearman.of_many(predictions[None], labels[None])
    assert of_many == pytest.approx(spearman.score(predictions, labels), rel=1e-6, abs=1e-6)


@pytest.mark.parametrize("num_labels", [2, 3])
@given(st.lists(st.tuples(st.integers(0, 2), st.integers(0, 2)), min_size=1, max_size=40))
def test_metrics_of_classes_are_those_of_sklearn(num_labels, pairs):
    predictions, labels = (np.minimum(column, num_labels - 1) for column in zip(*pairs, strict=True))
    known = {"macro_f1": sklearn_metrics.f1_score(labels, predictions, average="macro", zero_division=0.0)}
    if len({*labels, *predictions}) > 1:  # else it warns
        known["matthews"] = sklearn_metrics.matthews_corrcoef(labels, predictions)
    if num_labels == 2:
        known["f1"] = sklearn_metrics.f1_score(labels, predictions, zero_division=0.0)
    assert {name: METRICS[name].score(predictions, labels) for name in known} == pytest.approx(known)


@given(st.lists(st.tuples(st.integers(0, 4), st.integers(0, 4)), min_size=1, max_size=40))
def test_metrics_of_levels_are_those_of_sklearn(pairs):
    predictions, labels = map(np.array, zip(*pairs, strict=True))
    known = {"mae": sklearn_metrics.mean_absolute_error(labels, predictions), "quadratic_kappa": 0.0}
    known["accuracy"] = sklearn_metrics.accuracy_score(labels, predictions)
    if len({*labels, *predictions}) > 1:  # else it is none
        of_five = {"labels": range(5), "weights": "quadratic"}
        known["quadratic_kappa"] = sklearn_metrics.cohen_kappa_score(labels, predictions, **of_five)
    assert {name: metric.score(predictions, labels) for name, metric in LEVEL_METRICS.items()} == pytest.approx(known)


SETS = st.sets(st.integers(0, 3))


@given(st.lists(st.tuples(SETS, SETS), min_size=1, max_size=20))
def test_metrics_of_label_sets_are_those_of_sklearn(pairs):
    said, true = (np.array([[label in own for label in range(4)] for own in side]) for side in zip(*pairs, strict=True))
    texts = [
        np.array(["|".join("abcd"[i] for i in np.flatnonzero(row)) for row in side], object) for side in (said, true)
    ]
    occurs = np.flatnonzero((said | true).any(0))
    known = {"micro_f1": 0.0, "macro_f1": 0.0, "subset_accuracy": sklearn_metrics.accuracy_score(true, said)}
    if len(occurs):
        for way in ("micro", "macro"):
            known[f"{way}_f1"] = sklearn_metrics.f1_score(true, said, labels=occurs, average=way, zero_division=0.0)
    assert {name: metric.score(*texts) for name, metric in LABEL_SET_METRICS.items()} == pytest.approx(known)


def test_less_is_better_of_errors_alone():
    tables = (METRICS, TAG_METRICS, TEXT_METRICS, LEVEL_METRICS, LABEL_SET_METRICS)
    falling = {name for table in tables for name, metric in table.items() if metric.direction == "minimize"}
    assert falling == {"mse", "mae", "rmse", "loss"}


def test_texts_are_compared_by_words_as_squad_compares_them():
    for metric, prediction, reference, score in [
        ("token_f1", "The cat, sat.", "a cat sat", 1.0),
        ("token_f1", "", "cat", 0.0),
        ("token_f1", "cat cat", "cat cat dog", 0.8),
        ("token_f1", "cafe\u0301", "caf\u00e9", 1.0),
        ("token_f1", "我喜欢北京", "北京", 4 / 7),
        ("contains", "It is Paris, of course", "paris", 1),
        ("contains", "Parisian", "Paris", 0),
        ("contains", "1.5 or 1,500", "5", 0),
        ("contains", "It is -5", "5", 0),
        ("contains", "\u6211\u5728\u5317\u4eac\u5e02", "\u5317\u4eac", 1),
    ]:
        texts = np.array([prediction], object), np.array([reference], object)
        assert TEXT_METRICS[metric].of_rows(*texts) == pytest.approx([score])


# ---- baselines -------------------------------------------------------------------------------------------------------
@pytest.fixture
def prepared(make_task, tokenizer):
    """Prepare rows given by split, each a tuple of text (or two) and label."""

    def make(train, validation=None, test=None, **changes):
        parts = {"train": train, "validation": validation or train, "test": test or train}
        pair = ("second",) if len(train[0]) == 3 else ()
        keys = ("text", *pair, "label")
        files = {name: [dict(zip(keys, row, strict=True)) for row in rows] for name, rows in parts.items()}
        return prepare(make_task(files, text_pair=pair[0] if pair else None, **changes), tokenizer)

    return make


def measured(name, data):
    """Measure a baseline of the rows alone."""
    return BASELINES.get(name)(data, torch.nn.Identity(), torch.device("cpu")).measure()


def labelled(*counts):
    """As many rows of each label as `counts` says, all of other words."""
    words = itertools.count()
    return [(f"w{next(words)}", label) for label, count in enumerate(counts) for _ in range(count)]


def test_the_constant_is_the_best_on_the_train_rows_by_the_tasks_metric(prepared):
    for counts, metric, answer in [((6, 2), "f1", 1), ((6, 2), "macro_f1", 0), ((2, 3, 3), "macro_f1", 1)]:
        labels = tuple(f"label {i}" for i in range(len(counts)))
        data = prepared(labelled(*counts), labelled(*reversed(counts)), metric=metric, metrics=(metric,), labels=labels)
        found = measured("constant", data)
        assert (found.name, found.answer, found.failed) == ("constant", answer, "")
        for split, metrics in (("validation", found.validation_metrics), ("test", found.test_metrics)):
            labels = data.labels(split)
            assert metrics == data.kind.measure(np.full(len(labels), answer), labels)


def test_the_constant_of_a_regression_is_the_mean_and_has_finite_scores(prepared):
    changes = {"kind": "regression", "labels": (), "metric": "mse", "direction": "minimize"}
    rows = [("w1", 1.0), ("w2", 2.0), ("w3", 6.0)]
    found = measured("constant", prepared(rows, **changes, metrics=("pearson", "mse")))
    assert (found.answer, found.test_metrics) == (3.0, {"pearson": 0.0, "mse": pytest.approx(14 / 3)})


def numbered(texts, num_rows):
    """Rows that say one of `texts` among words that say nothing."""
    return [(f"w{i % 50} {text} w{(7 * i) % 50}", label) for i in range(num_rows) for text, label in texts.items()]


def test_tfidf_learns_what_the_words_tell(prepared):
    for texts in [
        {"good film": 0, "film good": 1},  # only the order tells
        {"这部电影很好看": 0, "这部电影不好看": 1},
        {"?!": 0, "!?": 1},
    ]:
        # Those validation rows that are scored are not the first ones.
        data = prepared(*(numbered(texts, n) for n in (30, 9, 11)), max_length=32, validation_rows=13)
        found = measured("tfidf", data)
        assert found.failed == ""
        assert (found.validation_metrics, found.test_metrics) == ({"accuracy": 1.0}, {"accuracy": 1.0})


def test_tfidf_of_pairs_sees_what_both_share(prepared):
    def rows(distance):
        pairs = [(i, (i + j) % 100) for i in range(100) for j in (0, distance)]
        return [(f"w{i} w{i + 1} film", f"a w{j} w{j + 1}", int(i == j)) for i, j in pairs]

    found = measured("tfidf", prepared(rows(9), rows(40), rows(50), max_length=32))
    assert found.test_metrics["accuracy"] == 1.0


def test_tfidf_predicts_numbers_and_the_one_label_of_train(prepared):
    texts = {"dull": -1.0, "fine": 2.0, "very fine": 3.0}
    changes = {"kind": "regression", "labels": (), "metric": "pearson", "metrics": ("pearson", "mse")}
    found = measured("tfidf", prepared(numbered(texts, 40), numbered(texts, 9), **changes))
    assert found.validation_metrics["pearson"] > 0.98
    found = measured("tfidf", prepared(labelled(0, 8), labelled(2, 6), labelled(4, 4)))
    assert (found.failed, found.validation_metrics, found.test_metrics) == ("", {"accuracy": 0.75}, {"accuracy": 0.5})


def test_features_are_means_over_a_rows_own_tokens(prepared):
    class Body(torch.nn.Module):
        def forward(self, input_ids, **_):
            return (input_ids[..., None].float(),)

    data = prepared([(f"w{i} " * (1 + i % 5), i % 2) for i in range(9)])
    rows = np.array([3, 0, 4, 8])
    found = BASELINES.get("features")(data, Body(), torch.device("cpu")).states("test", rows)
    assert found[:, 0].tolist() == pytest.approx([data.encoded("test").ids.row(row).mean() for row in rows])


def test_rows_that_have_changed_are_not_scored(prepared):
    data = prepared(numbered({"bad": 0, "good": 1}, 10))
    path = Path(data.task.source.data_files["train"])
    path.write_text(path.read_text().replace("good", "bad"))
    found = measured("tfidf", data)
    assert found.failed.startswith("The rows must stay as the search began with them, but their fingerprint ")
    assert (found.validation_metrics, found.test_metrics) == ({}, {})


def test_a_model_that_fails_at_the_test_rows_keeps_its_validation_scores(prepared):
    class HalfDone(BaselineModel):
        name = title = "half-done"

        def answers(self):
            yield SPLITS[0], self.data.labels(SPLITS[0])
            raise ValueError("no\nmore")

    data = prepared(labelled(2, 2))
    found = HalfDone(data, torch.nn.Identity(), torch.device("cpu")).measure()
    assert (found.validation_metrics, found.test_metrics) == ({"accuracy": 1.0}, {})
    assert found.failed == "ValueError: no"


# ---- what splits share and repeat ------------------------------------------------------------------------------------
def content(*texts, label=0):
    return [{"text": text, "label": label} for text in texts]


def test_rows_shared_between_splits_are_counted_exactly_and_folded(make_task, tokenizer):
    files = {
        "train": content("a good film", "dull", "very fine", "w1", label=1),  # labels play no part
        "validation": content("Dull", "w5", "w6"),
        "test": content("a good film", "a good film", "A  Good film\n", "w5", "w7"),
    }
    report = prepare(make_task(files), tokenizer).report
    assert report.num_rows == {"train": 4, "validation": 3, "test": 5}
    assert report.repeated == {"train": 0, "validation": 0, "test": 1}
    places = ("validation_rows_in_train", "test_rows_in_train", "test_rows_in_validation")
    counted = [(report.counts[place], report.counts[f"{place}_folded"]) for place in places]
    assert counted == [(0, 1), (2, 3), (1, 1)]
    pairs = {"train": "ab", "validation": "c", "test": "bd"}
    files = {split: [{"text": "a", "second": it, "label": 0} for it in own] for split, own in pairs.items()}
    of_pairs = prepare(make_task(files, text_pair="second"), tokenizer).report.overlaps
    assert [(it.exact, it.folded) for it in of_pairs] == [(0, 0), (1, 1), (0, 0)], "of a pair both texts count"


def test_each_warning_says_what_and_how_much():
    errors = {"validation": {"error": 0.08, "reach": 0.5}, "test": {"error": 0.0, "reach": 0.0}}
    report = DataReport(
        num_rows={"train": 500, "validation": 60, "test": 100},
        overlaps=(SplitOverlap("test", "train", 80, 89), SplitOverlap("test", "validation", 2, 2)),
        repeated={"train": 5, "validation": 0, "test": 0},
        blank={"train": 3, "validation": 0, "test": 0},
        cut={"train": 4, "validation": 3, "test": 0},
        standard_errors={split: {"accuracy": own} for split, own in errors.items()},
    )
    scored = {"train": 500, "validation": 29, "test": 1}
    said = [
        *("89 of 100 test rows are also in train", "2 of 100 test rows are also in validation", "5 of 500 train"),
        *("3 of 500 train", "3 of 29 validation", "1 test row is", "0.08 on the 29 validation rows"),
    ]
    warnings = data_warnings(report, scored, "accuracy")
    assert [part in warning for warning, part in zip(warnings, said, strict=True)] == [True] * 7, warnings
    # A few repeated texts among many rows are usual.
    few = replace(report, overlaps=(), blank={}, cut={}, standard_errors={}, repeated={"train": 4})
    assert data_warnings(few, scored, "accuracy") == []


# ---- lengths, answers, what a score is worth -------------------------------------------------------------------------
def test_a_report_says_how_long_rows_are_and_what_their_answers_are(make_task, tokenizer, rows):
    files = {
        "train": [*content(*(f"w{i}" for i in range(6))), *content("good " * 30, label=1)],
        "validation": content("w7", "w8 w9"),
        "test": [*content("w10"), *content("w11 w12 w13", label=1)],
    }
    report = prepare(make_task(files, max_length=8), tokenizer).report
    assert report.tokens["train"] == {"median": 3, "longest": 32}  # with the tokens that begin and end a text
    assert (report.cut, report.cut_part) == ({"train": 1, "validation": 0, "test": 0}, "ends")
    answers = {fact.name: list(fact.values.values()) for fact in report.answers}
    assert answers == {"negative": [6, 2, 1], "positive": [1, 0, 1]}
    assert report.warnings == ("no validation row has the label positive, of which nothing is scored",)
    assert report.constant is not None
    assert (report.constant.answer, report.constant.scores["test"]) == ("negative", {"accuracy": 0.5})
    assert report.standard_errors["validation"]["accuracy"]["reach"] == 0
    assert any("1 of 7 train rows are longer" in it for it in data_warnings(report, report.num_rows, "accuracy"))
    some = prepare(make_task(files | {"validation": rows(30)}, validation_rows=10), tokenizer).report
    assert sum(fact.values["validation"] for fact in some.answers) == 10, "of validation the rows that are scored"
    assert some.num_rows["validation"] == 30


def test_a_standard_error_is_that_of_other_draws_of_rows():
    known = standard_error(METRICS["accuracy"], np.array([0, 1] * 50), 0)
    assert known == pytest.approx({"reach": 0.5, "error": np.sqrt(0.75 * 0.25 / 100)})
    for name in ["macro_f1", "pearson", "spearman", "mse"]:
        draw, metric = np.random.default_rng(1), METRICS[name]
        every = draw.integers(2, size=20_000) if name == "macro_f1" else draw.normal(size=20_000)
        constant = 1 if name == "macro_f1" else 0.0
        answers = np.where(draw.random(len(every)) < 0.5, every, constant)
        draws = [draw.integers(len(every), size=200) for _ in range(300)]
        spread = np.std([metric.score(answers[rows], every[rows]) for rows in draws])
        assert standard_error(metric, every[:200], constant)["error"] == pytest.approx(spread, rel=0.3)
        assert standard_error(metric, every, constant)["error"] == pytest.approx(spread / 10, rel=0.3)
