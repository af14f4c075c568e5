"""A search that tags the names in sentences, from launch to every form in which its champion answers."""

from __future__ import annotations

import csv
import io
import json
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from support.entity_rows import LABELS, entity_rows
from support.in_process import InProcess
from support.shell import Shell
from support.spaces import QUICKSTART
from transformers import AutoModelForTokenClassification, AutoTokenizer

import loraxs_search
from loraxs_search.registry.manifest import verify
from loraxs_search.tasks.metrics import TAG_METRICS

pytestmark = [
    *(pytest.mark.slow, pytest.mark.long(part="search")),
    pytest.mark.filterwarnings("ignore::ResourceWarning", "ignore::DeprecationWarning"),
]

SPACE = f"""
task:
  name: names
  kind: token-classification
  data: {{data_files: {{train: train.jsonl, validation: validation.jsonl, test: test.jsonl}}}}
  columns: {{tokens: tokens, tags: tags}}
  labels: [{", ".join(LABELS)}]
  metrics: [f1, precision, recall, accuracy]
  max_length: 32
base_model: {json.dumps(QUICKSTART)}
parameters:
  rank: {{choice: [4, 8]}}
  learning_rate: {{log_uniform: [5.0e-3, 2.0e-2]}}
  head_learning_rate: 1.0e-2
  batch_size: 8
search: {{trials: 2, max_steps: 60, report_every: 20, precision: float32}}
promotion: {{candidates: 1, seeds: 0}}
"""


@pytest.fixture
def rows(tmp_path: Path) -> dict[str, list[dict[str, Any]]]:
    every = entity_rows(160)
    splits = {"train": every[:90], "validation": every[90:120], "test": every[120:]}
    for name, own in splits.items():
        (tmp_path / f"{name}.jsonl").write_text("".join(json.dumps(row) + "\n" for row in own))
    return splits


@pytest.fixture
def shell(tmp_path: Path, search_home: Path, in_search_home: Path) -> Shell:
    (tmp_path / "names.yaml").write_text(SPACE)
    return InProcess(search_home, tmp_path)


def of_transformers(folder: str, texts: list[str]) -> list[str]:
    model, tokenizer = AutoModelForTokenClassification.from_pretrained(folder), AutoTokenizer.from_pretrained(folder)
    answers = []
    for text in texts:
        inputs = tokenizer(text.split(), is_split_into_words=True, return_tensors="pt")
        with torch.no_grad():
            tags = [model.config.id2label[i] for i in model(**inputs).logits[0].argmax(-1).tolist()]
        words = inputs.word_ids()
        answers.append(" ".join(tags[words.index(number)] for number in range(len(text.split()))))
    return answers


def test_names_are_searched_promoted_and_found(
    shell: Shell, rows: dict[str, list[dict[str, Any]]], agree: Callable[..., object]
) -> None:
    assert "entities" in shell.ok("check", "names.yaml", "--data")
    shell.ok("launch", "names.yaml", "--name", "names", timeout_s=600)
    agree("names", 2)
    promoted = " ".join(shell.ok("promote", "names").split())
    assert "over the constant answer (f1 0.0000), significant" in promoted

    texts = [" ".join(row["tokens"]) for row in rows["test"]]
    answers = json.loads(shell.ok("predict", "names", *texts, "--json"))
    said, true = ([answer["label"] for answer in answers], [" ".join(row["tags"]) for row in rows["test"]])
    stored = verify(Path(shell.ok("pull", "names").strip())).test_metrics
    for name, metric in TAG_METRICS.items():
        assert metric.score(*(np.array(own, object) for own in (said, true))) == stored[name]
    for answer in answers:
        assert all(answer["text"][one["start"] : one["end"]] == one["text"] for one in answer["entities"])

    table = list(csv.DictReader(io.StringIO(shell.ok("predict", "names", "--file", "test.jsonl", "--format", "csv"))))
    assert [json.loads(row["entities"]) for row in table] == [answer["entities"] for answer in answers]
    bank = loraxs_search.AdapterBank.of("names")
    assert [answer.label for answer in bank.predict(["names"] * len(texts), texts)] == said
    merged = shell.ok("pull", "names", "--format", "merged").strip().splitlines()[-1]
    assert of_transformers(merged, texts) == said
