"""Items of work over hosts that raise, without a cluster, and what answers of several hosts add up to."""

from __future__ import annotations

import math
from dataclasses import replace
from types import SimpleNamespace
from typing import Any

import pytest
from ray.exceptions import RayTaskError
from support.toys import TASK

from loraxs_search.errors import ClusterError, HomeError, LoraxsError, TrialDivergedError
from loraxs_search.records.adapter import Answers
from loraxs_search.search.driver import work_items
from loraxs_search.search.driver.work_items import WorkItem, joined, map_over_hosts, reason_of
from loraxs_search.studies.confirmations import Confirmations


def test_answers_of_several_hosts_add_up(tmp_path):
    confirmed = Confirmations(tmp_path)
    confirmed.write_answers("00001.2", range(2, 3), Answers((1,), (1,), 0.5))
    confirmed.write_answers("00001.2", range(2), Answers((0, 1), (0, 0), 1.0))
    confirmed.write_answers("00001", range(9), Answers((0,) * 9, (1,) * 9, 9.0))
    found = confirmed.answers("00001.2")
    assert list(found) == [range(2), range(2, 3)]
    metrics, rows = joined(list(found.values()), replace(TASK, metrics=("accuracy",)))
    assert metrics == {"accuracy": pytest.approx(2 / 3), "loss": 0.5}
    assert (rows.predictions.tolist(), rows.labels.tolist()) == ([0, 1, 1], [0, 0, 1])
    groups = [("a", "b"), ("a",)]
    parts = [replace(part, slices={"group": own}) for part, own in zip(found.values(), groups, strict=True)]
    task = replace(TASK, metrics=("accuracy",), metric="accuracy", slices=("group",))
    assert joined(parts, task)[1].slices["group"].tolist() == ["a", "b", "a"]
    metrics, _ = joined([*parts, Answers((), (), math.nan)], task)
    assert all(math.isnan(value) for value in metrics.values()), "some are not finite"


@pytest.mark.parametrize(
    ("error", "reason"),
    [
        (ClusterError("10.0.0.7 is not fit."), ""),  # as one with other rows than the study began with
        (RayTaskError("advance", "", HomeError("On node 10.0.0.7: no space left.")).as_instanceof_cause(), ""),
        (TrialDivergedError("not finite"), "not finite"),
        (RayTaskError("advance", "", MemoryError("3 GiB")), "MemoryError: 3 GiB"),
    ],
    ids=["node", "disk", "trial", "unforeseen"],
)
def test_a_fault_of_a_node_ends_the_search_and_another_one_is_the_items(error, reason, monkeypatch):
    """What failed once is not done again: nobody may be named for what is not theirs."""
    reasons = list[str]()

    def item() -> WorkItem:
        try:
            yield lambda _: "the reference"  # type: ignore[arg-type, return-value]
        except (LoraxsError, RayTaskError) as fault:
            reasons.append(reason_of(fault))

    def get(_: Any) -> None:
        raise error

    monkeypatch.setattr(work_items.ray, "get", get)
    monkeypatch.setattr(work_items.ray, "wait", lambda pending, **_: (pending, []))
    pool: Any = SimpleNamespace(hosts=lambda: [object()])
    if reason:
        map_over_hosts(pool, [item()], lambda: None)
        assert reasons == [reason]
    else:
        with pytest.raises(type(error)):
            map_over_hosts(pool, [item()], lambda: None)
        assert reasons == []
