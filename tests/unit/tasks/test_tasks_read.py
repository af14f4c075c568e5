"""Rows from files: formats, labels, faults, carving, fingerprint."""

from __future__ import annotations

import gzip
import json
import os
import subprocess
import sys
from collections.abc import Sequence
from dataclasses import replace
from pathlib import Path

import datasets
import huggingface_hub
import numpy as np
import pytest

from loraxs_search.errors import HomeError, TaskDataError
from loraxs_search.records.codec import to_json
from loraxs_search.records.task import DataSource
from loraxs_search.tasks.prepared import load_data, prepare
from loraxs_search.tasks.read import fixed_subset


def texts_of(prepared, tokenizer, split):
    batch = prepared.collate(split, range(prepared.num_rows(split)))
    return tokenizer.batch_decode(batch.inputs["input_ids"], skip_special_tokens=True)


def one_file(path: Path | str, **changes) -> DataSource:
    return DataSource(data_files={"train": str(path)}, **changes)


# ---- columns of slices -----------------------------------------------------------------------------------------------
GROUPS = [*["de", "en", "", None, 7, 7.0, float("nan"), True] * 2, "de"]
AS_TEXT = [*["de", "en", "", "", "7", "7", "", "true"] * 2, "de"]


def grouped(rows: list[dict[str, object]], values: Sequence[object] = GROUPS) -> list[dict[str, object]]:
    return [{**row, "language": values[i % len(values)]} for i, row in enumerate(rows)]


def test_slices_are_read_of_the_rows_that_are_tested_and_change_no_fingerprint(make_task, rows):
    files = {"train": rows(40), "validation": rows(10, "good w"), "test": grouped(rows(17, "bad w"))}
    plain, task = load_data(make_task(files)), make_task(files, slices=("language",))
    for _ in range(2):  # of the file, and of the cache
        data = load_data(task)
        assert data.rows["test"].slices == {"language": AS_TEXT}
        assert (data.fingerprint, data.test_fingerprint) == (plain.fingerprint, plain.test_fingerprint)
    assert load_data(make_task(files)).rows["test"].slices == {}


def test_slices_of_test_rows_that_are_carved_are_those_of_train(make_task, rows, tokenizer):
    train = [{**row, "language": row["text"].split()[0][-1]} for row in rows(60)]
    files = {"train": train, "validation": rows(10, "good w")}
    task = make_task(files, slices=("language",))
    tested = load_data(task).rows["test"]
    assert tested.slices["language"] == [text.split()[0][-1] for text in tested.texts]
    assert prepare(task, tokenizer).slices == tested.slices
    plain, limit = make_task(files), 12
    short = replace(task.source, max_characters=limit)
    kept = load_data(replace(task, source=short)).rows["test"]
    assert kept.slices["language"] == [text.split()[0][-1] for text in kept.texts]
    assert kept.texts == load_data(replace(plain, source=short)).rows["test"].texts, "their characters are not counted"


def test_a_slice_column_that_is_missing_where_test_rows_are_from_is_named(make_task, rows):
    files = {"train": grouped(rows(40)), "test": rows(17, "bad w")}
    with pytest.raises(TaskDataError, match=r"`slices` must be one of: .*'language'. Place: .*test\.jsonl") as caught:
        load_data(make_task(files, slices=("language",)))
    assert "train.jsonl" not in caught.value.message
    files["test"] = grouped(files["test"])
    with pytest.raises(TaskDataError, match=r"Did you mean language\? `slices`"):
        load_data(make_task(files, slices=("languge",)))


def test_half_a_surrogate_pair_in_a_slice_column_is_named(make_task, rows):
    files = {"train": rows(40), "test": grouped(rows(17, "bad w"), ["de", "en", "\ud83d"])}
    with pytest.raises(TaskDataError, match=r"`language` must be valid Unicode, but .*line 3"):
        load_data(make_task(files, slices=("language",)))


@pytest.mark.parametrize("form", ["csv", "jsonl"])
def test_a_slice_column_has_fifty_values_at_most(tmp_path, make_task, rows, form):
    for number in (50, 51):
        test = grouped(rows(60, "bad w"), [f"source {i}" for i in range(number)])
        path = tmp_path / f"{number}.{form}"
        lines = [json.dumps(row) for row in test]
        if form == "csv":
            lines = ["text,label,language", *(f"{row['text']},{row['label']},{row['language']}" for row in test)]
        path.write_text("\n".join(lines))
        task = make_task({"train": rows(40)}, slices=("language",))
        source = replace(task.source, data_files={**task.source.data_files, "test": str(path)})
        if number == 50:
            assert len(set(load_data(replace(task, source=source)).rows["test"].slices["language"])) == 50
            continue
        with pytest.raises(TaskDataError, match=r"at most 50 different values .*`language` has 51 in .*51\."):
            load_data(replace(task, source=source))


# ---- formats ---------------------------------------------------------------------------------------------------------
def test_every_format_reads_the_same_rows(tmp_path, make_task, tokenizer, rows):
    content = rows(30)
    table = datasets.Dataset.from_list(content)
    text = "".join(json.dumps(row) + "\n" for row in content)
    csv = "text,label\n" + "".join(f"{row['text']},{row['label']}\n" for row in content)
    files = {
        "a.jsonl": text.encode(),
        "b.jsonl.gz": gzip.compress(text.encode(), mtime=0),
        "c.json": json.dumps(content).encode(),
        "d.csv": csv.encode(),
        "e.csv.gz": gzip.compress(csv.encode(), mtime=0),
        "f.tsv": csv.replace(",", "\t").encode(),
    }
    for name, data in files.items():
        (tmp_path / name).write_bytes(data)
    table.to_parquet(tmp_path / "g.parquet")
    prints = {}
    for name in [*files, "g.parquet"]:
        task = replace(make_task(), source=one_file(tmp_path / name))
        prints[name] = prepare(task, tokenizer).data_fingerprint
    assert len(set(prints.values())) == 1, prints


def test_csv_keeps_words_that_look_like_missing_values(tmp_path, make_task, tokenizer):
    (tmp_path / "d.csv").write_text("text,label\nNA,0\nNone,1\n123,0\n" + "".join(f"w{i},1\n" for i in range(20)))
    prepared = prepare(replace(make_task(), source=one_file(tmp_path / "d.csv")), tokenizer)
    assert sum(prepared.num_rows(split) for split in ("train", "validation", "test")) == 23


def test_hub_data_set_with_named_labels(tmp_path, make_task, tokenizer):
    features = datasets.Features(
        {"text": datasets.Value("string"), "label": datasets.ClassLabel(names=["positive", "negative"])}
    )
    content = {"text": [f"w{i}" for i in range(20)], "label": [0] * 5 + [1] * 15}
    folder = tmp_path / "set"
    for name in ("train", "validation", "test"):
        datasets.Dataset.from_dict(content, features=features).to_parquet(folder / f"{name}.parquet")
    task = replace(make_task(), source=DataSource(hub=str(folder)))
    # The stored names are the task's in another order: names decide, not ids.
    assert prepare(task, tokenizer).labels("test").tolist() == [1] * 5 + [0] * 15


def test_hub_data_set_out_of_reach_names_it(make_task, tokenizer, monkeypatch):
    monkeypatch.setattr(huggingface_hub.constants, "HF_HUB_OFFLINE", True)
    task = replace(make_task(), source=DataSource(hub="no-such-org/no-such-set", config="some"))
    with pytest.raises(TaskDataError, match=r"no-such-org/no-such-set \(some\)"):
        prepare(task, tokenizer)


@pytest.mark.parametrize("stored", [-1, -1.0, "", None, float("nan")])
def test_a_test_file_without_any_label_is_refused(make_task, rows, stored):
    hidden = [{**row, "label": stored} for row in rows(9, "bad w")]
    with pytest.raises(TaskDataError, match=r"`label` of test rows .*test\.jsonl has .*\(line 1 and 8 more rows\)"):
        load_data(make_task({"train": rows(60), "validation": rows(10, "good w"), "test": hidden}))


# ---- faults ----------------------------------------------------------------------------------------------------------
@pytest.mark.parametrize("value", [None, 5, float("nan"), "half \ud800 of it"])
def test_text_must_be_text(make_task, tokenizer, rows, value):
    content = rows(8)
    content[1]["text"] = value
    with pytest.raises(TaskDataError, match=r"`text`.*train\.jsonl .*\(line 2\)"):
        prepare(make_task({"train": content}), tokenizer)


@pytest.mark.parametrize("text", ["", "  ", "\t\n"])
def test_a_row_of_a_file_without_text_is_refused(make_task, tokenizer, rows, text):
    content = rows(12)
    content[3]["text"] = content[7]["text"] = text
    with pytest.raises(TaskDataError, match=r"text, .*\(line 4 and 1 more row\)"):
        prepare(make_task({"train": content}), tokenizer)


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


@pytest.mark.parametrize("role", ["text", "label", "text_pair"])
def test_missing_column_lists_the_nearest_first(make_task, tokenizer, role):
    wrong = {"text": "texts", "label": "labels", "text_pair": "texts"}[role]
    with pytest.raises(TaskDataError, match=rf"`columns\.{role}` must be one of: {wrong[:-1]}, .*train\.jsonl"):
        prepare(replace(make_task(), **{role: wrong}), tokenizer)


def test_unknown_split_lists_the_known(make_task, tokenizer):
    task = make_task()
    with pytest.raises(TaskDataError, match=r"`splits\.validation`.*: validation, test, train"):
        prepare(replace(task, source=replace(task.source, splits={"validation": "valid"})), tokenizer)
    source = DataSource(data_files={"test": task.source.data_files["test"]})
    with pytest.raises(TaskDataError, match=r"`splits\.train`.*: test"):
        prepare(replace(task, source=source), tokenizer)


@pytest.mark.parametrize(
    ("split", "name", "data"),
    [("train", "none.json", b"[]"), ("validation", "none.csv", b""), ("test", "none.csv", b"text,label\n")],
)
def test_empty_split(make_task, tokenizer, tmp_path, split, name, data):
    task = make_task()
    (tmp_path / name).write_bytes(data)
    files = {**task.source.data_files, split: str(tmp_path / name)}
    with pytest.raises(TaskDataError, match=rf"a split must have rows, but .*{name} gives none"):
        prepare(replace(task, source=DataSource(data_files=files)), tokenizer)


def test_too_few_rows_to_carve(make_task, tokenizer, rows):
    with pytest.raises(TaskDataError, match=r"10 rows .* 9"):
        prepare(make_task({"train": rows(9)}), tokenizer)
    assert prepare(make_task({"train": rows(10)}), tokenizer).num_rows("train") == 8
    few = prepare(make_task({name: rows(1) for name in ("train", "validation", "test")}), tokenizer)
    assert few.num_rows("train") == 1


def test_too_few_different_texts_to_carve(make_task, tokenizer, rows):
    with pytest.raises(TaskDataError, match=r"split .*carved"):
        prepare(make_task({"train": rows(1) * 20}), tokenizer)


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


def test_rows_of_a_file_are_read_once_whatever_it_is_called(make_task, tokenizer, rows, fresh_home):
    def cached():
        return {path.name: path.stat().st_ino for path in (fresh_home / "datasets" / "rows").iterdir()}

    task = make_task()
    first = prepare(task, tokenizer)
    kept = cached()
    assert len(kept) == 3
    moved = {}
    for split, path in task.source.data_files.items():
        moved[split] = str(Path(path).rename(Path(path).with_name(f"other-{split}.jsonl")))
    again = prepare(replace(task, source=DataSource(data_files=moved), name="other"), tokenizer)
    assert (again.data_fingerprint, cached()) == (first.data_fingerprint, kept)
    prepare(replace(make_task(), labels=("no", "yes")), tokenizer)
    assert len(cached()) == 6


def test_rows_and_tokens_that_are_cached_need_no_slow_library(make_task, tokenizer, tmp_path):
    """Importing `datasets` takes a second, pandas half of one."""
    code = (
        "import sys; from pathlib import Path; from transformers import AutoTokenizer;"
        "from loraxs_search.tasks.prepared import prepare; from loraxs_search.records.task import Task;"
        "from loraxs_search.records.codec import from_json;"
        "tokenizer = AutoTokenizer.from_pretrained(sys.argv[2]); before = set(sys.modules);"
        "prepare(from_json(Task, sys.argv[1]), tokenizer, cache_dir=Path(sys.argv[3]));"
        "assert not {'datasets', 'pandas'} & (set(sys.modules) - before)"
    )
    task, cache = make_task(), tmp_path / "cache"
    tokenizer.save_pretrained(tmp_path / "tokenizer")
    prepare(task, tokenizer, cache_dir=cache)
    subprocess.run([sys.executable, "-c", code, to_json(task), str(tmp_path / "tokenizer"), str(cache)], check=True)


def test_cache_that_cannot_be_written_is_a_home_error(make_task, tokenizer, fresh_home):
    fresh_home.write_text("a file, not a folder")
    with pytest.raises(HomeError):
        prepare(make_task(), tokenizer)


# ---- carving ---------------------------------------------------------------------------------------------------------
def test_missing_splits_are_carved_from_train_and_are_apart(make_task, tokenizer, rows):
    prepared = prepare(make_task({"train": rows(200)}), tokenizer)
    assert [prepared.num_rows(split) for split in ("train", "validation", "test")] == [160, 20, 20]
    parts = [set(texts_of(prepared, tokenizer, split)) for split in ("train", "validation", "test")]
    assert len(set.union(*parts)) == 200


def test_carving_does_not_depend_on_the_order_of_rows(make_task, tokenizer, rows):
    content = rows(100)
    first = prepare(make_task({"train": content}), tokenizer)
    second = prepare(make_task({"train": content[::-1]}), tokenizer)
    assert set(texts_of(first, tokenizer, "test")) == set(texts_of(second, tokenizer, "test"))


def test_equal_texts_stay_on_one_side(make_task, tokenizer, rows):
    content = [row for row in rows(50) for _ in range(4)]
    prepared = prepare(make_task({"train": content}), tokenizer)
    parts = [set(texts_of(prepared, tokenizer, split)) for split in ("train", "validation", "test")]
    assert all(parts)
    assert sum(map(len, parts)) == 50


def test_each_split_has_rows_where_one_text_is_frequent(make_task, rows):
    for number in range(60):
        content = rows(80, f"{number} w") + rows(1, f"often {number} ") * 120
        data = load_data(make_task({"train": content})).rows
        assert [len(data[split]) for split in ("train", "validation", "test")] == [160, 20, 20], number


def test_a_given_split_is_kept_when_the_other_is_carved(make_task, tokenizer, rows):
    prepared = prepare(make_task({"train": rows(100), "validation": rows(7, "good w")}), tokenizer)
    assert [prepared.num_rows(split) for split in ("train", "validation", "test")] == [90, 7, 10]


# ---- fingerprint -----------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("change", [{"text": "w0 dull"}, {"label": 1}])
@pytest.mark.parametrize("split", ["train", "validation", "test"])
def test_any_change_of_a_row_changes_the_fingerprint(make_task, tokenizer, rows, split, change):
    content = {name: rows(12, f"{name} w") for name in ("train", "validation", "test")}
    before = prepare(make_task(content), tokenizer).data_fingerprint
    content[split][0] = {**content[split][0], **change}
    assert prepare(make_task(content), tokenizer).data_fingerprint != before


def test_fingerprint_knows_where_a_text_ends(make_task, tokenizer):
    def printed(first: str, second: str) -> str:
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
