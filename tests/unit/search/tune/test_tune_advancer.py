"""A trial that fails of itself ends with its reason; one whose process died is asked for what is not reported yet."""

from __future__ import annotations

import asyncio
from types import SimpleNamespace
from typing import Any, cast

import numpy as np
import pytest
import safetensors.numpy
from ray.exceptions import (
    ActorDiedError,
    ActorUnschedulableError,
    OutOfMemoryError,
    RayActorError,
    RaySystemError,
    RayTaskError,
)
from support.studies import TASK
from support.toys import HYPERPARAMETERS

from loraxs_search.errors import ClusterError, HomeError, TrialCancelledError, TrialDivergedError
from loraxs_search.records.codec import from_json, to_json
from loraxs_search.records.trial import AdapterSize, TrialReport, TrialSpec
from loraxs_search.search.tune import advancer as module
from loraxs_search.search.tune import slots
from loraxs_search.search.tune.advancer import (
    CANCELLED,
    FAILED,
    FATAL,
    OBJECTIVE,
    REPORT,
    STEP,
    Place,
    TrialAdvancer,
    TrialSettings,
)
from loraxs_search.search.tune.slots import RESOURCES, Advancers, TrialTrainable

PLACE = Place("node", "10.0.0.7", "1")
SETTINGS = TrialSettings(TASK, "accuracy", 4, 3, "snapshots", "directory")
MAX_STEPS = HYPERPARAMETERS.max_steps
SPEC = to_json(TrialSpec("00000", {}, HYPERPARAMETERS, study="s"))


def report(step: int, metric: str = "accuracy") -> TrialReport:
    return TrialReport("00000", step, {metric: 0.5}, 0.5, 1.0, 10, AdapterSize(1, 1, 1))


def state(*steps: int) -> bytes:
    """Return a trial's state that has reported after these steps."""
    header = {"study": "s", "trial_id": "00000", "reports": [report(step) for step in steps]}
    return safetensors.numpy.save({"state": np.zeros(1)}, {"trial": to_json(header)})


class Advancer(TrialAdvancer):
    """One without a cluster: its only trial's state is at hand, and its host answers as the test wants."""

    def __init__(self, answer: object = None, kept: bytes | None = None) -> None:
        self._settings, self._kept, self._answer = SETTINGS, {}, answer
        self.kept, self.read, self.asked = kept, 0, list[tuple[int, bytes | None]]()
        methods = {name: SimpleNamespace(remote=getattr(self, name)) for name in ("read_snapshot", "write_snapshot")}
        self._snapshot_store: Any = SimpleNamespace(**methods)

    async def read_snapshot(self, trial_id: str) -> bytes | None:
        self.read += 1
        return self.kept

    async def write_snapshot(self, trial_id: str, snapshot: bytes) -> None:
        if isinstance(self._answer, HomeError):
            raise self._answer
        self.kept = snapshot

    async def _trained(
        self, spec: TrialSpec, until: int, snapshot: bytes | None, place: Place
    ) -> tuple[TrialReport, bytes]:
        self.asked.append((until, snapshot))
        if isinstance(self._answer, Exception) and not isinstance(self._answer, HomeError):
            raise self._answer
        steps = range(4, until + 1, 4)
        return self._answer if isinstance(self._answer, TrialReport) else report(until), state(*steps)

    def now(self, slot: str = "0", after: int = 0) -> dict[str, Any]:
        """Advance the trial for a slot."""
        return asyncio.run(self.advance(slot, SPEC, PLACE, after))


@pytest.mark.parametrize(
    ("answer", "reason"),
    [
        (TrialDivergedError("its loss must be finite, but is nan"), "its loss must be finite, but is nan"),
        (TrialDivergedError("it must end", hint="lower the rate"), "it must end Hint: lower the rate."),
        (RayTaskError("advance", "...", MemoryError("no room for 3 GiB")), "MemoryError: no room for 3 GiB"),
        (report(4, "f1"), "`accuracy` must be among a report's metrics, but got f1."),
    ],
)
def test_what_goes_wrong_in_a_trial_ends_it_with_the_reason(answer: object, reason: str) -> None:
    assert Advancer(answer).now() == {STEP: 0, FAILED: reason, "done": True}


def test_a_trial_that_is_given_up_ends_without_a_report() -> None:
    assert Advancer(TrialCancelledError("given up"), state(4)).now(after=4) == {STEP: 4, CANCELLED: True, "done": True}


def test_a_disk_that_is_full_is_not_the_trials_fault() -> None:
    assert Advancer(HomeError("No space.", hint="free some")).now() == {
        STEP: 0,
        FATAL: ["No space.", "free some"],
        "done": True,
    }


@pytest.mark.parametrize("call", ["read_snapshot", "write_snapshot"])
def test_a_snapshot_store_that_has_died_for_good_ends_the_search_and_no_trial(call: str) -> None:
    async def lost(*_: object) -> None:
        raise ActorDiedError

    advancer = Advancer()
    setattr(advancer._snapshot_store, call, SimpleNamespace(remote=lost))
    result = advancer.now()
    assert result["done"]
    assert "keep the processes of a search alive" in result[FATAL][0]
    assert "resume" in result[FATAL][1]


def test_so_does_a_directory_of_hosts() -> None:
    async def lost(*_: object) -> None:
        raise ActorDiedError

    advancer = TrialAdvancer(SETTINGS)
    advancer._directory = cast("Any", SimpleNamespace(host_for=SimpleNamespace(remote=lost)))
    with pytest.raises(ClusterError):
        asyncio.run(advancer._trained(from_json(TrialSpec, SPEC), 4, None, PLACE))


def test_a_report_says_where_it_was_trained() -> None:
    result = Advancer().now()
    assert (result[STEP], result[OBJECTIVE], result["done"]) == (4, 0.5, False)
    assert from_json(TrialReport, result[REPORT]).host == "10.0.0.7 GPU 1"


def test_a_slot_reads_the_state_of_its_trial_once() -> None:
    advancer = Advancer()
    steps = [advancer.now()[STEP], advancer.now(after=4)[STEP], advancer.now(after=8)[STEP]]
    assert (steps, advancer.read) == ([4, 8, 12], 1)
    assert advancer.asked[-1] == (12, state(4, 8))


def test_a_trial_that_comes_to_another_slot_continues_from_what_is_stored() -> None:
    advancer = Advancer()
    advancer.now()
    advancer.kept = state(4, 8, 12)  # it was elsewhere in between
    assert advancer.now(after=12)[STEP] == 16
    asyncio.run(advancer.forget("0"))
    assert advancer._kept == {}


@pytest.mark.parametrize("after", [0, 4])
def test_a_report_that_was_kept_but_not_returned_is_returned_and_not_trained_again(after: int) -> None:
    """A process that is killed between the two is asked again by the one in its place, of a first report too."""
    advancer = Advancer(kept=state(*range(4, after + 5, 4)))
    assert (advancer.now(after=after)[STEP], advancer.asked) == (after + 4, [])
    assert (advancer.now(after=after + 4)[STEP], len(advancer.asked)) == (after + 8, 1)


def test_reports_that_nobody_has_are_returned_one_after_the_other() -> None:
    advancer = Advancer(kept=state(4, 8))
    assert [advancer.now(after=step)[STEP] for step in (0, 4, 8)] == [4, 8, 12]
    assert [until for until, _ in advancer.asked] == [12]


def test_a_trial_that_had_ended_is_not_trained_further() -> None:
    advancer = Advancer(kept=state(4, MAX_STEPS))
    result = advancer.now(after=MAX_STEPS)
    assert (result[STEP], result["done"], advancer.asked) == (MAX_STEPS, True, [])


class Places:
    """A directory whose hosts are lost to these errors, one after the other, before one answers."""

    def __init__(self, *losses: Exception) -> None:
        self._losses, self.lost = list(losses), list[Any]()
        self.host_for = SimpleNamespace(remote=self._host_for)

    async def _host_for(self, node_id: str, gpu: str | None, lost: Any) -> Any:
        self.lost.append(lost)
        return SimpleNamespace(advance=SimpleNamespace(remote=self._call))

    async def _call(self, *_: object) -> str:
        if self._losses:
            raise self._losses.pop(0)
        return "answer"


@pytest.mark.parametrize(
    "loss",
    [
        RayActorError(),
        OutOfMemoryError("low"),
        ActorUnschedulableError("its node is gone"),
        RaySystemError("no buffer"),
    ],
    ids=type,
)
def test_a_trial_whose_host_is_lost_asks_the_next_one_a_few_times(loss: Exception) -> None:
    def trained(places: Places) -> object:
        advancer = TrialAdvancer(SETTINGS)
        advancer._directory = cast("Any", places)
        spec = from_json(TrialSpec, SPEC)
        return asyncio.run(advancer._trained(spec, 4, None, PLACE))

    places = Places(*[loss] * SETTINGS.max_failures)
    assert trained(places) == "answer"
    assert len(places.lost) == SETTINGS.max_failures + 1
    assert places.lost[0] is None
    assert None not in places.lost[1:]
    given_up = Places(*[loss] * (SETTINGS.max_failures + 1))
    with pytest.raises(type(loss)):
        trained(given_up)
    assert len(given_up.lost) == SETTINGS.max_failures + 2, "the directory hears of the last one, for the next trial"


def test_a_state_that_cannot_be_read_ends_the_trial_with_the_reason() -> None:
    result = Advancer(kept=b"no state").now(after=4)
    assert (result[STEP], result["done"]) == (4, True)
    assert "snapshot" in result[FAILED]


def test_few_states_are_kept_where_memory_would_be_short(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(module, "_MAX_KEPT_BYTES", 2 * len(state(4)))
    advancer = Advancer()
    for slot in ("0", "1", "2"):
        advancer.kept = None
        advancer.now(slot)
    assert list(advancer._kept) == ["1", "2"]
    advancer.kept = state(4)
    assert advancer.now("0", after=4)[STEP] == 8


class Recorded(Advancers):
    """Starts nothing; a call's reference is the number of processes that were started until then."""

    def __init__(self) -> None:
        super().__init__(SETTINGS, lambda _: 0)
        self.started = list[str]()

    def _start(self, node_id: str) -> Any:
        self.started.append(node_id)
        number = len(self.started)
        return SimpleNamespace(advance=SimpleNamespace(remote=lambda *_: number))


def test_a_process_that_died_for_good_is_replaced_and_those_of_lost_nodes_end(monkeypatch: pytest.MonkeyPatch) -> None:
    killed, died, living = list[Any](), list[Any](), ["a", "b"]
    monkeypatch.setattr(slots, "kill", killed.append)
    monkeypatch.setattr(slots, "_has_died", lambda call: call in died)
    monkeypatch.setattr(slots, "_is_done", lambda call: True)
    monkeypatch.setattr(slots, "living_nodes", lambda: [SimpleNamespace(node_id=name) for name in living])
    advancers = Recorded()

    def advance(node: str) -> Any:
        return advancers.advance(Place(node, node, None), "0", "00000", SPEC)

    assert [advance("a"), advance("a"), advance("b")] == [1, 1, 2]
    died.append(1)
    assert (advance("a"), advancers.started, len(killed)) == (3, ["a", "b", "a"], 1)
    living[:] = ["b", "c"]
    assert (advance("b"), len(killed)) == (2, 1)
    assert (advance("c"), len(killed)) == (4, 2)
    advancers.close()
    assert len(killed) == 4


def test_a_trial_asks_for_what_was_a_slot_when_it_was_proposed() -> None:
    factory = TrialTrainable.default_resource_request({RESOURCES: {"CPU": 0.0, "GPU": 0.25}})
    assert factory.required_resources == {"GPU": 0.25}
