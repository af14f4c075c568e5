"""What splits share and repeat is counted, and told where a score would mean less than it seems to."""

from __future__ import annotations

from dataclasses import replace

import numpy as np
import pytest

from loraxs_search.records.task import AnswerFact, DataReport, SplitOverlap
from loraxs_search.tasks.metrics import METRICS
from loraxs_search.tasks.prepared import load_data, prepare
from loraxs_search.tasks.report import data_warnings, standard_error


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
    assert report.counts == {
        "validation_rows_in_train": 0,
        "validation_rows_in_train_folded": 1,
        "test_rows_in_train": 2,
        "test_rows_in_train_folded": 3,
        "test_rows_in_validation": 1,
        "test_rows_in_validation_folded": 1,
        **{f"{split}_rows_cut": 0 for split in files},
    }
    pairs = {
        split: [{"text": "a", "second": second, "label": 0} for second in own]
        for split, own in {"train": "ab", "validation": "c", "test": "bd"}.items()
    }
    of_pairs = prepare(make_task(pairs, text_pair="second"), tokenizer).report.overlaps
    assert [(it.exact, it.folded) for it in of_pairs] == [(0, 0), (1, 1), (0, 0)], "of a pair both texts count"


def test_rows_that_a_file_has_twice_are_named_where_splits_were_carved_out_of_it(make_task, rows, tokenizer):
    """Texts that differ in case alone are rows of their own, so carving may part them."""
    task = make_task({"train": [{**row, "text": row["text"].upper()} for row in rows(60)] + rows(60)})
    report = prepare(task, tokenizer).report
    shared = [warning for warning in data_warnings(report, {}, "none") if "are also in" in warning]
    loaded = load_data(task)
    folded = {split: [text.casefold() for text in own.texts] for split, own in loaded.items()}
    row = next(i for i, text in enumerate(folded["validation"]) if text in folded["train"])
    own, other = loaded["validation"].place, loaded["train"].place
    places = f"{own.row(row)} and {other.row(folded['train'].index(folded['validation'][row]))}, "
    assert shared[0].startswith(f"{report.overlaps[0].folded} of 12 validation rows ") and places in shared[0]


def test_each_warning_says_what_and_how_much():
    report = DataReport(
        num_rows={"train": 500, "validation": 60, "test": 100},
        overlaps=(SplitOverlap("test", "train", 80, 89), SplitOverlap("test", "validation", 2, 2)),
        repeated={"train": 5, "validation": 0, "test": 0},
        blank={"train": 3, "validation": 0, "test": 0},
        cut={"train": 4, "validation": 3, "test": 0},
        standard_errors={
            "validation": {"accuracy": {"error": 0.08, "reach": 0.5}},
            "test": {"accuracy": {"error": 0.0, "reach": 0.0}},
        },
    )
    scored = {"train": 500, "validation": 29, "test": 1}
    said = [
        ("89 of 100 test rows are also in train", "80 letter for letter", "memory"),
        ("2 of 100 test rows are also in validation", "trials are chosen"),
        ("5 of 500 train",),
        ("3 of 500 train",),
        ("3 of 29 validation", "beginnings"),
        ("1 test row is",),
        ("0.08 on the 29 validation rows", "0.16 apart", "50 rows"),
    ]
    for warning, parts in zip(data_warnings(report, scored, "accuracy"), said, strict=True):
        assert all(part in warning for part in parts), warning
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
    assert report.answers == (
        AnswerFact("negative", {"train": 6, "validation": 2, "test": 1}),
        AnswerFact("positive", {"train": 1, "validation": 0, "test": 1}),
    )
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
