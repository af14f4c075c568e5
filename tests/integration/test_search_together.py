"""Studies of several tasks on one pool of hosts."""

from __future__ import annotations

import pytest

from loraxs_search.errors import TaskDataError
from loraxs_search.search.driver.launch import launch_together
from loraxs_search.studies.folder import list_studies

pytestmark = [pytest.mark.slow, pytest.mark.filterwarnings("ignore::ResourceWarning", "ignore::DeprecationWarning")]
REGRESSION = (
    ("name: tiny-reviews", "name: tiny-ratings"),
    ("kind: sequence-classification", "kind: regression"),
    ("label: label", "label: rating"),
    ("  labels: [negative, positive]\n", ""),
    ("[accuracy, f1]", "[pearson, spearman]"),
)


@pytest.fixture
def ratings(tiny_space):
    """The tiny space as a regression on the crowd's rating."""
    text = tiny_space.read_text()
    for old, new in REGRESSION:
        assert old in text
        text = text.replace(old, new)
    path = tiny_space.with_name("ratings.yaml")
    path.write_text(text)
    return path


def test_a_study_that_fails_leaves_the_others_to_their_end(ray_here, in_search_home, tiny_space, ratings, agree):
    ratings.write_text(ratings.read_text().replace("label: rating", "label: nowhere").replace("ratings", "broken"))
    before = set(list_studies())
    with pytest.raises(TaskDataError, match="nowhere"):
        launch_together(
            [str(tiny_space), str(ratings)], overrides=("search.trials=2", "search.max_steps=4", "promotion.seeds=0")
        )
    (finished,) = set(list_studies()) - before
    agree(finished, 2)
