"""Rows from nested columns, slices of splits, several data sets of the hub; long rows left out; how many are carved."""

from __future__ import annotations

import json
from dataclasses import replace
from pathlib import Path

import datasets
import pytest

from loraxs_search.errors import TaskDataError
from loraxs_search.records.task import DataSource, SplitSource
from loraxs_search.tasks.prepared import load_data
from loraxs_search.tasks.rows import Columns, with_parents, with_parts


def hub_folder(folder: Path, **splits) -> str:
    for name, rows in splits.items():
        datasets.Dataset.from_list(rows).to_parquet(folder / f"{name}.parquet")
    return str(folder)


# ---- parts of columns ------------------------------------------------------------------------------------------------
def test_a_part_of_an_object_and_of_a_list_of_objects():
    columns = Columns(["a", "b"], {"a": [{"x": [1, 2]}, {"x": [3]}], "b": [[{"y": 1}, {"y": 2}], []]})
    read = with_parts(columns, ["a.x", "b.y"])
    assert (read.values["a.x"], read.values["b.y"]) == ([[1, 2], [3]], [[1, 2], []])
    assert read.available == ["a", "b", "a.x", "b.y"]


def test_a_part_that_no_row_has_is_no_column():
    columns = Columns(["a"], {"a": [{"x": 1}, "text", None]})
    assert with_parts(columns, ["a.z", "a.x.y"]).available == ["a"]
    assert with_parts(columns, ["a.x"]).values["a.x"] == [1, None, None]


def test_a_column_with_a_dot_in_its_name_is_itself():
    columns = Columns(["a", "a.x"], {"a": [{"x": 1}], "a.x": [2]})
    assert with_parts(columns, ["a.x"]) == columns
    assert with_parents(["a.x", "a", "c.y", "label"]) == ["c", "a.x", "a", "c.y", "label"]


@pytest.mark.parametrize("kind", ["jsonl", "parquet", "hub"])
def test_nested_columns_are_read_from_every_source_that_nests(kind, tmp_path, make_task):
    rows = [{"doc": {"body": f"w{i}"}, "answer": {"label": i % 2}} for i in range(20)]
    if kind == "jsonl":
        (tmp_path / "rows.jsonl").write_text("".join(json.dumps(row) + "\n" for row in rows))
    else:
        datasets.Dataset.from_list(rows).to_parquet(tmp_path / "hub" / "train.parquet")
    file = tmp_path / ("rows.jsonl" if kind == "jsonl" else "hub/train.parquet")
    source = DataSource(hub=str(tmp_path / "hub")) if kind == "hub" else DataSource(data_files={"train": str(file)})
    data = load_data(replace(make_task(), source=source, text="doc.body", label="answer.label"))
    texts = [text for split in data.rows.values() for text in split.texts]
    assert sorted(texts) == sorted(row["doc"]["body"] for row in rows)
    assert all(
        int(text[1:]) % 2 == label for s in data.rows.values() for text, label in zip(s.texts, s.labels, strict=True)
    )


def test_a_missing_part_is_named_as_it_is_written(tmp_path, make_task):
    (tmp_path / "rows.jsonl").write_text(json.dumps({"doc": {"body": "w1"}, "label": 0}) + "\n")
    task = replace(make_task(), source=DataSource(data_files={"train": str(tmp_path / "rows.jsonl")}), text="doc.txt")
    with pytest.raises(TaskDataError, match=r"`columns.text`.*: doc, label, .*'doc.txt'"):
        load_data(task)


# ---- slices, and splits of other data sets ---------------------------------------------------------------------------
def test_a_slice_takes_some_rows(tmp_path, make_task, rows):
    hub = hub_folder(tmp_path / "set", train=rows(40), test=rows(9, "bad w"))
    source = DataSource(hub=hub, splits={"train": "train[:20]", "validation": "train[30:]", "test": "test[2:5]"})
    data = load_data(replace(make_task(), source=source))
    assert {split: len(it) for split, it in data.rows.items()} == {"train": 20, "validation": 10, "test": 3}
    assert data.rows["validation"].texts[0].startswith("w30")


def test_a_slice_of_a_split_that_is_missing_names_the_split(tmp_path, make_task, rows):
    source = DataSource(hub=hub_folder(tmp_path / "set", train=rows(40)), splits={"train": "trian[:20]"})
    with pytest.raises(TaskDataError, match=r"`splits.train`.*: train, .*'trian'"):
        load_data(replace(make_task(), source=source))


def test_test_rows_from_another_data_set_with_other_columns(tmp_path, make_task, rows):
    hub = hub_folder(tmp_path / "set", train=rows(40))
    other = [{"question": f"other w{i}", "gold": i % 2} for i in range(12)]
    held = hub_folder(tmp_path / "other", test=other)
    apart = SplitSource(hub=held, split="test[:8]", rename={"question": "text", "gold": "label"})
    task = make_task()
    data = load_data(replace(task, source=DataSource(hub=hub, splits={"train": "train"}, test=apart)))
    assert data.rows["test"].texts == [row["question"] for row in other[:8]]
    assert sum(len(data.rows[split]) for split in ("train", "validation")) == 40, "validation is carved, test is not"
    wrong = replace(apart, split="held")
    with pytest.raises(TaskDataError, match=r"`data.test.split`.*: test, .*'held'"):
        load_data(replace(task, source=DataSource(hub=hub, test=wrong)))


@pytest.mark.parametrize("stored", [-1, None])
def test_test_rows_of_the_hub_whose_labels_are_hidden_are_carved(tmp_path, make_task, rows, stored):
    hidden = [{**row, "label": stored, "language": "hidden"} for row in rows(9, "bad w")]
    train = [{**row, "language": "en"} for row in rows(60)]
    source = DataSource(hub=hub_folder(tmp_path / "set", train=train, test=hidden))
    data = load_data(replace(make_task(), source=source, slices=("language",)))
    assert {split: len(own) for split, own in data.rows.items()} == {"train": 48, "validation": 6, "test": 6}
    assert data.rows["test"].slices == {"language": ["en"] * 6}


def test_local_files_may_stand_beside_a_split_of_the_hub(tmp_path, make_task, rows):
    apart = SplitSource(hub=hub_folder(tmp_path / "set", test=rows(11, "bad w")), split="test")
    task = make_task({"train": rows(40)})
    data = load_data(replace(task, source=replace(task.source, test=apart)))
    assert len(data.rows["test"]) == 11


def numbered(folder: Path, **splits: list[str]) -> str:
    """Write splits whose ids have these names; each row's text is the name of its id."""
    for split, names in splits.items():
        features = datasets.Features(text=datasets.Value("string"), label=datasets.ClassLabel(names=names))
        rows = [{"text": f"{names[i % 2]} {i}", "label": i % 2} for i in range(20)]
        datasets.Dataset.from_list(rows, features).to_parquet(folder / f"{split}.parquet")
    return str(folder)


def test_an_id_has_one_name_in_all_files_of_a_folder(tmp_path, make_task):
    """`datasets` reads the ids of all of them as those of the first one."""
    folder = numbered(tmp_path / "set", train=["neg", "pos"], test=["pos", "neg"])
    with pytest.raises(TaskDataError, match=r"the one of 'neg' is 'pos' in .*test\.parquet"):
        load_data(replace(make_task(), source=DataSource(hub=folder), labels=("neg", "pos")))


def test_an_id_has_one_name_in_all_splits(tmp_path, make_task):
    folder = numbered(tmp_path / "set", train=["neg", "pos"], test=["pos", "neg"])
    files = {split: f"{folder}/{split}.parquet" for split in ("train", "test")}
    task = replace(make_task(), source=DataSource(data_files=files))
    with pytest.raises(TaskDataError, match=r"0 is 'neg' in .*train.* and 'pos' in .*test"):
        load_data(task)
    for labels in (("neg", "pos"), ("pos", "neg"), ("Neg", "Pos")):
        for split in load_data(replace(task, labels=labels)).rows.values():
            own = [labels[label].lower() for label in split.labels.tolist()]
            assert own == [text.split()[0] for text in split.texts]


# ---- which rows ------------------------------------------------------------------------------------------------------
def test_long_training_rows_are_left_out_and_others_stay(make_task, rows):
    long, short = [{"text": "film " * 30, "label": 1}], rows(30)
    task = make_task({"train": [*long, *short], "validation": long, "test": long})
    data = load_data(replace(task, source=replace(task.source, max_characters=60)))
    assert {split: len(it) for split, it in data.rows.items()} == {"train": 30, "validation": 1, "test": 1}
    whole = load_data(task)
    assert len(whole.rows["train"]) == 31, "the cache knows the difference"
    with pytest.raises(TaskDataError, match="max_characters=1"):
        load_data(replace(task, source=replace(task.source, max_characters=1)))


@pytest.mark.parametrize("same", [False, True])
def test_the_cache_knows_which_split_was_shortened(make_task, rows, same):
    """A file may be train in one task and validation in another, or both in one."""
    long = [{"text": "film " * 30, "label": 1}, *rows(30)]
    task = make_task({"train": long, "validation": long, "test": rows(9)})
    task = replace(task, source=replace(task.source, max_characters=60))
    if not same:
        files = dict(task.source.data_files)
        load_data(replace(task, source=replace(task.source, data_files={**files, "train": files["test"]})))
    assert {split: len(it) for split, it in load_data(task).rows.items()} == {"train": 30, "validation": 31, "test": 9}


def test_as_many_rows_are_learnt_from_as_asked_whatever_their_order(make_task, rows):
    few = [
        load_data(replace(task, source=replace(task.source, train_rows=20))).rows["train"].texts
        for task in (make_task({"train": own, "test": rows(9)}) for own in (rows(100), rows(100)[::-1]))
    ]
    assert len(few[0]) == 20 and sorted(few[0]) == sorted(few[1])
    task = make_task({"train": rows(100)})
    whole, capped = (load_data(replace(task, source=replace(task.source, train_rows=n))).rows for n in (None, 30))
    assert len(whole["train"]) == 80 and len(capped["train"]) == 30, "a tenth each is carved first"
    assert capped["test"].texts == whole["test"].texts and capped["validation"].texts == whole["validation"].texts
    assert set(capped["train"].texts) < set(whole["train"].texts)


def test_as_many_rows_are_carved_as_asked(make_task, rows):
    task = make_task({"train": rows(100)})
    data = load_data(replace(task, source=replace(task.source, carved_rows=7)))
    assert {split: len(it) for split, it in data.rows.items()} == {"train": 86, "validation": 7, "test": 7}
