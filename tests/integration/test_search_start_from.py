"""A search whose trials start from a registered adapter: resolved at launch, kept by the study, named on the card."""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path
from typing import TYPE_CHECKING

import pytest

from loraxs_search.assets import PROBE, START
from loraxs_search.errors import RegistryError, UsageError
from loraxs_search.registry.manifest import read
from loraxs_search.studies.folder import StudyFolder

if TYPE_CHECKING:
    from loraxs_search.search.driver.result import SearchResult

pytestmark = [
    *(
        pytest.mark.slow,
        pytest.mark.long(part="search"),
    ),  # tests/unit/search/driver/test_driver_start_from.py has the laws
    pytest.mark.filterwarnings("ignore::ResourceWarning", "ignore::DeprecationWarning"),
]
FIXED = ("parameters.rank=4", "parameters.target_modules=all-linear", "promotion.seeds=0", "search.trials=2")
FIXED += ("task.name=started-reviews",)


def test_trials_start_from_the_version_that_the_name_meant_at_launch(
    search: Callable[..., SearchResult], search_home: Path
) -> None:
    import loraxs_search

    search("start-first", *FIXED)
    loraxs_search.promote("start-first", force=True)
    result = search(
        "start-second", *FIXED, "start_from=started-reviews", "parameters.rank={choice: [4, 6]}", "search.trials=3"
    )
    folder = StudyFolder.open("start-second")
    start = folder.info.start_from
    assert start is not None
    assert (start.adapter.name, start.with_head) == ("started-reviews:1", True)
    assert set(folder.assets()) == {START, PROBE}
    for trial in result.trials:
        if folder.adapter_path(trial.trial_id).exists():
            manifest = read(folder.adapter_path(trial.trial_id))
            assert manifest.start_from == start.adapter
            assert manifest.hyperparameters.start_from == folder.assets()[START]
            card = (folder.adapter_path(trial.trial_id) / "README.md").read_text()
            assert "It started from `started-reviews:1`" in card


def test_a_start_that_no_trial_could_begin_at_is_refused_before_anything_is_written(
    search: Callable[..., SearchResult], search_home: Path
) -> None:
    before = len(list((search_home / "studies").iterdir()))
    for wrong, error, words in (
        (("parameters.rank={choice: [2, 4]}",), UsageError, "`rank` must be at least that of the adapter it starts"),
        (("parameters.sigma=sqrt",), UsageError, "`sigma` must be that of the adapter"),
        (("parameters.head={choice: [full, output]}",), UsageError, "`head` must be the adapter's own"),
        (("parameters.target_modules=attention",), UsageError, "must adapt all that the adapter"),
        (("start_from=nothing-like-it",), RegistryError, "nothing-like-it"),
    ):
        with pytest.raises(error, match=words):
            search("wrong", *FIXED, "start_from=started-reviews", *wrong)
    assert len(list((search_home / "studies").iterdir())) == before, "nothing is written"
