"""What ends a search before it has a study."""

from __future__ import annotations

import pytest

from loraxs_search.errors import TaskDataError, TrackingError
from loraxs_search.search.driver.launch import launch
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
