"""Whole searches on hosts that stay, and on files that change."""

from __future__ import annotations

import gzip
import threading

import pytest
from support.spaces import REVIEWS

from loraxs_search.errors import SearchInterruptedError, StudyError, TaskDataError, TrackingError
from loraxs_search.log.events import ShownEvent, TrialReported
from loraxs_search.log.study_log import SearchView
from loraxs_search.search.driver.launch import launch, resume
from loraxs_search.studies.folder import StudyFolder

pytestmark = [pytest.mark.slow, pytest.mark.filterwarnings("ignore::ResourceWarning", "ignore::DeprecationWarning")]


def test_what_only_a_host_sees_is_told_as_it_would_be_here_and_no_study_is_made(search):
    message = r"^Task tiny-reviews has 2 faults:\nDid you mean sentence\? `columns.text` must be one of: "
    with pytest.raises(TaskDataError, match=message):
        search("wrong-rows", "task.columns.text=sentense")
    assert not StudyFolder.exists("wrong-rows")


def test_mlflow_that_cannot_be_reached_ends_a_search_before_it_has_a_study(ray_here, in_search_home, tiny_space):
    with pytest.raises(TrackingError, match="must be reachable"):
        launch(str(tiny_space), name="unrecorded", tracking_uri="http://127.0.0.1:9")
    assert not StudyFolder.exists("unrecorded")


# ---- identity --------------------------------------------------------------------------------------------------------


@pytest.mark.long(part="search")
def test_a_study_whose_rows_were_changed_is_not_gone_on_with_until_they_are_back(
    ray_here, in_search_home, tiny_space, tmp_path
):
    stop, rows = threading.Event(), tmp_path / "train.jsonl"
    rows.write_bytes(gzip.decompress((REVIEWS / "validation.jsonl.gz").read_bytes()))
    tiny_space.write_text(tiny_space.read_text().replace(str(REVIEWS / "validation.jsonl.gz"), str(rows)))

    class Stopping(SearchView):
        def happened(self, event: ShownEvent) -> None:
            if isinstance(event, TrialReported):
                stop.set()

    plan = ("search.scheduler=none", "search.trials=3", "search.max_steps=40", "promotion.seeds=0")
    with pytest.raises(SearchInterruptedError):
        launch(str(tiny_space), name="changed", view=Stopping(), stop=stop, overrides=plan)
    begun = StudyFolder.open("changed").identity.read()
    assert begun is not None
    before = rows.read_text()
    rows.write_text(before.replace('"label": 0', '"label": 1', 1))
    ray_here.clear()
    with pytest.raises(StudyError, match=f"data fingerprint [0-9a-f]{{16}}, not {begun.data_fingerprint[:16]}"):
        resume("changed")
    rows.write_text(before)
    ray_here.clear()
    assert len(resume("changed").trials) == 3
    assert StudyFolder.open("changed").identity.read() == begun
