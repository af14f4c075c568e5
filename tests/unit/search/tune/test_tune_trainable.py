"""A trial that fails of itself ends with its reason: the search hears of it as of any result, and goes on."""

from __future__ import annotations

from typing import Any

import pytest
from ray.exceptions import OutOfMemoryError, RayActorError, RayTaskError

from loraxs_search.errors import TrialDivergedError
from loraxs_search.records import AdapterSize, TrialReport
from loraxs_search.search.tune import trainable
from loraxs_search.search.tune.trainable import FAILED, RESOURCES, STEP, TrialTrainable


class Doomed(TrialTrainable):
    """A trainable after its setup, whose host answers as the test wants."""

    def _begin(self, config: dict[str, Any]) -> None:
        self._answer = config["answer"]
        self._reports, self._max_steps, self._every, self._metric = (), 8, 4, "accuracy"

    def _advance(self, until: int) -> tuple[TrialReport, bytes]:
        if isinstance(self._answer, Exception):
            raise self._answer
        return self._answer, b""


@pytest.mark.parametrize(
    ("answer", "reason"),
    [
        (TrialDivergedError("its loss must be finite, but is nan"), "its loss must be finite, but is nan"),
        (TrialDivergedError("it must end", hint="lower the rate"), "it must end Hint: lower the rate."),
        (RayTaskError("advance", "...", MemoryError("no room for 3 GiB")), "MemoryError: no room for 3 GiB"),
        (
            TrialReport("00000", 4, {"f1": 0.5}, 0.5, 1.0, 10, AdapterSize(1, 1, 1)),
            "`accuracy` must be among a report's metrics, but got f1.",
        ),
    ],
)
def test_what_goes_wrong_in_a_trial_ends_it_with_the_reason(answer: object, reason: str) -> None:
    result = Doomed(config={"answer": answer, RESOURCES: {"CPU": 1.0}}).step()
    assert result == {STEP: 0, FAILED: reason, "done": True}


class Guest(TrialTrainable):
    """A trainable after its setup, that may lose its host twice."""

    def _begin(self, config: dict[str, Any]) -> None:
        self._host, self._retries = config["host"], 2
        self._spec = self._snapshot = self._task = None  # type: ignore[assignment]


class Host:
    """Is lost to each of these errors, one after the other, before it answers."""

    def __init__(self, *losses: Exception) -> None:
        self._losses = losses

    def advance(self, *_: object) -> object:
        return self._losses[0] if self._losses else "answer"

    def replacement(self) -> Host:
        return Host(*self._losses[1:])


@pytest.fixture
def get(monkeypatch: pytest.MonkeyPatch) -> None:
    def get(answer: object) -> object:
        if isinstance(answer, Exception):
            raise answer
        return answer

    monkeypatch.setattr(trainable.ray, "get", get)


def test_a_host_that_died_or_was_ended_is_replaced_as_often_as_it_may_be(get: None) -> None:
    losses = [RayActorError(), OutOfMemoryError("it was ended, since the node is low on memory")] * 2
    assert Guest(config={"host": Host(*losses[:2]), RESOURCES: {}})._advance(4) == "answer"
    with pytest.raises(RayActorError):
        Guest(config={"host": Host(*losses[:3]), RESOURCES: {}})._advance(4)


def test_a_trial_asks_for_what_was_a_slot_when_it_was_proposed() -> None:
    factory = TrialTrainable.default_resource_request({RESOURCES: {"CPU": 0.0, "GPU": 0.25}})
    assert factory.required_resources == {"GPU": 0.25}
