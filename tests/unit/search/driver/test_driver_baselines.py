"""A study's baselines are measured once."""

from __future__ import annotations

from pathlib import Path
from types import SimpleNamespace
from typing import Any

import pytest
from support.studies import study

from loraxs_search.records import Baseline, is_unmeasured
from loraxs_search.search.driver.baselines import StudyBaselines
from loraxs_search.search.hosts.client import HOST_LOST


def test_baselines_that_are_in_the_folder_are_not_measured_again(fresh_home: Path) -> None:
    folder, measured = (
        study("s"),
        (Baseline("constant", {"accuracy": 0.5}, answer=0), Baseline("tfidf", failed="too slow", applies=False)),
    )
    folder.write_baselines(measured)
    nobody_to_ask: object = None
    assert StudyBaselines(folder, nobody_to_ask, folder.info.task).result() == measured  # type: ignore[arg-type]


@pytest.mark.parametrize("host_is_lost", [False, True])
def test_a_linear_model_that_failed_is_measured_again(
    fresh_home: Path, monkeypatch: pytest.MonkeyPatch, host_is_lost: bool
) -> None:
    folder = study("s")
    constant, alone = Baseline("constant", {"accuracy": 0.5}, answer=0), Baseline("zero-shot", {"accuracy": 0.5})
    tfidf = Baseline("tfidf", {"accuracy": 0.7}, {"accuracy": 0.7}, applies=True)
    folder.write_baselines([constant, Baseline("tfidf", failed="disk full", applies=True), alone])

    def get(written: Any) -> None:
        if host_is_lost:
            raise HOST_LOST[0]()
        folder.write_baselines(written)

    def nobody(ask: Any) -> None:
        raise HOST_LOST[0]()

    monkeypatch.setattr("loraxs_search.search.driver.baselines.ray.get", get)
    host = SimpleNamespace(baselines=lambda task: [constant, tfidf], result=nobody)
    keeper = SimpleNamespace(write_baselines=SimpleNamespace(remote=lambda measured: measured))
    actors: Any = SimpleNamespace(keeper=keeper, pool=SimpleNamespace(host=lambda: host))
    found = {one.name: one for one in StudyBaselines(folder, actors, folder.info.task).result()}
    assert (found["constant"], found["zero-shot"]) == (constant, alone)
    assert is_unmeasured(found["tfidf"]) if host_is_lost else found["tfidf"] == tfidf
