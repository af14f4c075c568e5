"""The one client of a host asks what the contract has, and another host where one is lost."""

from __future__ import annotations

import inspect
from collections.abc import Callable
from typing import Any

import pytest
from ray.exceptions import ActorUnschedulableError, OutOfMemoryError, RayActorError
from support.studies import TASK
from support.toys import HYPERPARAMETERS

from loraxs_search.errors import SearchInterruptedError
from loraxs_search.packing._base import Host
from loraxs_search.records.base import Identity
from loraxs_search.records.trial import TrialSpec
from loraxs_search.search.hosts import client
from loraxs_search.search.hosts.client import HostClient

SPEC = TrialSpec("00000", {}, HYPERPARAMETERS)
IDENTITY = Identity("base", "data")


class Method:
    """A method of an actor that notes what it is asked, and in which threads."""

    def __init__(self, group: str = "") -> None:
        self.group = group

    def options(self, *, concurrency_group: str) -> Method:
        return Method(concurrency_group)

    def remote(self, *args: Any) -> Any:
        return (self.group, *args)


class Actor:
    """A host's actor, which may be lost."""

    call = Method()

    def __init__(self, lost: Exception | None = None) -> None:
        self.lost = lost


CALLS: dict[str, Callable[[HostClient], Any]] = {
    "advance": lambda host: host.advance(SPEC, 4, None, TASK),
    "confirm": lambda host: host.confirm(SPEC, b"", TASK),
    "answer": lambda host: host.answer(SPEC, b"", range(3), TASK),
    "answer_without_adapter": lambda host: host.answer_without_adapter(IDENTITY, "test", range(3), 4, TASK),
    "decompose": lambda host: host.decompose(TASK, ["q"], 4, "top"),
    "linear_probe": lambda host: host.linear_probe(TASK),
    "factor_file": lambda host: host.factor_file(TASK, "key"),
    "baselines": lambda host: host.baselines(TASK),
}


@pytest.mark.parametrize("name", CALLS)
def test_each_call_is_one_of_the_contract_and_fits_it(name: str) -> None:
    group, method, task, args, *identity = CALLS[name](HostClient(lambda lost: Actor(), Actor()))  # type: ignore[arg-type, return-value]
    assert (method, task) == (name, TASK)
    inspect.signature(getattr(Host, method)).bind(None, *args)
    assert identity == ([IDENTITY] if name == "answer_without_adapter" else []), "a trial brings its own"
    assert group == ("baselines" if name == "baselines" else "")


@pytest.fixture
def found(monkeypatch: pytest.MonkeyPatch) -> list[Any]:
    """The actors that were lost when another was looked for."""

    def get(actor: Any) -> str:
        if actor.lost:
            raise actor.lost
        return "answer"

    monkeypatch.setattr(client.ray, "get", get)
    monkeypatch.setattr(client.ray, "wait", lambda asked, **_: (asked, []))
    return []


def goes_on() -> None:
    """Nobody stops the search."""


ENDED_BY_RAY = OutOfMemoryError("it was ended, since the node is low on memory")
LOSSES = [RayActorError(), ENDED_BY_RAY, ActorUnschedulableError("its node is gone")]


@pytest.mark.parametrize("num_losses", [0, 3])
def test_a_lost_host_is_replaced_and_the_question_asked_again(found: list[Any], num_losses: int) -> None:
    def find(lost: Any) -> Any:
        found.append(lost)
        return Actor(dict(enumerate(LOSSES[:num_losses], 1)).get(len(found)))

    host = HostClient(find, find(None))
    assert host.result(lambda asked: asked.actor, goes_on) == "answer"  # type: ignore[arg-type, return-value]
    assert len(found) == 1 + num_losses
    assert found[0] is None
    assert all(actor.lost for actor in found[1:])


def test_hosts_that_keep_dying_end_it(found: list[Any]) -> None:
    with pytest.raises(OutOfMemoryError):
        HostClient(lambda lost: Actor(ENDED_BY_RAY), Actor(ENDED_BY_RAY)).result(lambda host: host.actor, goes_on)  # type: ignore[arg-type, return-value]


def test_a_host_that_never_answers_is_left_where_the_search_is_stopped(
    found: list[Any], monkeypatch: pytest.MonkeyPatch
) -> None:
    def stopped() -> None:
        if len(looks) == 3:
            raise SearchInterruptedError("stopped")

    def wait(asked: list[Any], **_: object) -> tuple[list[Any], list[Any]]:
        looks.append(asked)
        return [], asked

    looks = list[Any]()
    monkeypatch.setattr(client.ray, "wait", wait)
    with pytest.raises(SearchInterruptedError):
        HostClient(lambda lost: Actor(), Actor()).result(lambda host: host.actor, stopped)  # type: ignore[arg-type, return-value]
