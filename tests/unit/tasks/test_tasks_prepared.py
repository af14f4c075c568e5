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


def test_pairs_stand_apart_where_the_tokenizer_puts_nothing_between_them(make_task, rows, tokenizer):
    task = replace(pair_task(make_task, rows), max_length=64)
    plain, question = byte_tokenizer(), [("good", "It is bad")]
    assert plain.decode(inputs_of(task, plain, question)["input_ids"][0]) == "good\nIt is bad"
    assert inputs_of(task, tokenizer, question)["input_ids"].tolist() == [tokenizer(*question[0])["input_ids"]]


@pytest.mark.parametrize("side", ["right", "left"])
def test_batches_are_what_the_tokenizer_makes(make_task, tokenizer, rows, side):
    task, content = make_task(), rows(40)
    tokenizer.padding_side = side
    prepared = prepare(task, tokenizer)
    indices = [5, 0, 39, 12]
    batch = prepared.collate("train", indices)
    expected = tokenizer(
        [content[i]["text"] for i in indices], truncation=True, max_length=16, padding=True, return_tensors="pt"
    )
    assert set(batch.inputs) == {"input_ids", "attention_mask", "token_type_ids"}
    assert all(torch.equal(batch.inputs[name], expected[name]) for name in batch.inputs)
    assert batch.targets.tolist() == [1, 0, 1, 0]
    assert batch.num_tokens == int(expected["attention_mask"].sum())
    encoded = inputs_of(task, tokenizer, [(content[i]["text"],) for i in indices])
    assert all(torch.equal(encoded[name], expected[name]) for name in expected)


def test_pairs_have_segments_and_are_cut_to_length(make_task, tokenizer, rows):
    task = pair_task(make_task, rows)
    prepared = prepare(task, tokenizer)
    batch = prepared.collate("test", range(6))
    texts = [row["text"] for row in rows(6, "dull w")]
    seconds = ["dull film " * (i % 9) for i in range(6)]
    expected = tokenizer(texts, seconds, truncation=True, max_length=12, padding=True, return_tensors="pt")
    asked = inputs_of(task, tokenizer, list(zip(texts, seconds, strict=True)))
    for inputs in (batch.inputs, asked):
        assert set(inputs) == set(expected)
        assert all(torch.equal(inputs[name], expected[name]) for name in inputs)
    assert batch.inputs["token_type_ids"].max() == 1
    assert prepared.lengths("test").max() == 12


def test_padding_is_the_tokenizers_token_and_only_as_long_as_needed(make_task, make_tokenizer):
    tokenizer = make_tokenizer(pad_token="[UNK]")
    prepared = prepare(make_task(), tokenizer)
    batch = prepared.collate("train", [0, 1])  # no "film" and one
    assert batch.inputs["input_ids"].shape == (2, 4)
    assert batch.inputs["input_ids"][0, -1] == tokenizer.unk_token_id
    assert batch.inputs["attention_mask"].tolist() == [[1, 1, 1, 0], [1, 1, 1, 1]]


def test_validation_is_limited_in_tokens_and_labels_alike(make_task, tokenizer, rows):
    files = {"train": rows(10), "validation": rows(40, "good w"), "test": rows(10)}
    whole = prepare(make_task(files), tokenizer)
    some = prepare(make_task(files, validation_rows=8), tokenizer)
    assert (whole.num_rows("validation"), some.num_rows("validation")) == (40, 8)
    every = whole.collate("validation", range(40))
    known = {
        tuple(ids.tolist()): int(label) for ids, label in zip(every.inputs["input_ids"], every.targets, strict=True)
    }
    width = every.inputs["input_ids"].shape[1]
    part = some.collate("validation", range(8))
    for ids, label in zip(part.inputs["input_ids"], part.targets, strict=True):
        padded = ids.tolist() + [0] * (width - len(ids))
        assert known[tuple(padded)] == int(label)
    assert some.data_fingerprint == whole.data_fingerprint


def test_what_is_shared_is_read_only(make_task, tokenizer):
    prepared = prepare(make_task(validation_rows=3), tokenizer)
    for split in ("train", "validation", "test"):
        for array in (prepared.lengths(split), prepared.labels(split)):
            with pytest.raises(ValueError, match="read-only"):
                array[0] = 1


def cached_tokens(home):
    return {path.name: path.stat().st_ino for path in (home / "datasets" / "tokens").iterdir()}


def test_tokens_are_made_once_per_data_tokenizer_and_length(make_task, make_tokenizer, fresh_home):
    task = make_task()
    prepare(task, make_tokenizer())
    first = cached_tokens(fresh_home)
    assert len(first) == 3
    used = make_tokenizer()
    used(["a film"], truncation=True, max_length=5, padding="max_length")  # leaves its settings in the backend
    prepare(task, used)
    assert cached_tokens(fresh_home) == first
    prepare(replace(task, max_length=8), used)
    assert len(cached_tokens(fresh_home)) == 6
    other = make_tokenizer()
    other.add_tokens(["w1 film"])
    assert prepare(task, other).lengths("train")[1] == prepare(task, used).lengths("train")[1] - 1
    assert len(cached_tokens(fresh_home)) == 9
    other.chat_template = "{{ messages[0].content }}"
    prepare(task, other)
    assert len(cached_tokens(fresh_home)) == 12


def test_cut_cache_files_are_made_again(make_task, tokenizer, fresh_home):
    for keep in [0, 100, 0.5]:
        task = make_task()
        before = prepare(task, tokenizer)
        for path in (fresh_home / "datasets" / "tokens").iterdir():
            data = path.read_bytes()
            path.write_bytes(data[: int(keep * len(data)) if keep < 1 else keep])
        after = prepare(task, tokenizer)
        ids = [data.collate("train", range(40)).inputs["input_ids"] for data in (before, after)]
        assert torch.equal(*ids)


def test_row_without_any_token_is_refused(make_task, make_tokenizer, rows, tmp_path):
    """Rows of the hub may be empty: whoever uses them cannot correct them."""
    bare = make_tokenizer()
    bare.backend_tokenizer.post_processor = None
    content = [{"text": "", "label": 0}, *rows(9)]
    for name in ("train", "validation", "test"):
        datasets.Dataset.from_list(content).to_parquet(tmp_path / "set" / f"{name}.parquet")
    task = replace(make_task(), source=DataSource(hub=str(tmp_path / "set")))
    with pytest.raises(TaskDataError, match="''"):
        prepare(task, bare)
    assert prepare(task, make_tokenizer()).report.blank["train"] == 1


def test_max_length_must_fit_the_base(make_task, tokenizer, rows):
    for length, pair, allowed in [(2, False, "3..64"), (65, False, "3..64"), (3, True, "4..64")]:
        task = pair_task(make_task, rows) if pair else make_task()
        with pytest.raises(TaskDataError, match=f"`max_length` must be {allowed.replace('.', '[.]')}"):
            prepare(replace(task, max_length=length), tokenizer)


def test_encode_refuses_another_number_of_texts(make_task, tokenizer, rows):
    single, pair = make_task(), pair_task(make_task, rows)
    for task, rows_asked in ((single, [("a", "b")]), (pair, [("a",)]), (pair, [("a", "c"), ("b",)]), (single, [])):
        with pytest.raises(TaskDataError, match="must be given"):
            inputs_of(task, tokenizer, rows_asked)


def test_encode_refuses_what_nobody_can_judge(make_task, tokenizer):
    for text in [" \n", None, ("a", "b"), "half \ud800 of it"]:
        with pytest.raises(TaskDataError, match="must be given"):
            inputs_of(make_task(), tokenizer, [("fine",), (text,)])


def test_encode_takes_a_pair_of_which_one_is_empty(make_task, tokenizer, rows):
    task = pair_task(make_task, rows)
    assert inputs_of(task, tokenizer, [("fine", "")])["input_ids"].shape == (1, 4)
    with pytest.raises(TaskDataError, match="row 2 has none"):
        inputs_of(task, tokenizer, [("fine", ""), ("", " ")])
