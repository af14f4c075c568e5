"""Rows of files and data sets: faults, carving, fingerprints, splits."""

from __future__ import annotations

import json
import os
import subprocess
import sys
from dataclasses import replace

import datasets
import huggingface_hub
import numpy as np
import pytest

from loraxs_search.errors import HomeError, TaskDataError
from loraxs_search.records.codec import to_json
from loraxs_search.records.task import DataSource, SplitSource
from loraxs_search.tasks.prepared import fingerprint, fixed_subset, load_data, prepare
from loraxs_search.tasks.rows import Columns, with_parents, with_parts


def hub_folder(folder, **splits):
    for name, rows in splits.items():
        datasets.Dataset.from_list(rows).to_parquet(folder / f"{name}.parquet")
    return str(folder)


def sizes(data):
    return [len(data[split]) for split in ("train", "validation", "test")]


# ---- columns of slices -----------------------------------------------------------------------------------------------
GROUPS = [*["de", "en", "", None, 7, 7.0, float("nan"), True] * 2, "de"]
AS_TEXT = [*["de", "en", "", "", "7", "7", "", "true"] * 2, "de"]


def grouped(rows, values=GROUPS):
    return [{**row, "language": values[i % len(values)]} for i, row in enumerate(rows)]


def test_slices_are_read_of_the_rows_that_are_tested_and_change_no_fingerprint(make_task, rows):
    files = {"train": rows(40), "validation": rows(10, "good w"), "test": grouped(rows(17, "bad w"))}
    plain, data = load_data(make_task(files)), load_data(make_task(files, slices=("language",)))
    assert (plain["test"].slices, data["test"].slices) == ({}, {"language": AS_TEXT})
    assert fingerprint(data) == fingerprint(plain)
    carved = make_task({"train": [{**row, "language": row["text"][:2]} for row in rows(60)]}, slices=("language",))
    tested = load_data(carved)["test"]
    assert tested.slices["language"] == [text[:2] for text in tested.texts]
    files = {"train": grouped(rows(40)), "test": rows(17, "bad w")}
    with pytest.raises(TaskDataError, match=r"`slices` must be one of: .*'language'. Place: .*test\.jsonl") as caught:
        load_data(make_task(files, slices=("language",)))
    assert "train.jsonl" not in caught.value.message
    many = {"train": rows(40), "test": grouped(rows(60, "bad w"), [f"source {i}" for i in range(51)])}
    with pytest.raises(TaskDataError, match=r"at most 50 different values .*`language` has 51 in .*test\."):
        load_data(make_task(many, slices=("language",)))


# ---- faults ----------------------------------------------------------------------------------------------------------
def test_hub_data_set_out_of_reach_names_it(make_task, monkeypatch):
    monkeypatch.setattr(huggingface_hub.constants, "HF_HUB_OFFLINE", True)
    with pytest.raises(TaskDataError, match=r"no-such-org/no-such-set \(some\)"):
        load_data(replace(make_task(), source=DataSource(hub="no-such-org/no-such-set", config="some")))


def test_rows_that_do_not_fit_are_refused(make_task, rows):
    train, hidden = rows(12), [{**row, "label": ""} for row in rows(9, "bad w")]
    nested = [{**row, "doc": {"body": "w"}} for row in rows(30)]
    for files, changes, said in [
        ({"train": [*train, {"text": None, "label": 0}]}, {}, r"`text` must be text.*train\.jsonl .*\(line 13\)"),
        ({"train": [*train, {"text": " \t\n", "label": 0}]}, {}, r"must have text, .*\(line 13\)"),
        ({"train": train, "test": hidden}, {}, r"`label` of test rows .*test\.jsonl has '' \(line 1 and 8 more rows\)"),
        ({"train": train}, {"text": "texts"}, r"`columns\.text` must be one of: text, .*train\.jsonl"),
        ({"train": nested}, {"text": "doc.txt"}, r"`columns.text`.*: doc, text, label, .*'doc.txt'"),
        ({"train": rows(9)}, {}, "10 rows .* 9"),
        ({"train": rows(1) * 20}, {}, "split .*carved"),
    ]:
        with pytest.raises(TaskDataError, match=said):
            load_data(make_task(files, **changes))


def test_splits_that_are_not_there_are_named(make_task, rows, tmp_path):
    hub_folder(tmp_path / "set", train=rows(40))
    task = make_task()
    for name, content in {"none.json": "[]", "none.csv": "", "header.csv": "text,label\n"}.items():
        (tmp_path / name).write_text(content)
    for keys, files, said in [
        ({"splits": {"validation": "valid"}}, None, r"`splits\.validation`.*: validation, test, train"),
        ({}, {"test": "test.jsonl"}, r"`splits\.train`.*: test"),
        ({}, {"train": "header.csv"}, r"a split must have rows, but .*header\.csv gives none"),
        ({}, {"train": "train.jsonl", "test": "none.csv"}, r"none\.csv gives none"),
        ({"hub": str(tmp_path / "set"), "splits": {"train": "trian[:20]"}}, {}, r"`splits.train`.*: train, .*'trian'"),
        ({"hub": str(tmp_path / "set"), "splits": {"train": "train[:10%]"}}, {}, r"`splits.train`"),
    ]:
        given = {} if files is None else {"data_files": {split: str(tmp_path / name) for split, name in files.items()}}
        with pytest.raises(TaskDataError, match=said):
            load_data(replace(task, source=replace(task.source, **keys, **given)))


def test_of_a_pair_one_text_may_be_empty(make_task, tokenizer, rows):
    def pairs(**texts):
        return [{**row, **texts} for row in rows(12)]

    task = make_task(dict.fromkeys(("train", "validation", "test"), pairs(second="")), text_pair="second")
    assert prepare(task, tokenizer).report.blank == {"train": 12, "validation": 12, "test": 12}
    with pytest.raises(TaskDataError, match="text"):
        load_data(make_task({"train": pairs(text="", second=" ")}, text_pair="second"))


def test_faults_of_all_columns_and_splits_are_told_at_once(make_task, rows):
    train, test = rows(12), rows(12)
    train[1]["text"], train[2]["label"], test[3]["label"] = None, "maybe", 7
    with pytest.raises(TaskDataError) as caught:
        load_data(make_task({"train": train, "validation": rows(12), "test": test}))
    heading, *faults = caught.value.message.splitlines()
    assert heading == "Task made-up has 3 faults:"
    assert [part in fault for part, fault in zip(("line 2", "line 3", "line 4"), faults, strict=True)] == [True] * 3
    files = {"train": "a\0b.csv", "validation": "x" * 100_000 + ".csv", "test": "nowhere.csv"}
    with pytest.raises(TaskDataError, match=r"has 3 faults(.|\n)* nowhere\.csv is not") as caught:
        load_data(replace(make_task(), source=DataSource(data_files=files)))
    assert len(str(caught.value)) < 1500


# ---- caches ----------------------------------------------------------------------------------------------------------
def test_a_folder_named_as_hub_whose_files_are_replaced_gives_the_new_rows(make_task, tmp_path):
    """`rsync -t`, `tar` and archives of every kind keep times."""
    for label in (0, 1):
        for name in ("train", "validation", "test"):
            path = tmp_path / "set" / f"{name}.jsonl"
            path.parent.mkdir(exist_ok=True)
            path.write_text("".join(json.dumps({"text": f"w{i}", "label": label}) + "\n" for i in range(20)))
            os.utime(path, ns=(10**18, 10**18))
        data = load_data(replace(make_task(), source=DataSource(hub=str(tmp_path / "set"))))
        assert set(data["test"].labels.tolist()) == {label}


def test_cached_tokens_need_no_slow_library(make_task, tokenizer, tmp_path):
    """Importing `datasets` takes a second, pandas half of one."""
    code = (
        "import sys; from transformers import AutoTokenizer;"
        "from loraxs_search.tasks.prepared import prepare; from loraxs_search.records.task import Task;"
        "from loraxs_search.records.codec import from_json;"
        "tokenizer = AutoTokenizer.from_pretrained(sys.argv[2]); before = set(sys.modules);"
        "prepare(from_json(Task, sys.argv[1]), tokenizer);"
        "assert not {'datasets', 'pandas'} & (set(sys.modules) - before)"
    )
    task = make_task()
    tokenizer.save_pretrained(tmp_path / "tokenizer")
    prepare(task, tokenizer)
    subprocess.run([sys.executable, "-c", code, to_json(task), str(tmp_path / "tokenizer")], check=True)


def test_cache_that_cannot_be_written_is_a_home_error(make_task, tokenizer, fresh_home):
    fresh_home.write_text("a file, not a folder")
    with pytest.raises(HomeError):
        prepare(make_task(), tokenizer)


# ---- carving, fingerprint --------------------------------------------------------------------------------------------
def test_missing_splits_are_carved_from_train_and_are_apart(make_task, rows):
    for content, given, carved_rows, expected in [
        (rows(200), 0, None, [160, 20, 20]),
        (rows(100), 7, None, [90, 7, 10]),
        (rows(100), 0, 7, [86, 7, 7]),
        ([row for row in rows(50) for _ in range(4)], 0, None, None),  # equal texts stay on one side
        *((rows(80, f"{n} w") + rows(1, f"often {n} ") * 120, 0, None, [160, 20, 20]) for n in range(12)),
    ]:
        task = make_task({"train": content} | ({"validation": rows(given, "good w")} if given else {}))
        data = load_data(replace(task, source=replace(task.source, carved_rows=carved_rows)))
        parts = [set(own.texts) for own in data.values()]
        assert all(parts)
        assert sum(map(len, parts)) == len(set.union(*parts))
        assert expected in (None, sizes(data))


def test_any_change_of_a_row_changes_the_fingerprint(make_task, rows):
    def printed(first, second="w1", split="train", label=0):
        content = {name: rows(12, f"{name} w") for name in ("train", "validation", "test")}
        content[split][:2] = [{"text": first, "label": label}, {"text": second, "label": 1}]
        return fingerprint(load_data(make_task(content)))

    for split in ("train", "validation", "test"):
        assert len({printed("w0", split=split), printed("dull", split=split), printed("w0", "w1", split, 1)}) == 3
    assert printed("good film", "w1") != printed("good", " filmw1")
    pairs = [{**row, "second": "a"} for row in rows(12)], [{**row, "second": "b"} for row in rows(12)]
    first, second = (load_data(make_task({"train": own}, text_pair="second")) for own in pairs)
    assert fingerprint(first) != fingerprint(second)


def test_fixed_subset_is_fixed_ascending_and_mixed():
    chosen = fixed_subset(1000, 100)
    assert np.array_equal(chosen, fixed_subset(1000, 100))
    assert (np.diff(chosen) > 0).all()
    assert 350 < chosen.mean() < 650
    assert np.array_equal(fixed_subset(5, 9), np.arange(5))


# ---- parts of columns, and splits of other data sets -----------------------------------------------------------------
def test_parts_of_objects_and_of_lists_of_objects(tmp_path, make_task):
    for values, wanted, read in [
        ({"a": [{"x": [1, 2]}, {"x": [3]}]}, "a.x", [[1, 2], [3]]),
        ({"a": [{"x": 1}, "text", None]}, "a.x", [1, None, None]),
        ({"a": [{"x": 1}, "text", None]}, "a.z", None),  # a part that no row has is no column
        ({"a": [{"x": 1}], "a.x": [2]}, "a.x", [2]),  # a column with a dot in its name is itself
    ]:
        assert with_parts(Columns(list(values), values), [wanted]).values.get(wanted) == read
    assert with_parents(["a.x", "a", "c.y", "label"]) == ["c", "a.x", "a", "c.y", "label"]
    rows = [{"doc": {"body": f"w{i}"}, "answer": {"label": i % 2}} for i in range(20)]
    (tmp_path / "rows.jsonl").write_text("".join(json.dumps(row) + "\n" for row in rows))
    hub = DataSource(hub=hub_folder(tmp_path / "hub", train=rows))
    for source in (hub, DataSource(data_files={"train": str(tmp_path / "rows.jsonl")})):
        data = load_data(replace(make_task(), source=source, text="doc.body", label="answer.label")).values()
        read = {(text, label) for own in data for text, label in zip(own.texts, own.labels.tolist(), strict=True)}
        assert read == {(f"w{i}", i % 2) for i in range(20)}


def test_a_slice_takes_some_rows_and_test_rows_may_be_of_another_data_set(tmp_path, make_task, rows):
    hub = hub_folder(tmp_path / "set", train=rows(40), test=rows(9, "bad w"))
    source = DataSource(hub=hub, splits={"train": "train[:20]", "validation": "train[30:]", "test": "test[2:5]"})
    data = load_data(replace(make_task(), source=source))
    assert sizes(data) == [20, 10, 3]
    assert data["validation"].texts[0].startswith("w30")
    other = [{"question": f"other w{i}", "gold": i % 2} for i in range(12)]
    held = hub_folder(tmp_path / "other", test=other)
    apart = SplitSource(hub=held, split="test[:8]", rename={"question": "text", "gold": "label"})
    data = load_data(replace(make_task(), source=DataSource(hub=hub, splits={"train": "train"}, test=apart)))
    assert data["test"].texts == [row["question"] for row in other[:8]]
    assert sizes(data) == [36, 4, 8], "validation is carved, test is not"
    with pytest.raises(TaskDataError, match=r"`data.test.split`.*: test, .*'held'"):
        load_data(replace(make_task(), source=DataSource(hub=hub, test=replace(apart, split="held"))))


def test_test_rows_of_the_hub_whose_labels_are_hidden_are_carved(tmp_path, make_task, rows):
    for stored in (-1, None):
        hidden = [{**row, "label": stored, "language": "hidden"} for row in rows(9, "bad w")]
        train = [{**row, "language": "en"} for row in rows(60)]
        source = DataSource(hub=hub_folder(tmp_path / f"set{stored}", train=train, test=hidden))
        data = load_data(replace(make_task(), source=source, slices=("language",)))
        assert (sizes(data), data["test"].slices) == ([48, 6, 6], {"language": ["en"] * 6})


def numbered(folder, **splits):
    """Write splits whose ids have these names; each row's text is the name of its id."""
    for split, names in splits.items():
        features = datasets.Features(text=datasets.Value("string"), label=datasets.ClassLabel(names=names))
        rows = [{"text": f"{names[i % 2]} {i}", "label": i % 2} for i in range(20)]
        datasets.Dataset.from_list(rows, features).to_parquet(folder / f"{split}.parquet")
    return str(folder)


def test_ids_that_the_data_name_are_read_by_their_names(tmp_path, make_task):
    folder = numbered(tmp_path / "set", train=["neg", "pos"], test=["pos", "neg"])
    files = {split: f"{folder}/{split}.parquet" for split in ("train", "test")}
    hub = numbered(tmp_path / "hub", train=["neg", "pos"])
    for source in (DataSource(data_files=files), DataSource(hub=hub)):
        for labels in (("pos", "neg"), ("Neg", "Pos")):
            for split in load_data(replace(make_task(), source=source, labels=labels)).values():
                own = [labels[label].lower() for label in split.labels.tolist()]
                assert own == [text.split()[0] for text in split.texts]
    # `datasets` reads the ids of all files of a folder as those of the first one.
    with pytest.raises(TaskDataError, match=r"the one of 'neg' is 'pos' in .*test\.parquet"):
        load_data(replace(make_task(), source=DataSource(hub=folder), labels=("neg", "pos")))


def test_an_id_has_one_name_in_all_splits(tmp_path, make_task):
    """Names that are numbers say nothing to a single split."""
    folder = numbered(tmp_path / "set", train=["0", "1"], test=["1", "0"])
    files = {split: f"{folder}/{split}.parquet" for split in ("train", "test")}
    test = SplitSource(hub=numbered(tmp_path / "b", test=["1", "0"]), split="test")
    apart = DataSource(hub=numbered(tmp_path / "a", train=["0", "1"]), test=test)
    for source in (DataSource(data_files=files), apart):
        with pytest.raises(TaskDataError, match=r"0 is '0' in .*(train|/a).* and '1' in .*test"):
            load_data(replace(make_task(), source=source))


# ---- which rows ------------------------------------------------------------------------------------------------------
def test_long_training_rows_are_left_out_and_as_many_are_learnt_from_as_asked(make_task, rows):
    long = [{"text": "film " * 30, "label": 1}, *rows(30)]
    task = make_task({"train": long, "validation": long, "test": rows(9)})
    assert sizes(load_data(replace(task, source=replace(task.source, max_characters=60)))) == [30, 31, 9]
    with pytest.raises(TaskDataError, match="max_characters=1"):
        load_data(replace(task, source=replace(task.source, max_characters=1)))
    few = []
    for own in (rows(100), rows(100)[::-1]):
        task = make_task({"train": own})
        whole, capped = (load_data(replace(task, source=replace(task.source, train_rows=n))) for n in (None, 30))
        assert (sizes(whole), sizes(capped)) == ([80, 10, 10], [30, 10, 10]), "a tenth each is carved first"
        few.append(sorted(capped["train"].texts))
    assert few[0] == few[1], "whatever their order"
