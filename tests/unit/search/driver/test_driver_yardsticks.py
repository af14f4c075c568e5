"""A study's yardsticks are measured once."""

from __future__ import annotations

from pathlib import Path

from support.studies import study

from loraxs_search.records import Yardstick
from loraxs_search.search.driver.yardsticks import StudyYardsticks


def test_yardsticks_that_are_in_the_folder_are_not_measured_again(fresh_home: Path) -> None:
    folder, measured = (
        study("s"),
        (Yardstick("constant", {"accuracy": 0.5}, answer=0), Yardstick("tfidf", failed="why")),
    )
    folder.write_yardsticks(measured)
    nobody_to_ask: object = None
    assert StudyYardsticks(folder, nobody_to_ask, folder.info.task).result() == measured  # type: ignore[arg-type]
