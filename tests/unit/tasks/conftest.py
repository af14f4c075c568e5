"""A small tokenizer for made-up data."""

from __future__ import annotations

import gzip
import json
from typing import Any

import pytest
from tokenizers import Tokenizer, models, pre_tokenizers, processors
from transformers import PreTrainedTokenizerFast

from loraxs_search.records.task import DataSource, Task

WORDS = ["good", "bad", "film", "a", "the", "very", "fine", "dull", *(f"w{i}" for i in range(200))]


def small_tokenizer(**options):
    ids = {word: i for i, word in enumerate(["[PAD]", "[UNK]", "[CLS]", "[SEP]", *WORDS])}
    raw = Tokenizer(models.WordLevel(ids, unk_token="[UNK]"))
    raw.pre_tokenizer = pre_tokenizers.Whitespace()
    raw.post_processor = processors.TemplateProcessing(
        single="[CLS] $A [SEP]",
        pair="[CLS] $A [SEP] $B:1 [SEP]:1",
        special_tokens=[("[CLS]", 2), ("[SEP]", 3)],
    )
    inputs = ["input_ids", "token_type_ids", "attention_mask"]
    special = {"pad_token": "[PAD]", "unk_token": "[UNK]", "cls_token": "[CLS]", "sep_token": "[SEP]"}
    defaults = {"model_input_names": inputs, "model_max_length": 64, **special}
    return PreTrainedTokenizerFast(tokenizer_object=raw, **{**defaults, **options})


@pytest.fixture
def make_tokenizer():
    return small_tokenizer


@pytest.fixture
def tokenizer():
    return small_tokenizer()


@pytest.fixture
def write(tmp_path):
    """Write rows as JSON lines (gzipped when the name says so) and return the path."""

    def make(name, rows):
        path = tmp_path / name
        text = "".join(json.dumps(row) + "\n" for row in rows)
        path.write_bytes(gzip.compress(text.encode()) if path.suffix == ".gz" else text.encode())
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
        task: dict[str, Any] = {
            "name": "made-up",
            "kind": "sequence-classification",
            "source": DataSource(data_files=paths),
            "text": "text",
            "label": "label",
            "metric": "accuracy",
            "direction": "maximize",
            "metrics": ("accuracy",),
            "labels": ("negative", "positive"),
            "max_length": 16,
        }
        return Task(**{**task, **changes})

    return make
