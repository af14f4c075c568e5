"""Studies of several tasks on one pool of hosts."""

from __future__ import annotations

import pytest

from loraxs_search.errors import TaskDataError
from loraxs_search.search.driver.launch import launch_together
from loraxs_search.studies.folder import list_studies

pytestmark = [pytest.mark.slow, pytest.mark.filterwarnings("ignore::ResourceWarning", "ignore::DeprecationWarning")]


def test_a_study_that_fails_leaves_the_others_to_their_end(ray_here, in_search_home, tiny_space, agree):
    broken = tiny_space.with_name("broken.yaml")
    text = tiny_space.read_text().replace("tiny-reviews", "tiny-broken")
    broken.write_text(text.replace("label: label", "label: nowhere"))
    before, short = set(list_studies()), ("search.trials=2", "search.max_steps=4", "promotion.seeds=0")
    with pytest.raises(TaskDataError, match="nowhere"):
        launch_together([str(tiny_space), str(broken)], overrides=short)
    (finished,) = set(list_studies()) - before
    agree(finished, 2)
