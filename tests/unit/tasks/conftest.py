"""A small tokenizer for made-up data."""

from __future__ import annotations

import json
from dataclasses import replace

import pytest
from tokenizers import Tokenizer, models, pre_tokenizers, processors
from transformers import PreTrainedTokenizerFast

from loraxs_search.records.task import DataSource, Task

WORDS = ["good", "bad", "film", "a", "the", "very", "fine", "dull", *(f"w{i}" for i in range(200))]


def small_tokenizer(**options):
    ids = {word: i for i, word in enumerate(["[PAD]", "[UNK]", "[CLS]", "[SEP]", *WORDS])}
    raw = Tokenizer(models.WordLevel(ids, unk_token="[UNK]"))
    raw.pre_tokenizer = pre_tokenizers.Whitespace()
    ends = [("[CLS]", 2), ("[SEP]", 3)]
    raw.post_processor = processors.TemplateProcessing("[CLS] $A [SEP]", "[CLS] $A [SEP] $B:1 [SEP]:1", ends)
    known = {"pad_token": "[PAD]", "unk_token": "[UNK]", "cls_token": "[CLS]", "sep_token": "[SEP]"}
    known |= {"model_input_names": ["input_ids", "token_type_ids", "attention_mask"], "model_max_length": 64}
    return PreTrainedTokenizerFast(tokenizer_object=raw, **known | options)


@pytest.fixture
def make_tokenizer():
    return small_tokenizer


@pytest.fixture
def tokenizer():
    return small_tokenizer()


@pytest.fixture
def write(tmp_path):
    """Write rows as JSON lines and return the path."""

    def make(name, rows):
        path = tmp_path / name
        path.write_text("".join(json.dumps(row) + "\n" for row in rows))
        return str(path)

    return make


def rows_of(n, word="w"):
    return [{"text": f"{word}{i} " + "film " * (i % 7), "label": i % 2} for i in range(n)]


@pytest.fixture
def rows():
    return rows_of


@pytest.fixture
def make_task(write):
    """A task on made-up rows; `files` are rows by split, other arguments replace the declaration's."""

    def make(files=None, **changes):
        if files is None:
            files = {"train": rows_of(40), "validation": rows_of(10, "good w"), "test": rows_of(12, "bad w")}
        paths = {name: write(f"{name}.jsonl", content) for name, content in files.items()}
        known = ("made-up", "sequence-classification", DataSource(data_files=paths), "text", "label")
        task = Task(*known, "accuracy", "maximize", ("accuracy",), labels=("negative", "positive"), max_length=16)
        return replace(task, **changes)

    return make
