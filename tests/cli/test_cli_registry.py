"""Versions and variants of a task on the command line: champions, what they are compared with, slices of test rows."""

from __future__ import annotations

import json
from collections.abc import Sequence
from dataclasses import replace
from pathlib import Path

import pytest
from support.studies import TASK, Tried, confirm, searched
from support.toys import TASK as TOY
from support.toys import adapter, candidate

import loraxs_search
from loraxs_search.manifest import verify
from loraxs_search.records.search import Baseline, PromotionRule
from loraxs_search.records.task import Task
from loraxs_search.registry.card import model_card
from loraxs_search.registry.changes import Promoter
from loraxs_search.registry.store import Registry

GERMAN, FRENCH = (replace(TASK, variant=variant) for variant in ("de", "fr"))
CONSTANT = PromotionRule(require="constant")


@pytest.fixture
def promoted(store_uri, say):
    """Promote a study whose finalist answers some of its test rows wrongly."""

    def make(
        study: str, task: Task, wrong: Sequence[int], *, rows: int = 80, rule: PromotionRule = CONSTANT,
        languages: Sequence[str] = (),
    ):  # fmt: skip
        folder = searched(study, [Tried({"rank": 4}, 0.8)], task=task, promotion=rule)
        labels = [0, 1] * (rows // 2)
        answers = [1 - label if row in wrong else label for row, label in enumerate(labels)]
        confirm(folder, "00000", [0.8], answers, labels, slices={"language": languages} if languages else None)
        adapter(folder.adapter_path("00000"), "00000", study.encode(), task=task, study=study)
        return json.loads(say("promote", study, "--json", "--tracking-uri", store_uri).ok)

    return make


def champions(uri: str) -> dict[str, str | None]:
    adapters = {one.task: Registry(uri).champion(one.task) for one in Registry(uri).summaries()}
    return {task: held.candidate.study if held else None for task, held in adapters.items()}


def test_each_variant_has_a_champion_baselines_a_history_and_a_name_of_its_own(promoted, store_uri, say):
    assert promoted("plain", TASK, [79])["promoted"]
    german = promoted("german", GERMAN, range(70, 80))
    assert (german["task"], german["promoted"]) == ("t.de", True), "it is not compared with the better plain one"
    assert any("there was no champion" in reason for reason in german["reasons"])
    assert german["comparisons"][0]["number"] == 1, "the plain study has not used its test rows"
    assert not promoted("french", FRENCH, range(42, 80))["promoted"], "no better than the constant answer"
    assert promoted("better", GERMAN, [79])["champion"] == "german/00000"
    assert champions(store_uri) == {"t": "plain", "t.de": "better"}, "a refused task has no version"
    assert "better/00000" in say("show", "t.de").out
    assert "german/00000" in say("history", "t.de").out
    said = say("rollback", "t.de")
    assert said.out.startswith("t.de: from version 2 back to version 1"), said.err
    assert champions(store_uri) == {"t": "plain", "t.de": "german"}
    for name, study in (("t", "plain"), ("t.de", "german"), ("t.de:2", "better"), ("t.de@champion", "german")):
        folder = Path(say("pull", name).out.strip())
        assert json.loads((folder / "manifest.json").read_text())["study"] == study
    assert 'load_adapter("t.de")' in model_card(verify(folder))
    assert say("rm", "t.de:2", "--force").code == 0
    assert [one.version for one in loraxs_search.show("t.de")] == [1]
    dotted = promoted("dotted", replace(TASK, name="t.de"), range(60, 80))
    assert dotted["champion"] == "german/00000", "a name may be written so"


def test_a_guard_refuses_a_finalist_that_gains_on_the_whole_and_loses_a_slice(promoted, say):
    languages = ["de"] * 40 + ["en"] * 150 + ["fr"] * 10
    assert promoted("first", TASK, range(100, 170), rows=200)["promoted"]
    rule, loses = replace(CONSTANT, guards={"slice_loss": 0.05}), [*range(4), *range(100, 110), 195]
    sliced = replace(TASK, slices=("language",))
    assert not promoted("worse", sliced, loses, rows=200, rule=rule, languages=languages)["promoted"]
    said, past = say("promote", "worse").ok, say("history", "t").ok
    for line in (
        "slices that lose: 2 of 3, language=de by 0.1000 (40 rows), language=fr by 0.1000 (10 rows)",
        "language=en: accuracy 0.9333, champion 0.5333, 150 rows",
    ):
        assert f"  {line}\n" in said
        assert f"    {line}\n" in past


def test_show_has_baselines_beside_scores_marks_other_test_rows_and_names_the_champion(say, store_uri, tmp_path):
    scores = {"constant": 0.52, "tfidf": 0.7412}
    baselines = [Baseline(name, test_metrics={"accuracy": score}) for name, score in scores.items()]
    for name, rows, beside in (
        ("00000", "old", (*baselines, Baseline("features", failed="it needs 80 s"))),
        ("00001", "new", candidate("00001", 0.9).baselines),
    ):
        made = replace(candidate(name, 0.9), test_fingerprint=rows, baselines=beside)
        rule = PromotionRule(confidence=0, require="constant")
        Promoter(store_uri, "toy").promote(rule, TOY, [made], {name: adapter(tmp_path / name, name)}, True)
        if name == "00000":
            heading, row = say("show", "toy").out.splitlines()
            assert heading.split()[:5] == ["version", "accuracy", "constant", "tfidf", "features"], "no refit, no seeds"
            assert row.split()[:5] == ["1", "0.9000", "0.5200", "0.7412", "-"]
            assert (heading.endswith("  aliases"), row.endswith("  champion")) == (True, True)
            (told,) = json.loads(say("show", "toy", "--json").out)
            assert [y["name"] for y in told["candidate"]["baselines"]] == ["constant", "tfidf", "features"]
    Promoter(store_uri, "toy").rollback()
    said = say("show", "toy")
    assert "load it: loraxs-search pull toy\n" in said.err
    assert [line.split()[:3:2] for line in said.out.splitlines()[1:]] == [["2", "0.5000"], ["1", "*"]]
