"""A study's yardsticks are measured once."""

from __future__ import annotations

from pathlib import Path
from types import SimpleNamespace
from typing import Any

import pytest
from support.studies import study

from loraxs_search.records import Yardstick, is_unmeasured
from loraxs_search.search.driver.yardsticks import StudyYardsticks
from loraxs_search.search.hosts.client import HOST_LOST


def test_yardsticks_that_are_in_the_folder_are_not_measured_again(fresh_home: Path) -> None:
    folder, measured = (
        study("s"),
        (Yardstick("constant", {"accuracy": 0.5}, answer=0), Yardstick("tfidf", failed="too slow", applies=False)),
    )
    folder.write_yardsticks(measured)
    nobody_to_ask: object = None
    assert StudyYardsticks(folder, nobody_to_ask, folder.info.task).result() == measured  # type: ignore[arg-type]


@pytest.mark.parametrize("host_is_lost", [False, True])
def test_a_linear_model_that_failed_is_measured_again(
    fresh_home: Path, monkeypatch: pytest.MonkeyPatch, host_is_lost: bool
) -> None:
    folder = study("s")
    constant, alone = Yardstick("constant", {"accuracy": 0.5}, answer=0), Yardstick("zero-shot", {"accuracy": 0.5})
    tfidf = Yardstick("tfidf", {"accuracy": 0.7}, {"accuracy": 0.7}, applies=True)
    folder.write_yardsticks([constant, Yardstick("tfidf", failed="disk full", applies=True), alone])

    def get(written: Any) -> None:
        if host_is_lost:
            raise HOST_LOST[0]()
        folder.write_yardsticks(written)

    def nobody(ask: Any) -> None:
        raise HOST_LOST[0]()

    monkeypatch.setattr("loraxs_search.search.driver.yardsticks.ray.get", get)
    host = SimpleNamespace(yardsticks=lambda task: [constant, tfidf], result=nobody)
    keeper = SimpleNamespace(write_yardsticks=SimpleNamespace(remote=lambda measured: measured))
    actors: Any = SimpleNamespace(keeper=keeper, pool=SimpleNamespace(host=lambda: host))
    found = {one.name: one for one in StudyYardsticks(folder, actors, folder.info.task).result()}
    assert (found["constant"], found["zero-shot"]) == (constant, alone)
    assert is_unmeasured(found["tfidf"]) if host_is_lost else found["tfidf"] == tfidf
