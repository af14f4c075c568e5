"""A search whose trials start from a registered adapter: resolved at launch, kept by the study, named on the card."""

from __future__ import annotations

import pytest

from loraxs_search.assets import PROBE, START
from loraxs_search.registry.manifest import read
from loraxs_search.studies.folder import StudyFolder

pytestmark = [
    pytest.mark.long(part="search"),  # tests/unit/search/driver/test_driver_launch.py has the laws
    pytest.mark.filterwarnings("ignore::ResourceWarning", "ignore::DeprecationWarning"),
]
FIXED = ("parameters.rank=4", "parameters.target_modules=all-linear", "promotion.seeds=0", "search.trials=2")
FIXED += ("task.name=started-reviews",)


def test_trials_start_from_the_version_that_the_name_meant_at_launch(search, search_home):
    import loraxs_search

    search("start-first", *FIXED)
    loraxs_search.promote("start-first", force=True)
    result = search(
        "start-second", *FIXED, "start_from=started-reviews", "parameters.rank={choice: [4, 6]}", "search.trials=3"
    )
    folder = StudyFolder.open("start-second")
    start = folder.info.start_from
    assert start is not None
    assert (start.name, start.with_head) == ("started-reviews:1", True)
    assert set(folder.assets()) == {START, PROBE}
    for trial in result.trials:
        if folder.adapter_path(trial.trial_id).exists():
            manifest = read(folder.adapter_path(trial.trial_id))
            assert manifest.start_from == {"name": start.name, "digest": start.digest}
            assert manifest.hyperparameters.start_from == folder.assets()[START]
            card = (folder.adapter_path(trial.trial_id) / "README.md").read_text()
            assert "It started from `started-reviews:1`" in card
