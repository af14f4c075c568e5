"""What MLflow's registry shows people: the page of a version, and tags without records."""

from __future__ import annotations

import dataclasses
import json

import pytest

from loraxs_search.records.promotion import Baseline, PromotionRule, Refit
from loraxs_search.registry.changes import Promoter
from loraxs_search.tracking.store import connect

RULE = PromotionRule(confidence=0, require="constant")
REFITS = (Refit(1, {"accuracy": 0.79}), Refit(2, {"accuracy": 0.82}))
BASELINES = (Baseline("constant", {}, {"accuracy": 0.5}, answer=1), Baseline("tfidf", {}, {"accuracy": 0.7}))


@pytest.fixture
def promote(store_uri, task, candidate, make_folder):
    def promote(trial_id, accuracy, **changes):
        own = dataclasses.replace(candidate(trial_id, accuracy), **changes)
        folder = make_folder(trial_id, baselines=own.baselines, refits=own.refits, lora_parameters=6400)
        return Promoter(store_uri, "movie-reviews").promote(RULE, task, [own], {trial_id: folder})

    return promote


def in_sight(tags) -> dict[str, str]:
    """The tags that MLflow's pages show."""
    return {key: value for key, value in tags.items() if not key.startswith("mlflow.")}


def test_the_page_of_a_version_says_how_good_how_big_and_why(promote, store_uri):
    promote("t0", 0.80, refits=REFITS, baselines=BASELINES)
    page = connect(store_uri).get_model_version("movie-reviews", "1").description
    for part in (
        "version 1, accuracy 0.8000 (0.8033 ± 0.0153 over seeds), 1,000 bytes",
        "- best of 1 on validation rows: t0",
        "loraxs-search pull movie-reviews:1",
    ):
        assert part in page


def test_tags_in_sight_are_words_and_numbers(promote, store_uri):
    promote("t0", 0.80, refits=REFITS, baselines=BASELINES)
    client = connect(store_uri)
    model, version = client.get_registered_model("movie-reviews"), client.get_model_version("movie-reviews", "1")
    assert in_sight(model.tags)["loraxs.champion"] == (
        "version 1, accuracy 0.8000 (0.8033 ± 0.0153 over seeds), 1,000 bytes"
    )
    for value in (*in_sight(model.tags).values(), *version.tags.values()):  # a table has all tags of a version
        assert "{" not in value
    record = f"mlflow.loraxs.adapter.{version.tags['loraxs.digest'][:32]}.candidate"
    assert json.loads(model.tags[record])["trial_id"] == "t0"


def test_without_a_champion_none_is_shown(promote, store_uri):
    promote("t0", 0.80)
    Promoter(store_uri, "movie-reviews").remove(1, forced=True)
    tags = connect(store_uri).get_registered_model("movie-reviews").tags
    assert in_sight(tags)["loraxs.champion"] == "none"
