"""What splits share and repeat is counted, and told where a score would mean less than it seems to."""

from __future__ import annotations

from dataclasses import replace

import pytest

from loraxs_search.records import DataReport, SplitOverlap
from loraxs_search.tasks import data_warnings, load_data, overlap_counts, prepare


def content(*texts, label=0):
    return [{"text": text, "label": label} for text in texts]


def test_rows_shared_between_splits_are_counted_exactly_and_folded(make_task, tokenizer):
    files = {
        "train": content("a good film", "dull", "very fine", "w1", label=1),
        "validation": content("Dull", "w5", "w6"),
        "test": content("a good film", "a good film", "A  Good film\n", "w5", "w7"),
    }
    report = prepare(make_task(files), tokenizer).report
    assert report.num_rows == {"train": 4, "validation": 3, "test": 5}
    assert report.overlaps == (
        SplitOverlap("validation", "train", 0, 1),
        SplitOverlap("test", "train", 2, 3),  # labels play no part
        SplitOverlap("test", "validation", 1, 1),
    )
    assert report.repeated == {"train": 0, "validation": 0, "test": 1}
    assert overlap_counts(report) == {
        "validation_rows_in_train": 0,
        "validation_rows_in_train_folded": 1,
        "test_rows_in_train": 2,
        "test_rows_in_train_folded": 3,
        "test_rows_in_validation": 1,
        "test_rows_in_validation_folded": 1,
    }


@pytest.mark.parametrize("damaged", [b"", b"[]", b"{}", b'{"overlaps": [{}]}'])
def test_rows_are_counted_once_for_each_content(make_task, rows, loraxs_home, damaged):
    task = make_task()
    first = load_data(task).report
    (path,) = (loraxs_home / "datasets" / "reports").iterdir()
    written = path.stat().st_mtime_ns
    again = load_data(task).report
    assert (again, path.stat().st_mtime_ns) == (first, written)
    assert list(again.repeated) == list(first.repeated) == ["train", "validation", "test"]
    path.write_bytes(damaged)
    assert load_data(task).report == first
    load_data(make_task({"train": rows(41)}))
    assert len(list(path.parent.iterdir())) == 2


def test_of_a_pair_both_texts_count(make_task):
    def pairs(*seconds):
        return [{"text": "a film", "second": second, "label": 0} for second in seconds]

    files = {"train": pairs("one", "two"), "validation": pairs("three"), "test": pairs("two", "four")}
    report = load_data(make_task(files, text_pair="second")).report
    assert [(it.exact, it.folded) for it in report.overlaps] == [(0, 0), (1, 1), (0, 0)]


def test_carved_splits_share_no_text_letter_for_letter(make_task, rows):
    report = load_data(make_task({"train": rows(50) * 3})).report
    assert all(it.folded == 0 for it in report.overlaps)
    assert sum(report.repeated.values()) == 100


def test_a_task_that_shares_nothing_has_no_warning(make_task, rows):
    files = {"train": rows(400), "validation": rows(40, "good w"), "test": rows(40, "bad w")}
    report = load_data(make_task(files)).report
    assert data_warnings(report, report.num_rows) == []


def test_each_warning_says_what_and_how_much():
    report = DataReport(
        num_rows={"train": 500, "validation": 60, "test": 100},
        overlaps=(SplitOverlap("test", "train", 80, 89), SplitOverlap("test", "validation", 2, 2)),
        repeated={"train": 5, "validation": 0, "test": 0},
        blank={"train": 3, "validation": 0, "test": 0},
    )
    shared, also, repeated, blank, few, one = data_warnings(report, {"train": 500, "validation": 29, "test": 1})
    assert shared == (
        "89 of 100 test rows are also in train (80 letter for letter, the others up to case and white space): "
        "a score on them measures memory; take them out of one of the two"
    )
    assert also.startswith("2 of 100 test rows are also in validation: trials are chosen by these rows")
    assert repeated == "5 of 500 train rows repeat the text of an earlier one"
    assert blank == "3 of 500 train rows have an empty text"
    assert few == "validation scores are of 29 rows: one row is 3.4 points of accuracy"
    assert one == "test scores are of 1 row: one row is 100.0 points of accuracy"
    # A few repeated texts among many rows are usual.
    assert data_warnings(replace(report, overlaps=(), blank={}, repeated={"train": 4}), report.num_rows) == []
