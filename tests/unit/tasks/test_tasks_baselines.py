"""What rows give without an adapter: the best constant answer, and TF-IDF with a linear model."""

from __future__ import annotations

import itertools
from pathlib import Path

import numpy as np
import pytest
import torch

from loraxs_search.tasks.baselines import BASELINES, SPLITS, BaselineModel
from loraxs_search.tasks.prepared import prepare


@pytest.fixture
def prepared(make_task, tokenizer):
    """Prepare rows given by split, each a tuple of text (or two) and label."""

    def make(train, validation=None, test=None, **changes):
        parts = {"train": train, "validation": validation or train, "test": test or train}
        files = {
            name: [dict(zip(("text", "label") if len(row) == 2 else ("text", "second", "label"), row)) for row in rows]  # noqa: B905
            for name, rows in parts.items()
        }
        pair = {"text_pair": "second"} if len(train[0]) == 3 else {}
        return prepare(make_task(files, **pair, **changes), tokenizer)

    return make


def measured(name, data):
    """Measure a baseline of the rows alone."""
    return BASELINES.get(name)(data, torch.nn.Identity(), torch.device("cpu")).measure()


def labelled(*counts):
    """As many rows of each label as `counts` says, all of other words."""
    words = itertools.count()
    return [(f"w{next(words)}", label) for label, count in enumerate(counts) for _ in range(count)]


# ---- the constant answer ---------------------------------------------------------------------------------------------
def test_the_constant_is_the_best_on_the_train_rows_by_the_tasks_metric(prepared):
    for counts, metric, answer in [
        ((6, 2), "f1", 1),  # whatever is more frequent, F1 is of label 1
        ((6, 2), "macro_f1", 0),
        ((2, 3, 3), "macro_f1", 1),
    ]:
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


# ---- TF-IDF ----------------------------------------------------------------------------------------------------------
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


# ---- what goes wrong -------------------------------------------------------------------------------------------------
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
