"""A stored study searches what it was launched with, whatever a later version's defaults are."""

from __future__ import annotations

from dataclasses import replace

import pytest
from support.studies import study

from loraxs_search.methods.lora_xs import LoraXS
from loraxs_search.records.codec import from_json, to_json
from loraxs_search.records.task import LinearModule
from loraxs_search.search_space import parameters
from loraxs_search.search_space.load import load_space, parse_space
from loraxs_search.search_space.space import Space
from loraxs_search.studies.folder import StudyFolder

TEXT = "task: sst2\nbase_model: a/b\nparameters:\n  rank: {choice: [2, 4]}\n  learning_rate: 0.001\n"
MODULES = [LinearModule("layer.0.attention.query", 8, 8)]


def test_defaults_are_those_of_the_launch(fresh_home, monkeypatch):
    space = parse_space(TEXT, source="s.yaml", folder=fresh_home)
    plan = {"task": space.task, "base_model": space.base_model, "search": space.search, "promotion": space.promotion}
    info = replace(study("first").info, name="s", space_folder=space.folder, **plan)
    folder = StudyFolder.create(info, space.text, space)
    assert list(folder.space().parameters) == ["rank", "learning_rate"], "in the order of the file: samplers draw in it"
    params = {"rank": 2, "learning_rate": 0.001}
    before = space.hyperparameters(params, MODULES, 0)
    assert folder.space() == space
    specs = dict(LoraXS.parameters)
    monkeypatch.setattr(LoraXS, "parameters", specs | {"sigma": replace(specs["sigma"], default="none")})
    common = parameters.COMMON
    monkeypatch.setitem(common, "batch_size", replace(common["batch_size"], default=1024))
    after = folder.space()
    assert after.hyperparameters(params, MODULES, 0) == before
    assert after.largest() == space.largest()


@pytest.mark.parametrize("name", ["movie_reviews_text", "rivals_movie_reviews"])
def test_a_space_reads_back_as_it_was(name):
    space = load_space(name)
    assert from_json(Space, to_json(space)) == space
