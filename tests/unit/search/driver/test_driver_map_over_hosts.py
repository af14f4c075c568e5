"""Whose fault it is that an item of work does not go on."""

from __future__ import annotations

from dataclasses import replace
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import pytest
from ray.exceptions import RayTaskError
from support.studies import TASK, study
from support.toys import HYPERPARAMETERS

from loraxs_search.errors import ClusterError, HomeError, TrialDivergedError
from loraxs_search.records.base import Identity
from loraxs_search.records.trial import TrialSpec
from loraxs_search.search.driver import work_items
from loraxs_search.search.driver.work_items import WorkItem, base_answer_work, raised, reason_of, refit_work


def no_answer(_: Any) -> bool:
    raise AssertionError("there is no answer")


def spread_over_a_host_that_raises(monkeypatch: pytest.MonkeyPatch, error: Exception, item: Any) -> None:
    def get(_: Any) -> None:
        raise error

    monkeypatch.setattr(work_items.ray, "get", get)
    monkeypatch.setattr(work_items.ray, "wait", lambda pending, **_: (pending, []))
    pool: Any = SimpleNamespace(hosts=lambda: [object()])
    work_items.map_over_hosts(pool, [replace(item, ask=lambda _: "the reference")], lambda: None)


def test_a_node_that_is_not_fit_ends_the_search(monkeypatch: pytest.MonkeyPatch) -> None:
    """As one with other rows than the study began with: the refit is trained elsewhere once the node is gone."""
    with pytest.raises(ClusterError):
        spread_over_a_host_that_raises(
            monkeypatch, ClusterError("10.0.0.7 is not fit."), WorkItem(no_answer, no_answer, raised)
        )


def test_a_full_disk_of_a_node_ends_the_search_and_is_blamed_on_no_refit(
    monkeypatch: pytest.MonkeyPatch, fresh_home: Path
) -> None:
    """What failed once is not done again: nobody may be named for what is not theirs."""
    full = RayTaskError("advance", "", HomeError("On node 10.0.0.7: no space left.")).as_instanceof_cause()
    folder = study("s")
    refit = refit_work(TrialSpec("00000.1", {}, HYPERPARAMETERS), TASK, 2, folder)
    alone = base_answer_work(folder, Identity("base", "rows"), TASK, "validation", range(4), 0)
    for item in (refit, alone):
        with pytest.raises(HomeError):
            spread_over_a_host_that_raises(monkeypatch, full, item)
    assert folder.confirmations().refit("00000.1") is None
    assert folder.confirmations().base_failure(0) is None


def test_a_refit_that_diverges_has_failed_by_itself(monkeypatch: pytest.MonkeyPatch) -> None:
    reasons = list[str]()
    item: WorkItem[Any] = WorkItem(no_answer, no_answer, lambda error: reasons.append(reason_of(error)))
    spread_over_a_host_that_raises(monkeypatch, TrialDivergedError("`training loss` must be finite."), item)
    assert reasons == ["`training loss` must be finite."]
