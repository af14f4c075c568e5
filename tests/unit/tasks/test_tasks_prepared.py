"""Tokens and batches: the same as the tokenizer's own, cached, quick the second time."""

from __future__ import annotations

from dataclasses import replace

import datasets
import pytest
import torch
from support.bases import byte_tokenizer

from loraxs_search.errors import TaskDataError
from loraxs_search.records.task import DataSource
from loraxs_search.tasks.encoded import RowSource
from loraxs_search.tasks.kinds import kind_of
from loraxs_search.tasks.prepared import encode, prepare


def inputs_of(task, tokenizer, questions):
    """Model inputs of questions that are no part of the data."""
    encoded = encode(kind_of(task), tokenizer, questions)
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
    for name in ("train", "validation", "test"):
        rows_of_set = datasets.Dataset.from_list([{"text": "", "label": 0}, *rows(9)])
        rows_of_set.to_parquet(tmp_path / "set" / f"{name}.parquet")
    task = replace(make_task(), source=DataSource(hub=str(tmp_path / "set")))
    with pytest.raises(TaskDataError, match="''"):
        prepare(task, bare)
    assert prepare(task, make_tokenizer()).report.blank["train"] == 1


def test_max_length_must_fit_the_base(make_task, tokenizer, rows):
    for task, length, allowed in [
        (make_task(), 2, "3..64"),
        (make_task(), 65, "3..64"),
        (pair_task(make_task, rows), 3, "4..64"),
    ]:
        with pytest.raises(TaskDataError, match=f"`max_length` must be {allowed.replace('.', '[.]')}"):
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
