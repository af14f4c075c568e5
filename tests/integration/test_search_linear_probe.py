"""A search without a linear probe; tests/integration/test_search.py has one whose heads start as it."""

from __future__ import annotations

from collections.abc import Callable
from typing import TYPE_CHECKING

import pytest

from loraxs_search.assets import PROBE
from loraxs_search.errors import HomeError
from loraxs_search.studies.folder import StudyFolder

if TYPE_CHECKING:
    from loraxs_search.search.driver.result import SearchResult

pytestmark = [pytest.mark.slow, pytest.mark.filterwarnings("ignore::ResourceWarning", "ignore::DeprecationWarning")]


@pytest.mark.long(part="search")
def test_heads_that_start_at_random_have_none(search: Callable[..., SearchResult]) -> None:
    search("unprobed", "search.trials=1", "promotion.seeds=0", "parameters.head_init=random")
    assert PROBE not in StudyFolder.open("unprobed").assets()


def test_a_disk_that_is_full_before_the_first_trial_ends_the_search(
    search: Callable[..., SearchResult], monkeypatch: pytest.MonkeyPatch
) -> None:
    def full(*_: object) -> str:
        raise HomeError("No space left to write it.", hint="free some space")

    with monkeypatch.context() as patch:
        patch.setattr(StudyFolder, "write_asset", full)
        with pytest.raises(HomeError, match="No space left"):
            search("unwritten", "search.trials=1", "promotion.seeds=0")
    assert StudyFolder.open("unwritten").journal().records == {}
