"""The shipped film reviews as the quickstart's base reads them: the same tokens on every machine."""

from __future__ import annotations

from loraxs_search.base_model.tokenizer import load_tokenizer
from loraxs_search.search_space.load import load_space
from loraxs_search.tasks.encoded import TrainingBatches
from loraxs_search.tasks.prepared import prepare


def test_movie_reviews(quickstart_base, tmp_path):
    prepared = prepare(load_space("movie_reviews").task, load_tokenizer(quickstart_base))
    assert [prepared.num_rows(split) for split in ("train", "validation", "test")] == [3000, 500, 2000]
    # Made with datasets 5.2 and transformers 5.24; the content is fixed, so this is for every machine and version.
    assert prepared.data_fingerprint == "71b78786cb6093f177f10dda1c7f531ad6178feed93709265afb55b55267329b"
    assert 0.4 < prepared.labels("validation").mean() < 0.6
    rows = TrainingBatches(prepared.lengths("train"), 16, seed=0)
    batches = [prepared.collate("train", rows.at(step)) for step in range(188)]
    assert sum(batch.num_tokens for batch in batches) == prepared.lengths("train").sum()
    assert sum(batch.inputs["input_ids"].numel() for batch in batches) < 1.05 * prepared.lengths("train").sum()
