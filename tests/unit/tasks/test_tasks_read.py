"""Rows from files: formats, labels, faults, carving, fingerprint."""

from __future__ import annotations

import json
import os
import subprocess
import sys
from dataclasses import replace
from pathlib import Path

import datasets
import huggingface_hub
import numpy as np
import pytest

from loraxs_search.errors import HomeError, TaskDataError
from loraxs_search.records.codec import to_json
from loraxs_search.records.task import DataSource, SplitSource
from loraxs_search.tasks.prepared import fingerprint, fixed_subset, load_data, prepare
from loraxs_search.tasks.rows import Columns, with_parents, with_parts


def texts_of(prepared, tokenizer, split):
    batch = prepared.collate(split, range(prepared.num_rows(split)))
    return tokenizer.batch_decode(batch.inputs["input_ids"], skip_special_tokens=True)


def hub_folder(folder, **splits):
    for name, rows in splits.items():
        datasets.Dataset.from_list(rows).to_parquet(folder / f"{name}.parquet")
    return str(folder)


# ---- columns of slices -----------------------------------------------------------------------------------------------
GROUPS = [*["de", "en", "", None, 7, 7.0, float("nan"), True] * 2, "de"]
AS_TEXT = [*["de", "en", "", "", "7", "7", "", "true"] * 2, "de"]


def grouped(rows, values=GROUPS):
    return [{**row, "language": values[i % len(values)]} for i, row in enumerate(rows)]


def test_slices_are_read_of_the_rows_that_are_tested_and_change_no_fingerprint(make_task, rows):
    files = {"train": rows(40), "validation": rows(10, "good w"), "test": grouped(rows(17, "bad w"))}
    plain, task = load_data(make_task(files)), make_task(files, slices=("language",))
    for _ in range(2):  # of the file, and of the cache
        data = load_data(task)
        assert data["test"].slices == {"language": AS_TEXT}
        assert fingerprint(data) == fingerprint(plain)
    assert load_data(make_task(files))["test"].slices == {}


def test_slices_of_test_rows_that_are_carved_are_those_of_train(make_task, rows, tokenizer):
    train = [{**row, "language": row["text"].split()[0][-1]} for row in rows(60)]
    files = {"train": train, "validation": rows(10, "good w")}
    task = make_task(files, slices=("language",))
    tested = load_data(task)["test"]
    assert tested.slices["language"] == [text.split()[0][-1] for text in tested.texts]
    assert prepare(task, tokenizer).slices == tested.slices


def test_a_slice_column_that_is_missing_where_test_rows_are_from_is_named(make_task, rows):
    files = {"train": grouped(rows(40)), "test": rows(17, "bad w")}
    with pytest.raises(TaskDataError, match=r"`slices` must be one of: .*'language'. Place: .*test\.jsonl") as caught:
        load_data(make_task(files, slices=("language",)))
    assert "train.jsonl" not in caught.value.message
    files["test"] = grouped(files["test"])
    with pytest.raises(TaskDataError, match=r"Did you mean language\? `slices`"):
        load_data(make_task(files, slices=("languge",)))


def test_a_slice_column_has_fifty_values_at_most(make_task, rows):
    for number in (50, 51):
        test = grouped(rows(60, "bad w"), [f"source {i}" for i in range(number)])
        task = make_task({"train": rows(40), "test": test}, slices=("language",))
        if number == 50:
            assert len(set(load_data(task)["test"].slices["language"])) == 50
            continue
        with pytest.raises(TaskDataError, match=r"at most 50 different values .*`language` has 51 in .*test\."):
            load_data(task)


# ---- formats ---------------------------------------------------------------------------------------------------------


def test_hub_data_set_out_of_reach_names_it(make_task, tokenizer, monkeypatch):
    monkeypatch.setattr(huggingface_hub.constants, "HF_HUB_OFFLINE", True)
    task = replace(make_task(), source=DataSource(hub="no-such-org/no-such-set", config="some"))
    with pytest.raises(TaskDataError, match=r"no-such-org/no-such-set \(some\)"):
        prepare(task, tokenizer)


# ---- faults ----------------------------------------------------------------------------------------------------------
def changed(rows, number, **values):
    return [{**row, **values} if i == number else row for i, row in enumerate(rows)]


NO_TEXT = r"`text` must be text.*train\.jsonl .*\(line 2\)"
HIDDEN = r"`label` of test rows .*test\.jsonl has .*\(line 1 and 8 more rows\)"
UNKNOWN = r"`columns\.{}` must be one of: {}, .*train\.jsonl"


def test_text_must_be_text(make_task, rows):
    for value in [None, "half \ud800 of it", " \t\n"]:
        blank = isinstance(value, str) and not value.strip()
        with pytest.raises(TaskDataError, match=r"text, .*\(line 2\)" if blank else NO_TEXT):
            load_data(make_task({"train": changed(rows(12), 1, text=value)}))


def test_a_test_file_without_any_label_is_refused(make_task, rows):
    for stored in [-1.0, "", None]:
        hidden = [{**row, "label": stored} for row in rows(9, "bad w")]
        with pytest.raises(TaskDataError, match=HIDDEN):
            load_data(make_task({"train": rows(60), "test": hidden}))


def test_a_column_that_is_missing_lists_the_nearest_first(make_task, rows):
    for changes, said in [
        ({"text": "texts"}, UNKNOWN.format("text", "text")),
        ({"text_pair": "texts"}, UNKNOWN.format("text_pair", "text")),
        ({"text": "doc.txt"}, r"`columns.text`.*: doc, text, label, .*'doc.txt'"),
    ]:
        train = [{**row, "doc": {"body": "w"}} for row in rows(30)] if "doc" in said else rows(30)
        with pytest.raises(TaskDataError, match=said):
            load_data(make_task({"train": train}, **changes))


def test_too_few_rows_or_texts_to_carve(make_task, rows):
    for count, said in [(9, "10 rows .* 9"), (1, "split .*carved")]:
        with pytest.raises(TaskDataError, match=said):
            load_data(make_task({"train": rows(count) * (20 if count == 1 else 1)}))


def test_splits_that_are_not_there_are_named(make_task, rows, tmp_path):
    for keys, said in [
        ({"splits": {"validation": "valid"}}, r"`splits\.validation`.*: validation, test, train"),
        ({"data_files": {"test": "test.jsonl"}}, r"`splits\.train`.*: test"),
        ({"data_files": {"train": "none.json"}}, r"a split must have rows, but .*none\.json gives none"),
        ({"data_files": {"train": "header.csv"}}, r"a split must have rows, but .*header\.csv gives none"),
        ({"data_files": {"train": "train.jsonl", "test": "none.csv"}}, r"none\.csv gives none"),
        ({"data_files": {}, "hub": "set", "splits": {"train": "trian[:20]"}}, r"`splits.train`.*: train, .*'trian'"),
    ]:
        task = make_task()
        for name, content in {"none.json": "[]", "none.csv": "", "header.csv": "text,label\n"}.items():
            (tmp_path / name).write_text(content)
        source = dict(keys)
        if "hub" in source:
            source["hub"] = hub_folder(tmp_path / "set", train=rows(40))
        if files := source.get("data_files"):
            source["data_files"] = {split: str(tmp_path / name) for split, name in files.items()}
        with pytest.raises(TaskDataError, match=said):
            load_data(replace(task, source=replace(task.source, **source)))


def test_parts_of_objects_and_of_lists_of_objects():
    for values, wanted, read in [
        ({"a": [{"x": [1, 2]}, {"x": [3]}]}, "a.x", [[1, 2], [3]]),
        ({"a": [[{"x": 1}, {"x": 2}], []]}, "a.x", [[1, 2], []]),
        ({"a": [{"x": 1}, "text", None]}, "a.x", [1, None, None]),
        ({"a": [{"x": 1}, "text", None]}, "a.z", None),  # a part that no row has is no column
        ({"a": [{"x": 1}], "a.x": [2]}, "a.x", [2]),  # a column with a dot in its name is itself
    ]:
        columns = with_parts(Columns(list(values), values), [wanted])
        assert columns.values.get(wanted) == read
        assert columns.available == list(dict.fromkeys([*values, *([] if read is None else [wanted])]))
        assert with_parents(["a.x", "a", "c.y", "label"]) == ["c", "a.x", "a", "c.y", "label"]


def test_of_a_pair_one_text_may_be_empty(make_task, tokenizer, rows):
    def pairs(second):
        return [{**row, "second": second} for row in rows(12)]

    task = make_task({name: pairs("") for name in ("train", "validation", "test")}, text_pair="second")
    assert prepare(task, tokenizer).report.blank == {"train": 12, "validation": 12, "test": 12}
    both = [{**row, "text": "", "second": " "} for row in rows(12)]
    with pytest.raises(TaskDataError, match="text"):
        prepare(make_task({"train": both}, text_pair="second"), tokenizer)


def test_faults_of_all_columns_and_splits_are_told_at_once(make_task, tokenizer, rows):
    train, test = rows(12), rows(12)
    train[1]["text"], train[2]["label"], test[3]["label"] = None, "maybe", 7
    with pytest.raises(TaskDataError) as caught:
        prepare(make_task({"train": train, "validation": rows(12), "test": test}), tokenizer)
    heading, *faults = caught.value.message.splitlines()
    assert heading == "Task made-up has 3 faults:"
    assert [part in fault for part, fault in zip(("line 2", "line 3", "line 4"), faults, strict=True)] == [True] * 3


def test_all_missing_files_are_told_at_once(make_task, tokenizer):
    files = {"train": "a\0b.csv", "validation": "x" * 100_000 + ".csv", "test": "nowhere.csv"}
    with pytest.raises(TaskDataError, match=r"has 3 faults(.|\n)* nowhere\.csv is not") as caught:
        prepare(replace(make_task(), source=DataSource(data_files=files)), tokenizer)
    assert len(str(caught.value)) < 1500


def test_a_file_that_is_replaced_with_its_time_kept_gives_the_new_rows(make_task, tokenizer, rows):
    """`rsync -t`, `tar` and archives of every kind do that; the size stays too where only labels change."""
    task = make_task({"train": rows(40)})
    path = Path(task.source.data_files["train"])
    before, stat = prepare(task, tokenizer), path.stat()
    path.write_text(path.read_text().replace('"label": 1', '"label": 2').replace('"label": 0', '"label": 1'))
    path.write_text(path.read_text().replace('"label": 2', '"label": 0'))
    os.utime(path, ns=(stat.st_atime_ns, stat.st_mtime_ns))
    assert path.stat().st_size == stat.st_size
    after = prepare(task, tokenizer)
    assert (after.labels("train") == 1 - before.labels("train")).all()
    assert after.data_fingerprint != before.data_fingerprint


def test_a_folder_named_as_hub_whose_files_are_replaced_gives_the_new_rows(make_task, tokenizer, tmp_path):
    def write(label):
        folder = tmp_path / "set"
        folder.mkdir(exist_ok=True)
        for name in ("train", "validation", "test"):
            path = folder / f"{name}.jsonl"
            path.write_text("".join(json.dumps({"text": f"w{i}", "label": label}) + "\n" for i in range(20)))
            os.utime(path, ns=(10**18, 10**18))
        return replace(make_task(), source=DataSource(hub=str(folder)))

    assert prepare(write(0), tokenizer).labels("test").max() == 0
    assert prepare(write(1), tokenizer).labels("test").min() == 1


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


# ---- carving ---------------------------------------------------------------------------------------------------------


def test_missing_splits_are_carved_from_train_and_are_apart(make_task, rows):
    for num_rows, given, carved_rows, sizes in [
        (200, 0, None, [160, 20, 20]),
        (100, 7, None, [90, 7, 10]),
        (100, 0, 7, [86, 7, 7]),
    ]:
        files = {"train": rows(num_rows)} | ({"validation": rows(given, "good w")} if given else {})
        task = make_task(files)
        data = load_data(replace(task, source=replace(task.source, carved_rows=carved_rows)))
        assert [len(data[split]) for split in ("train", "validation", "test")] == sizes
        assert len({text for own in data.values() for text in own.texts}) == sum(sizes)


def test_equal_texts_stay_on_one_side(make_task, tokenizer, rows):
    content = [row for row in rows(50) for _ in range(4)]
    prepared = prepare(make_task({"train": content}), tokenizer)
    parts = [set(texts_of(prepared, tokenizer, split)) for split in ("train", "validation", "test")]
    assert all(parts)
    assert sum(map(len, parts)) == 50


def test_each_split_has_rows_where_one_text_is_frequent(make_task, rows):
    for number in range(60):
        content = rows(80, f"{number} w") + rows(1, f"often {number} ") * 120
        data = load_data(make_task({"train": content}))
        assert [len(data[split]) for split in ("train", "validation", "test")] == [160, 20, 20], number


# ---- fingerprint -----------------------------------------------------------------------------------------------------


def test_any_change_of_a_row_changes_the_fingerprint(make_task, tokenizer, rows):
    for change in [{"text": "w0 dull"}, {"label": 1}]:
        for split in ["train", "validation", "test"]:
            content = {name: rows(12, f"{name} w") for name in ("train", "validation", "test")}
            before = prepare(make_task(content), tokenizer).data_fingerprint
            content[split][0] = {**content[split][0], **change}
            assert prepare(make_task(content), tokenizer).data_fingerprint != before


def test_fingerprint_knows_where_a_text_ends(make_task, tokenizer):
    def printed(first, second):
        split = [{"text": first, "label": 0}, {"text": second, "label": 1}]
        return prepare(make_task({"train": split, "validation": split, "test": split}), tokenizer).data_fingerprint

    assert printed("good film", "w1") != printed("good", " filmw1")


def test_fixed_subset_is_fixed_ascending_and_mixed():
    chosen = fixed_subset(1000, 100)
    assert np.array_equal(chosen, fixed_subset(1000, 100))
    assert (np.diff(chosen) > 0).all()
    assert 350 < chosen.mean() < 650
    assert np.array_equal(fixed_subset(5, None), np.arange(5))
    assert np.array_equal(fixed_subset(5, 9), np.arange(5))


# ---- parts of columns ------------------------------------------------------------------------------------------------
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
    texts = [text for split in data.values() for text in split.texts]
    assert sorted(texts) == sorted(row["doc"]["body"] for row in rows)
    assert all(int(text[1:]) % 2 == label for s in data.values() for text, label in zip(s.texts, s.labels, strict=True))


# ---- slices, and splits of other data sets ---------------------------------------------------------------------------
def test_a_slice_takes_some_rows(tmp_path, make_task, rows):
    hub = hub_folder(tmp_path / "set", train=rows(40), test=rows(9, "bad w"))
    source = DataSource(hub=hub, splits={"train": "train[:20]", "validation": "train[30:]", "test": "test[2:5]"})
    data = load_data(replace(make_task(), source=source))
    assert {split: len(it) for split, it in data.items()} == {"train": 20, "validation": 10, "test": 3}
    assert data["validation"].texts[0].startswith("w30")
    for written in ("train[:10%]", "train[-5:]"):  # not read as the whole split
        with pytest.raises(TaskDataError, match=r"`splits.train`"):
            load_data(replace(make_task(), source=replace(source, splits={"train": written})))


def test_test_rows_from_another_data_set_with_other_columns(tmp_path, make_task, rows):
    hub = hub_folder(tmp_path / "set", train=rows(40))
    other = [{"question": f"other w{i}", "gold": i % 2} for i in range(12)]
    held = hub_folder(tmp_path / "other", test=other)
    apart = SplitSource(hub=held, split="test[:8]", rename={"question": "text", "gold": "label"})
    task = make_task()
    data = load_data(replace(task, source=DataSource(hub=hub, splits={"train": "train"}, test=apart)))
    assert data["test"].texts == [row["question"] for row in other[:8]]
    assert sum(len(data[split]) for split in ("train", "validation")) == 40, "validation is carved, test is not"
    wrong = replace(apart, split="held")
    with pytest.raises(TaskDataError, match=r"`data.test.split`.*: test, .*'held'"):
        load_data(replace(task, source=DataSource(hub=hub, test=wrong)))


@pytest.mark.parametrize("stored", [-1, None])
def test_test_rows_of_the_hub_whose_labels_are_hidden_are_carved(tmp_path, make_task, rows, stored):
    hidden = [{**row, "label": stored, "language": "hidden"} for row in rows(9, "bad w")]
    train = [{**row, "language": "en"} for row in rows(60)]
    source = DataSource(hub=hub_folder(tmp_path / "set", train=train, test=hidden))
    data = load_data(replace(make_task(), source=source, slices=("language",)))
    assert {split: len(own) for split, own in data.items()} == {"train": 48, "validation": 6, "test": 6}
    assert data["test"].slices == {"language": ["en"] * 6}


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
        for labels in (("neg", "pos"), ("pos", "neg"), ("Neg", "Pos")):
            for split in load_data(replace(make_task(), source=source, labels=labels)).values():
                own = [labels[label].lower() for label in split.labels.tolist()]
                assert own == [text.split()[0] for text in split.texts]


def test_an_id_has_one_name_in_all_files_of_a_folder(tmp_path, make_task):
    """`datasets` reads the ids of all of them as those of the first one."""
    folder = numbered(tmp_path / "set", train=["neg", "pos"], test=["pos", "neg"])
    with pytest.raises(TaskDataError, match=r"the one of 'neg' is 'pos' in .*test\.parquet"):
        load_data(replace(make_task(), source=DataSource(hub=folder), labels=("neg", "pos")))


def test_an_id_has_one_name_in_all_splits(tmp_path, make_task):
    """Names that are numbers say nothing to a single split; its rows may be in the cache."""
    folder = numbered(tmp_path / "set", train=["0", "1"], test=["1", "0"])
    files = {split: f"{folder}/{split}.parquet" for split in ("train", "test")}
    for path in files.values():
        load_data(replace(make_task(), source=DataSource(data_files={"train": path})))
    apart = DataSource(
        hub=numbered(tmp_path / "a", train=["0", "1"]),
        test=SplitSource(hub=numbered(tmp_path / "b", test=["1", "0"]), split="test"),
    )
    for source in (DataSource(data_files=files), apart):
        with pytest.raises(TaskDataError, match=r"0 is '0' in .*(train|/a).* and '1' in .*test"):
            load_data(replace(make_task(), source=source))


# ---- which rows ------------------------------------------------------------------------------------------------------
def test_long_training_rows_are_left_out_and_others_stay(make_task, rows):
    long, short = [{"text": "film " * 30, "label": 1}], rows(30)
    task = make_task({"train": [*long, *short], "validation": long, "test": long})
    data = load_data(replace(task, source=replace(task.source, max_characters=60)))
    assert {split: len(it) for split, it in data.items()} == {"train": 30, "validation": 1, "test": 1}
    whole = load_data(task)
    assert len(whole["train"]) == 31, "the cache knows the difference"
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
    assert {split: len(it) for split, it in load_data(task).items()} == {"train": 30, "validation": 31, "test": 9}


def test_as_many_rows_are_learnt_from_as_asked_whatever_their_order(make_task, rows):
    few = [
        load_data(replace(task, source=replace(task.source, train_rows=20)))["train"].texts
        for task in (make_task({"train": own, "test": rows(9)}) for own in (rows(100), rows(100)[::-1]))
    ]
    assert len(few[0]) == 20 and sorted(few[0]) == sorted(few[1])
    task = make_task({"train": rows(100)})
    whole, capped = (load_data(replace(task, source=replace(task.source, train_rows=n))) for n in (None, 30))
    assert len(whole["train"]) == 80 and len(capped["train"]) == 30, "a tenth each is carved first"
    assert capped["test"].texts == whole["test"].texts and capped["validation"].texts == whole["validation"].texts
    assert set(capped["train"].texts) < set(whole["train"].texts)
