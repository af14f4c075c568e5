"""Variants of a task, each with a championship of its own: what one is compared with, called and rolled back by."""

from __future__ import annotations

import json
from dataclasses import replace
from pathlib import Path

import pytest
from support.searched_studies import Tried, confirm, searched
from support.studies import TASK
from support.toys import adapter

import loraxs_search
from loraxs_search.records.task import Task
from loraxs_search.registry.card import model_card
from loraxs_search.registry.manifest import verify
from loraxs_search.registry.store import Registry

LABELS = [0, 1] * 40
GERMAN, FRENCH = (replace(TASK, variant=variant) for variant in ("de", "fr"))


@pytest.fixture
def promoted(store_uri, say):
    """Promote a study of a task whose finalist answers so many of 80 test rows rightly."""

    def make(study: str, task: Task, right: int):
        folder = searched(study, [Tried({"rank": 4}, 0.8)], task=task)
        answers = [label if row < right else 1 - label for row, label in enumerate(LABELS)]
        confirm(folder, "00000", [0.8], answers, LABELS)
        adapter(folder.adapter_path("00000"), "00000", study.encode(), task=task, study=study)
        said = say("promote", study, "--json", "--tracking-uri", store_uri)
        assert said.code == 0, said.err
        return json.loads(said.out)

    return make


def champions(uri: str) -> dict[str, str | None]:
    adapters = {one.task: Registry(uri).champion(one.task) for one in Registry(uri).summaries()}
    return {task: held.candidate.study if held else None for task, held in adapters.items()}


def test_each_variant_has_a_champion_baselines_and_a_history_of_its_own(promoted, store_uri):
    assert promoted("plain", TASK, 79)["promoted"]
    german = promoted("german", GERMAN, 70)
    assert (german["task"], german["promoted"]) == ("t.de", True), "it is not compared with the better plain one"
    assert any("there was no champion" in reason for reason in german["reasons"])
    assert german["comparisons"][0]["number"] == 1, "the plain study has not used its test rows"
    assert not promoted("french", FRENCH, 42)["promoted"], "no better than the constant answer"
    assert promoted("better", GERMAN, 79)["champion"] == "german/00000"
    assert champions(store_uri) == {"t": "plain", "t.de": "better"}, "a refused task has no version"
    assert promoted("dotted", replace(TASK, name="t.de"), 60)["champion"] == "better/00000", "a name may be written so"


def test_names_of_variants_go_wherever_names_of_tasks_go(promoted, store_uri, say):
    for searched_study, right in (("german", 70), ("better", 79)):
        promoted(searched_study, GERMAN, right)
    promoted("plain", TASK, 75)
    assert "better/00000" in say("show", "t.de").out
    assert "german/00000" in say("history", "t.de").out
    said = say("rollback", "t.de")
    assert said.out.startswith("t.de: from version 2 back to version 1"), said.err
    assert champions(store_uri) == {"t": "plain", "t.de": "german"}
    for name, searched_study in (("t", "plain"), ("t.de", "german"), ("t.de:2", "better"), ("t.de@champion", "german")):
        folder = Path(say("pull", name).out.strip())
        assert json.loads((folder / "manifest.json").read_text())["study"] == searched_study
    assert 'load_adapter("t.de")' in model_card(verify(folder))
    assert say("rm", "t.de:2", "--force").code == 0
    assert [one.version for one in loraxs_search.show("t.de")] == [1]
