"""Real searches, compared: what `compare` says of them is what their own records say."""

from __future__ import annotations

from collections.abc import Callable

import pytest

import loraxs_search
from loraxs_search.records.trial import TrialState
from loraxs_search.registry.finalist import seed_statistics
from loraxs_search.reports.comparison import Comparison
from loraxs_search.search.driver.result import SearchResult

pytestmark = [
    pytest.mark.long(part="search"),
    pytest.mark.filterwarnings("ignore::ResourceWarning", "ignore::DeprecationWarning"),
]


@pytest.fixture(scope="module")
def searched() -> dict[str, SearchResult]:
    """The searches that all tests of this module look at, by study."""
    return {}


@pytest.fixture
def results(searched: dict[str, SearchResult], simulated: Callable[..., SearchResult]) -> dict[str, SearchResult]:
    short = ("search.scheduler=none", "search.trials=3", "promotion.candidates=1")
    for basis in ("top", "bottom"):
        if basis not in searched:
            searched[basis] = simulated(basis, *short, f"parameters.basis={basis}", "promotion.seeds=2")
    return searched


@pytest.fixture
def comparison(results: dict[str, SearchResult]) -> Comparison:
    return loraxs_search.compare("top", "bottom", by="basis")


def test_each_group_is_what_its_study_found(comparison: Comparison, results: dict[str, SearchResult]) -> None:
    assert [group.label for group in comparison.groups] == ["top", "bottom"]
    assert comparison.budget == 3
    for group in comparison.groups:
        result = results[group.label]
        assert len(group.points) == sum(trial.state is TrialState.COMPLETE for trial in result.trials) == 3
        own = next(c for c in result.candidates if f"{c.study}/{c.trial_id}" == group.best.trial)
        assert group.over_seeds == seed_statistics(own)["accuracy"]
        assert (len(group.seed_scores), group.best.stored_bytes) == (3, own.stored_bytes)
        (finalist,) = (c for c in result.candidates if c.test_metrics)
        assert (group.tested, group.test_score) == (
            f"{group.label}/{finalist.trial_id}",
            finalist.test_metrics["accuracy"],
        )


def test_finalists_of_two_studies_are_compared_row_by_row(comparison: Comparison) -> None:
    first, second = comparison.groups
    assert second.difference is not None
    assert second.difference.by == "rows"
    assert second.difference.gain == pytest.approx((second.test_score or 0) - (first.test_score or 0))
    assert 0 < (second.difference.p_value or 0) <= 1


def test_importances_need_more_trials(comparison: Comparison) -> None:
    assert {one.why for one in comparison.importances} == {"they need 10 complete trials"}
    assert {one.num_trials for one in comparison.importances} == {3}
