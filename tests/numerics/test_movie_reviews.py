"""The shipped film reviews as the quickstart's base reads them: the same tokens on every machine, made once."""

from __future__ import annotations

import subprocess
import sys

import pytest

from loraxs_search.base_model.tokenizer import load_tokenizer
from loraxs_search.records.codec import to_json
from loraxs_search.search_space.load import load_space
from loraxs_search.tasks.encoded import TrainingBatches
from loraxs_search.tasks.prepared import prepare


@pytest.fixture(scope="module")
def cache(tmp_path_factory):
    return tmp_path_factory.mktemp("movie-cache")


def test_movie_reviews(quickstart_base, cache):
    prepared = prepare(load_space("movie_reviews").task, load_tokenizer(quickstart_base), cache_dir=cache)
    assert [prepared.num_rows(split) for split in ("train", "validation", "test")] == [3000, 500, 2000]
    # Made with datasets 5.2 and transformers 5.24; the content is fixed, so this is for every machine and version.
    assert prepared.data_fingerprint == "71b78786cb6093f177f10dda1c7f531ad6178feed93709265afb55b55267329b"
    assert 0.4 < prepared.labels("validation").mean() < 0.6
    rows = TrainingBatches(prepared.lengths("train"), 16, seed=0)
    batches = [prepared.collate("train", rows.at(step)) for step in range(188)]
    assert sum(batch.num_tokens for batch in batches) == prepared.lengths("train").sum()
    assert sum(batch.inputs["input_ids"].numel() for batch in batches) < 1.05 * prepared.lengths("train").sum()


PREPARE = """
import sys
from pathlib import Path
from transformers import AutoTokenizer
from loraxs_search.records.task import Task
from loraxs_search.records.codec import from_json
from loraxs_search.tasks.prepared import prepare
prepare(from_json(Task, sys.argv[1]), AutoTokenizer.from_pretrained(sys.argv[2]), cache_dir=Path(sys.argv[3]))
"""


def test_movie_reviews_are_tokenised_once_for_all_processes(quickstart_base, cache):
    task, tokenizer = load_space("movie_reviews").task, load_tokenizer(quickstart_base)
    prepare(task, tokenizer, cache_dir=cache)
    before = {path: path.stat().st_ino for path in cache.glob("tokens/*.arrow")}
    assert len(before) == 3
    prepare(task, tokenizer, cache_dir=cache)
    subprocess.run([sys.executable, "-c", PREPARE, to_json(task), quickstart_base.path, str(cache)], check=True)
    assert {path: path.stat().st_ino for path in cache.glob("tokens/*.arrow")} == before
