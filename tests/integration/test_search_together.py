"""Studies of several tasks on one pool of hosts."""

from __future__ import annotations

import pytest

from loraxs_search.errors import TaskDataError
from loraxs_search.records.trial import TrialState
from loraxs_search.search.driver.launch import launch, launch_together
from loraxs_search.studies.folder import StudyFolder, list_studies

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


@pytest.mark.long(part="search")
def test_tasks_that_share_passes_find_what_each_finds_alone(in_search_home, tiny_space, ratings, agree):
    # The probe of a tiny base has weights in the thousands, and rounds as they do.
    plan = ("search.trials=4", "search.scheduler=none", "parameters.head_init=random")
    together = launch_together([str(tiny_space), str(ratings)], overrides=(*plan, "search.pack_size=4"))
    assert [len(result.candidates) for result in together] == [4, 4]
    metrics = (("accuracy", "f1"), ("pearson", "spearman"))
    for result, space, space_metrics in zip(together, (tiny_space, ratings), metrics, strict=True):
        agree(result.study, 4)
        baselines = StudyFolder.open(result.study).baselines() or ()
        assert [(one.name, one.failed) for one in baselines] == [("constant", ""), ("tfidf", ""), ("features", "")]
        assert all(one.test_metrics.keys() == set(space_metrics) for one in baselines)
        alone = launch(str(space), overrides=(*plan, "search.pack_size=1"))
        trials = {trial.trial_id: trial for trial in result.trials}
        for expected in alone.trials:
            found = trials[expected.trial_id]
            losses = [report.metrics["loss"] for report in found.reports]
            assert found.state is TrialState.COMPLETE
            assert losses == pytest.approx([report.metrics["loss"] for report in expected.reports], rel=1e-4)
        for candidate in result.candidates:
            expected_losses = [
                c.validation_metrics["loss"] for c in alone.candidates if c.trial_id == candidate.trial_id
            ]
            assert [candidate.validation_metrics["loss"]] == pytest.approx(expected_losses, abs=1e-3)


def test_a_study_that_fails_leaves_the_others_to_their_end(ray_here, in_search_home, tiny_space, ratings, agree):
    ratings.write_text(ratings.read_text().replace("label: rating", "label: nowhere").replace("ratings", "broken"))
    before = set(list_studies())
    with pytest.raises(TaskDataError, match="nowhere"):
        launch_together(
            [str(tiny_space), str(ratings)], overrides=("search.trials=2", "search.max_steps=4", "promotion.seeds=0")
        )
    (finished,) = set(list_studies()) - before
    agree(finished, 2)
