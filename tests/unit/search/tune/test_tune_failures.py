"""When failures end a search: nearly all of the latest trials fail for one reason, and not five of any number."""

from __future__ import annotations

from loraxs_search.search.tune.failures import Outcomes

WHY = "`loss` must be finite, but got nan."


def outcomes(*reasons: str) -> Outcomes:
    """Trials that failed for these reasons, one after the other; no reason is a trial that reported."""
    outcomes = Outcomes()
    for number, reason in enumerate(reasons):
        if reason:
            outcomes.failed(f"{number:05d}", reason)
        else:
            outcomes.went_on(f"{number:05d}")
    return outcomes


def test_five_of_a_hundred_end_nothing() -> None:
    mostly_good = ["", "", "", "", "", "", "", "", "", WHY] * 10
    for length in range(101):
        assert outcomes(*mostly_good[:length]).common_failure(num_slots=2) is None


def test_half_of_them_end_nothing() -> None:
    assert outcomes(*["", WHY] * 20).common_failure(num_slots=2) is None


def test_the_first_five_that_all_fail_end_it() -> None:
    assert outcomes(*[WHY] * 4).common_failure(num_slots=1) is None
    assert outcomes(*[WHY] * 5).common_failure(num_slots=1) == (5, WHY)


def test_what_went_well_long_ago_does_not_count() -> None:
    assert outcomes(*[""] * 50, *[WHY] * 8).common_failure(num_slots=1) is None
    assert outcomes(*[""] * 50, *[WHY] * 9).common_failure(num_slots=1) == (9, WHY)


def test_unlike_reasons_are_no_common_cause() -> None:
    assert outcomes(*["one", "another"] * 10).common_failure(num_slots=1) is None


def test_as_many_must_fail_as_run_side_by_side() -> None:
    """Of twenty that start together, those that fail do so first."""
    assert outcomes(*[WHY] * 6).common_failure(num_slots=20) is None
    assert outcomes(*[WHY] * 20).common_failure(num_slots=20) == (20, WHY)


def test_a_trial_that_reports_and_then_fails_is_a_failure() -> None:
    outcomes = Outcomes()
    for number in range(5):
        outcomes.went_on(f"{number:05d}")
    for number in range(5):
        outcomes.went_on(f"{number:05d}")
        outcomes.failed(f"{number:05d}", WHY)
    assert outcomes.common_failure(num_slots=1) == (5, WHY)
