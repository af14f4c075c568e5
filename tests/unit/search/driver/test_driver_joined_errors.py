"""What studies that were launched together say where several of them fail."""

from __future__ import annotations

from ray.exceptions import RayTaskError

from loraxs_search.errors import LoraxsError, SearchInterruptedError, TaskDataError
from loraxs_search.search.driver.launch import _joined


def test_errors_of_other_processes_are_their_messages_and_not_rays_tracebacks() -> None:
    far = RayTaskError("info", "Traceback (most recent call last): ...", TaskDataError("No label.", hint="add one"))
    joined = _joined([far, LoraxsError("The disk is full.", hint="free some space")])
    assert isinstance(joined, LoraxsError)
    assert (joined.message, joined.hint) == ("No label.\nThe disk is full.", "add one\nfree some space")


def test_the_only_error_stays_as_it_is() -> None:
    error = SearchInterruptedError("stopped", hint="go on")
    assert _joined([error]) is error
