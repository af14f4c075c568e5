"""From files and data sets to rows, tokens and batches: faults, carving, fingerprints, caches."""

from __future__ import annotations

import os
import sys
from dataclasses import replace

import datasets
import huggingface_hub
import numpy as np
import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st
from support.bases import byte_tokenizer

from loraxs_search.errors import HomeError, TaskDataError
from loraxs_search.records.task import DataSource, SplitSource
from loraxs_search.tasks.encoded import RowSource, TrainingBatches, eval_batches
from loraxs_search.tasks.kinds import kind_of
from loraxs_search.tasks.prepared import fingerprint, fixed_subset, load_data, prepare
from loraxs_search.tasks.rows import Columns, with_parents, with_parts


def hub_folder(folder, **splits):
    for name, rows in splits.items():
        datasets.Dataset.from_list(rows).to_parquet(folder / f"{name}.parquet")
    return str(folder)


def sizes(data):
    return [len(data[split]) for split in ("train", "validation", "test")]


def inputs_of(task, tokenizer, questions):
    """Model inputs of questions that are no part of the data."""
    encoded = kind_of(task).encode_questions(questions, tokenizer)
    return RowSource(tokenizer).collate(encoded, range(len(encoded))).inputs


def pair_task(make_task, rows):
    def content(n, word):
        return [{**row, "second": f"{word} film " * (i % 9)} for i, row in enumerate(rows(n, f"{word} w"))]

    files = {"train": content(20, "a"), "validation": content(6, "the"), "test": content(6, "dull")}
    return make_task(files, text_pair="second", max_length=12)


def test_batches_are_what_the_tokenizer_makes(make_task, make_tokenizer, rows):
    for side, changes in (("right", {}), ("left", {}), ("right", {"pad_token": "[UNK]"})):
        tokenizer, task = make_tokenizer(padding_side=side, **changes), make_task()
        prepared, indices = prepare(task, tokenizer), [5, 0, 39, 12]
        chosen = [rows(40)[i]["text"] for i in indices]
        batch = prepared.collate("train", indices)
        expected = tokenizer(chosen, truncation=True, max_length=16, padding=True, return_tensors="pt")
        asked = inputs_of(task, tokenizer, [(text,) for text in chosen])
        for inputs in (batch.inputs, asked):
            assert set(inputs) == {"input_ids", "attention_mask", "token_type_ids"}
            assert all(torch.equal(inputs[name], expected[name]) for name in inputs)
        assert batch.targets.tolist() == [1, 0, 1, 0]
        assert batch.num_tokens == int(expected["attention_mask"].sum())


def test_pairs_have_segments_are_cut_to_length_and_stand_apart(make_task, tokenizer, rows):
    task = pair_task(make_task, rows)
    prepared = prepare(task, tokenizer)
    pairs = [(row["text"], "dull film " * (i % 9)) for i, row in enumerate(rows(6, "dull w"))]
    expected = tokenizer(*zip(*pairs, strict=True), truncation=True, max_length=12, padding=True, return_tensors="pt")
    for inputs in (prepared.collate("test", range(6)).inputs, inputs_of(task, tokenizer, pairs)):
        assert all(torch.equal(inputs[name], expected[name]) for name in expected)
    assert expected["token_type_ids"].max() == 1
    assert prepared.lengths("test").max() == 12
    plain, question = byte_tokenizer(), [("good", "It is bad")]  # it puts nothing between them
    long = replace(task, max_length=64)
    assert plain.decode(inputs_of(long, plain, question)["input_ids"][0]) == "good\nIt is bad"
    assert inputs_of(task, tokenizer, [("fine", "")])["input_ids"].shape == (1, 4)


def test_validation_is_limited_in_tokens_and_labels_alike(make_task, tokenizer, rows):
    files = {"train": rows(10), "validation": rows(40, "good w"), "test": rows(10)}
    whole, some = (prepare(make_task(files, validation_rows=n), tokenizer) for n in (None, 8))
    assert (whole.num_rows("validation"), some.num_rows("validation")) == (40, 8)

    def learnt(prepared):
        batches = (prepared.collate("validation", [row]) for row in range(prepared.num_rows("validation")))
        return {(*batch.inputs["input_ids"][0].tolist(), int(batch.targets)) for batch in batches}

    assert len(learnt(some)) == 8
    assert learnt(some) < learnt(whole)
    assert some.data_fingerprint == whole.data_fingerprint
    for array in (some.lengths("validation"), some.labels("validation"), some.labels("train")):
        with pytest.raises(ValueError, match="read-only"):
            array[0] = 1


def test_tokens_are_made_once_per_data_tokenizer_and_length(make_task, make_tokenizer, fresh_home):
    def cached():
        return {path: path.stat().st_ino for path in (fresh_home / "datasets" / "tokens").iterdir()}

    task, used, other = make_task(), make_tokenizer(), make_tokenizer()
    before = prepare(task, make_tokenizer())
    first = cached()
    assert len(first) == 3
    used(["a film"], truncation=True, max_length=5, padding="max_length")  # leaves its settings in the backend
    prepare(task, used)
    assert cached() == first
    other.add_tokens(["w1 film"])
    assert prepare(task, other).lengths("train")[1] == before.lengths("train")[1] - 1
    prepare(replace(task, max_length=8), used)
    used.chat_template = "{{ messages[0].content }}"
    prepare(task, used)
    assert len(cached()) == 12
    for keep in (0, 100, 0.5):  # cut files are made again
        for path in cached():
            data = path.read_bytes()
            path.write_bytes(data[: int(keep * len(data)) if keep < 1 else keep])
        ids = [it.collate("train", range(40)).inputs["input_ids"] for it in (before, prepare(task, make_tokenizer()))]
        assert torch.equal(*ids)


def test_row_without_any_token_is_refused(make_task, make_tokenizer, rows, tmp_path):
    """Rows of the hub may be empty: whoever uses them cannot correct them."""
    bare = make_tokenizer()
    bare.backend_tokenizer.post_processor = None
    own = [{"text": "", "label": 0}, *rows(9)]
    hub = hub_folder(tmp_path / "set", train=own, validation=own, test=own)
    task = replace(make_task(), source=DataSource(hub=hub))
    with pytest.raises(TaskDataError, match="''"):
        prepare(task, bare)
    assert prepare(task, make_tokenizer()).report.blank["train"] == 1
    pair = make_task({"train": [{**row, "second": ""} for row in rows(12)]}, text_pair="second")
    assert prepare(pair, make_tokenizer()).report.blank["train"] > 0


def test_max_length_must_fit_the_base(make_task, tokenizer, rows):
    pair = pair_task(make_task, rows)
    for task, length, least in [(make_task(), 2, 3), (make_task(), 65, 3), (pair, 3, 4)]:
        with pytest.raises(TaskDataError, match=rf"`max_length` must be {least}\.\.64"):
            prepare(replace(task, max_length=length), tokenizer)


def test_questions_that_nobody_can_answer_are_refused(make_task, tokenizer, rows):
    single, pair = make_task(), pair_task(make_task, rows)
    for task, asked in [
        *((single, [("fine",), row]) for row in ((" \n",), ("half \ud800 of it",), (None,), (("a", "b"),))),
        (pair, [("a", "c"), ("b",)]),
    ]:
        with pytest.raises(TaskDataError, match="must be given"):
            inputs_of(task, tokenizer, asked)
    with pytest.raises(TaskDataError, match="row 2 has none"):
        inputs_of(pair, tokenizer, [("fine", ""), ("", " ")])


# ---- batches ---------------------------------------------------------------------------------------------------------
lengths = st.lists(st.integers(1, 40), min_size=1, max_size=200).map(lambda values: np.array(values, dtype=np.int32))


def epoch_batches(rows, size, seed, epoch):
    batches, count = TrainingBatches(rows, size, seed), -(-len(rows) // size)
    return [batches.at(epoch * count + number) for number in range(count)]


@given(lengths, st.integers(1, 50), st.integers(-3, 2**63 - 1), st.integers(0, 1000))
def test_an_epoch_has_every_row_once_and_at_most_one_short_batch(rows, size, seed, epoch):
    batches = epoch_batches(rows, size, seed=seed, epoch=epoch)
    assert sorted(np.concatenate(batches)) == list(range(len(rows)))
    assert sorted((len(batch) for batch in batches), reverse=True)[:-1] == [size] * (len(batches) - 1)


@given(lengths, st.integers(1, 200))
def test_evaluation_has_every_row_once_within_the_budget(rows, max_tokens):
    batches = eval_batches(rows, max_tokens)
    assert sorted(np.concatenate(batches)) == list(range(len(rows)))
    assert all(len(batch) == 1 or len(batch) * rows[batch].max() <= max_tokens for batch in batches)
    ordered = rows[np.concatenate(batches)]
    assert (np.diff(ordered) <= 0).all()
    assert [len(batch) for batch in eval_batches(np.full(64, 30, np.int32), 4096)] == [64], "rows alike"


def test_the_plan_is_the_same_for_ever():
    """A stored trial is resumed by it; these numbers were written by this code, with numpy 2."""
    plan = TrainingBatches(np.arange(100, dtype=np.int32) % 13 + 1, 8, 7)
    assert plan.at(30).tolist() == [0, 53, 28, 95, 5, 45, 33, 20]


def test_like_lengths_are_batched_together_and_length_does_not_decide_when_a_row_is_seen():
    rows = np.random.default_rng(0).integers(5, 60, size=4000).astype(np.int32)
    batches = epoch_batches(rows, 16, seed=0, epoch=0)
    assert sum(len(batch) * int(rows[batch].max()) for batch in batches) < 1.1 * rows.sum()
    assert abs(rows[np.concatenate(batches[:125])].mean() / rows.mean() - 1) < 0.15


def test_trials_of_any_seed_have_batches_of_like_length_at_the_same_step():
    rows = np.random.default_rng(0).integers(5, 60, size=4000).astype(np.int32)
    longest = [[int(rows[batch].max()) for batch in epoch_batches(rows, 16, seed=seed, epoch=1)] for seed in range(4)]
    assert np.ptp(longest, axis=0).mean() < 2
    assert np.ptp(longest, axis=1).min() > 40


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
    pair = [{**row, "text": "", "second": " "} for row in rows(12)]
    for files, changes, said in [
        ({"train": [*train, {"text": None, "label": 0}]}, {}, r"`text` must be text.*train\.jsonl .*\(line 13\)"),
        ({"train": [*train, {"text": " \t\n", "label": 0}]}, {}, r"must have text, .*\(line 13\)"),
        ({"train": train, "test": hidden}, {}, r"`label` of test rows .*test\.jsonl has '' \(line 1 and 8 more rows\)"),
        ({"train": train}, {"text": "texts"}, r"`columns\.text` must be one of: text, .*train\.jsonl"),
        ({"train": nested}, {"text": "doc.txt"}, r"`columns.text`.*: doc, text, label, .*'doc.txt'"),
        ({"train": pair}, {"text_pair": "second"}, "text"),
        ({"train": rows(9)}, {}, "10 rows .* 9"),
        ({"train": rows(1) * 20}, {}, "split .*carved"),
    ]:
        with pytest.raises(TaskDataError, match=said):
            load_data(make_task(files, **changes))


def test_splits_that_are_not_there_are_named(make_task, rows, tmp_path):
    task, hub = make_task(), hub_folder(tmp_path / "set", train=rows(40))
    (header := tmp_path / "header.csv").write_text("text,label\n")
    for keys, said in [
        ({"splits": {"validation": "valid"}}, r"`splits\.validation`.*: validation, test, train"),
        ({"data_files": {"test": "test.jsonl"}}, r"`splits\.train`.*: test"),
        ({"data_files": {"train": str(header)}}, r"a split must have rows, but .*header\.csv gives none"),
        ({"hub": hub, "data_files": {}, "splits": {"train": "trian[:20]"}}, r"`splits.train`.*: train, .*'trian'"),
        ({"hub": hub, "data_files": {}, "splits": {"train": "train[:10%]"}}, r"`splits.train`"),
    ]:
        with pytest.raises(TaskDataError, match=said):
            load_data(replace(task, source=replace(task.source, **keys)))


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
def test_a_folder_named_as_hub_whose_files_are_replaced_gives_the_new_rows(make_task, write, tmp_path):
    """`rsync -t`, `tar` and archives of every kind keep times."""
    (tmp_path / "set").mkdir()
    for label in (0, 1):
        for name in ("train", "validation", "test"):
            path = write(f"set/{name}.jsonl", [{"text": f"w{i}", "label": label} for i in range(20)])
            os.utime(path, ns=(10**18, 10**18))
        data = load_data(replace(make_task(), source=DataSource(hub=str(tmp_path / "set"))))
        assert set(data["test"].labels.tolist()) == {label}


def test_cached_tokens_need_no_slow_library(make_task, tokenizer, monkeypatch):
    """Importing `datasets` takes a second, pandas half of one."""
    prepare(make_task(), tokenizer)
    for name in ("datasets", "pandas"):
        monkeypatch.setitem(sys.modules, name, None)  # an import of it would fail
    prepare(make_task(), tokenizer)


def test_cache_that_cannot_be_written_is_a_home_error(make_task, tokenizer, fresh_home):
    fresh_home.write_text("a file, not a folder")
    with pytest.raises(HomeError):
        prepare(make_task(), tokenizer)


# ---- carving, fingerprint --------------------------------------------------------------------------------------------
def test_missing_splits_are_carved_from_train_and_are_apart(make_task, rows):
    for content, others, carved_rows, expected in [
        (rows(200), 0, None, [160, 20, 20]),
        (rows(100), 7, None, [90, 7, 10]),
        (rows(100), 0, 7, [86, 7, 7]),
        ([row for row in rows(50) for _ in range(4)], 0, None, None),  # equal texts stay on one side
        *((rows(80, f"{n} w") + rows(1, f"often {n} ") * 120, 0, None, [160, 20, 20]) for n in range(12)),
    ]:
        task = make_task({"train": content} | ({"validation": rows(others, "good w")} if others else {}))
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
def test_parts_of_objects_and_of_lists_of_objects(tmp_path, make_task, write):
    for values, wanted, read in [
        ({"a": [{"x": [1, 2]}, {"x": [3]}]}, "a.x", [[1, 2], [3]]),
        ({"a": [{"x": 1}, "text", None]}, "a.x", [1, None, None]),
        ({"a": [{"x": 1}, "text", None]}, "a.z", None),  # a part that no row has is no column
        ({"a": [{"x": 1}], "a.x": [2]}, "a.x", [2]),  # a column with a dot in its name is itself
        ({"a": [{"x.y": 1}, {"x": {"y": 2}}]}, "a.x.y", [1, 2]),  # and so is a key
    ]:
        assert with_parts(Columns(list(values), values), [wanted]).values.get(wanted) == read
    assert with_parents(["a.x", "a", "c.y", "label"]) == ["c", "a.x", "a", "c.y", "label"]
    rows = [{"doc": {"body": f"w{i}"}, "answer": {"label": i % 2}} for i in range(20)]
    hub = DataSource(hub=hub_folder(tmp_path / "hub", train=rows))
    for source in (hub, DataSource(data_files={"train": write("rows.jsonl", rows)})):
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


def test_no_more_rows_are_held_out_than_asked(make_task, rows):
    few = []
    for test in (rows(60), rows(60)[::-1]):
        task = make_task({"train": rows(100), "test": test})
        capped = load_data(replace(task, source=replace(task.source, held_out_rows=7)))
        assert sizes(capped) == [90, 7, 7], "a tenth is carved, and seven of it stay"
        few.append((sorted(capped["validation"].texts), sorted(capped["test"].texts)))
    assert few[0] == few[1], "whatever their order"
