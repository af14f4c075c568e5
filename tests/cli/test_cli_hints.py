"""What an error advises is what helps."""

from __future__ import annotations

from dataclasses import replace

import pytest
from support.studies import TASK, study

from loraxs_search.records.search import Candidate

CANDIDATE = Candidate("done", "0", TASK.name, {"accuracy": 0.9}, {"accuracy": 0.9}, 100, "data", "base")


@pytest.fixture
def searched_study(store_uri):
    """A study that came to its end and was not promoted."""
    folder = study("done", store_uri)
    folder.write_candidates([CANDIDATE])
    return folder


def test_a_task_that_was_searched_only_is_to_be_promoted(say, searched_study):
    for line in (["predict", "t", "so so"], ["pull", "t"], ["show", "t"], ["history", "t"]):
        assert say(*line).is_error(1, "There is no task yet, but got 't'", "loraxs-search promote done")


def test_a_task_or_variant_that_is_being_searched_is_to_be_waited_for(say, store_uri):
    german = study("german", store_uri, task=replace(TASK, variant="de"))
    assert "german" not in say("pull", "t").err
    assert say("pull", "t.de").is_error(1, "loraxs-search resume german")
    with german.lock():
        assert say("pull", "t.de").is_error(1, "loraxs-search status german")


def test_a_file_of_ones_own_has_nothing_to_do_with_the_home(say, tmp_path):
    (tmp_path / "file").write_text("in the way")
    said = say("spaces", "copy", "movie_reviews", str(tmp_path / "file" / "mine.yaml"))
    assert said.is_error(1, "mine.yaml must be writable", "choose a place you can write to")
    assert "LORAXS_HOME" not in said.err
