"""A trial that fails of itself ends with its reason; one whose process died is asked for what is not reported yet."""

from __future__ import annotations

import asyncio
from types import SimpleNamespace
from typing import Any

import numpy as np
import pytest
import safetensors.numpy
from ray.exceptions import ActorDiedError, RayActorError, RaySystemError, RayTaskError
from support.studies import TASK
from support.toys import HYPERPARAMETERS, measured

from loraxs_search.errors import HomeError, TrialCancelledError, TrialDivergedError
from loraxs_search.records.codec import from_json, to_json
from loraxs_search.records.search import SearchPlan
from loraxs_search.records.trial import TrialReport, TrialSpec
from loraxs_search.search.tune import advancer as module
from loraxs_search.search.tune import slots
from loraxs_search.search.tune.advancer import CANCELLED, FAILED, FATAL, OBJECTIVE, REPORT, STEP, Place, TrialAdvancer
from loraxs_search.search.tune.slots import Advancers

PLACE = Place("node", "10.0.0.7", "1")
PLAN = SearchPlan(report_every=4, max_failures=3)
MAX_STEPS = HYPERPARAMETERS.max_steps
SPEC = to_json(TrialSpec("00000", {}, HYPERPARAMETERS, study="s"))


def report(step: int, metric: str = "accuracy") -> TrialReport:
    return measured("00000", step, {metric: 0.5})


def state(*steps: int) -> bytes:
    """Return a trial's state that has reported after these steps."""
    header = {"study": "s", "trial_id": "00000", "reports": [report(step) for step in steps]}
    return safetensors.numpy.save({"state": np.zeros(1)}, {"trial": to_json(header)})


class Advancer(TrialAdvancer):
    """One without a cluster: its trial's state is at hand, and its hosts answer with what the test wants, then reports.

    Args:
        answers: Reports, or errors that are raised.
        kept: The state that the snapshot store has.
        full: What keeps the store from writing.
    """

    def __init__(
        self, *answers: TrialReport | Exception, kept: bytes | None = None, full: Exception | None = None
    ) -> None:
        super().__init__(TASK, PLAN, "snapshots", "directory")
        self.answers, self.kept, self.full = list(answers), kept, full
        self.num_reads, self.asked, self.lost = 0, list[tuple[int, bytes | None]](), list[object]()
        self._snapshot_store: Any = calls(read_snapshot=self._read, write_snapshot=self._write)
        self._directory: Any = calls(host_for=self._host_for)

    async def _read(self, trial_id: str) -> bytes | None:
        self.num_reads += 1
        return self.kept

    async def _write(self, trial_id: str, snapshot: bytes) -> None:
        if self.full is not None:
            raise self.full
        self.kept = snapshot

    async def _host_for(self, node_id: str, gpu: str | None, lost: object, task: None) -> Any:
        self.lost.append(lost)
        return calls(serve=self._serve)

    async def _serve(self, work: Any, task: object, spec: TrialSpec, identity: None) -> tuple[TrialReport, bytes]:
        until, snapshot = work(SimpleNamespace(advance=lambda spec, until, snapshot, task: (until, snapshot)))
        self.asked.append((until, snapshot))
        answer = self.answers.pop(0) if self.answers else report(until)
        if isinstance(answer, Exception):
            raise answer
        return answer, state(*range(4, until + 1, 4))

    def now(self, slot: str = "0", after: int = 0) -> dict[str, Any]:
        """Advance the trial for a slot."""
        return asyncio.run(self.advance(slot, SPEC, PLACE, after))


def calls(**verbs: Any) -> Any:
    """Return an actor with these methods."""
    return SimpleNamespace(**{name: SimpleNamespace(remote=call) for name, call in verbs.items()})


def test_what_goes_wrong_in_a_trial_ends_it_with_the_reason():
    for answer, reason in (
        (TrialDivergedError("it must end", hint="lower the rate"), "it must end Hint: lower the rate."),
        (RayTaskError("advance", "...", MemoryError("no room for 3 GiB")), "MemoryError: no room for 3 GiB"),
        (report(4, "f1"), "`accuracy` must be among a report's metrics, but got f1."),
    ):
        assert Advancer(answer).now() == {STEP: 0, FAILED: reason, "done": True}
    given_up = Advancer(TrialCancelledError("given up"), kept=state(4)).now(after=4)
    assert given_up == {STEP: 4, CANCELLED: True, "done": True}, "without a report"
    damaged = Advancer(kept=b"no state").now(after=4)
    assert (damaged[STEP], damaged["done"], "snapshot" in damaged[FAILED]) == (4, True, True)


def test_a_disk_that_is_full_is_not_the_trials_fault():
    fatal = {STEP: 0, FATAL: ["No space.", "free some"], "done": True}
    assert Advancer(full=HomeError("No space.", hint="free some")).now() == fatal
    assert Advancer(HomeError("No space.", hint="free some")).now() == fatal, "of the host's node"


def test_a_process_beside_the_driver_that_has_died_for_good_ends_the_search_and_no_trial():
    async def lost(*_: object) -> None:
        raise ActorDiedError

    verbs = {"read_snapshot": "_snapshot_store", "write_snapshot": "_snapshot_store", "host_for": "_directory"}
    for verb, actor in verbs.items():
        advancer = Advancer()
        setattr(getattr(advancer, actor), verb, SimpleNamespace(remote=lost))
        result = advancer.now()
        assert result["done"]
        assert "keep the processes of a search alive" in result[FATAL][0]
        assert "resume" in result[FATAL][1]


def test_a_slot_reads_the_state_of_its_trial_once_unless_it_was_elsewhere_in_between():
    advancer = Advancer()
    result = advancer.now()
    assert (result[STEP], result[OBJECTIVE], result["done"]) == (4, 0.5, False)
    assert from_json(TrialReport, result[REPORT]).host == "10.0.0.7 GPU 1"
    assert [advancer.now(after=step)[STEP] for step in (4, 8)] == [8, 12]
    assert (advancer.asked[-1], advancer.num_reads) == ((12, state(4, 8)), 1)
    advancer.kept = state(4, 8, 12, 16)
    assert advancer.now(after=16)[STEP] == 20
    asyncio.run(advancer.forget("0"))
    assert advancer.now(after=20)[STEP] == 24
    assert advancer.num_reads == 3


def test_reports_that_were_kept_but_not_returned_are_returned_and_not_trained_again():
    """A process that is killed between the two is asked again by the one in its place, of a first report too."""
    advancer = Advancer(kept=state(4, 8))
    assert [advancer.now(after=step)[STEP] for step in (0, 4, 8)] == [4, 8, 12]
    assert [until for until, _ in advancer.asked] == [12]
    advancer = Advancer(kept=state(4, MAX_STEPS))
    result = advancer.now(after=MAX_STEPS)
    assert (result[STEP], result["done"], advancer.asked) == (MAX_STEPS, True, [])


@pytest.mark.parametrize("loss", [RayActorError(), RaySystemError("no buffer")])
def test_a_trial_whose_host_is_lost_asks_the_next_one_a_few_times(loss):
    advancer = Advancer(*[loss] * PLAN.max_failures)
    assert advancer.now()[STEP] == 4
    assert len(advancer.lost) == PLAN.max_failures + 1
    assert advancer.lost[0] is None
    assert None not in advancer.lost[1:]
    given_up = Advancer(*[loss] * (PLAN.max_failures + 1))
    with pytest.raises(type(loss)):
        given_up.now()
    assert len(given_up.lost) == PLAN.max_failures + 2, "the directory hears of the last one, for the next trial"


def test_few_states_are_kept_where_memory_would_be_short(monkeypatch):
    monkeypatch.setattr(module, "_MAX_KEPT_BYTES", 2 * len(state(4)))
    advancer = Advancer()
    for slot in ("0", "1", "2", "0"):
        advancer.kept = None
        advancer.now(slot)
    reads = advancer.num_reads
    advancer.now("2", after=4)
    assert advancer.num_reads == reads
    advancer.kept = state(4)
    advancer.now("1", after=4)
    assert advancer.num_reads == reads + 1


def test_a_process_that_died_for_good_is_replaced_and_those_of_lost_nodes_end(monkeypatch):
    killed, died, living = list[Any](), list[Any](), ["a", "b"]
    monkeypatch.setattr(slots, "kill", killed.append)
    monkeypatch.setattr(slots, "_has_died", lambda call: call in died)
    monkeypatch.setattr(slots, "_is_done", lambda call: True)
    monkeypatch.setattr(slots, "living_nodes", lambda: [SimpleNamespace(node_id=name) for name in living])
    advancers = Advancers(None, None, {"00000": SimpleNamespace(step=4)})  # type: ignore[arg-type, dict-item]
    started, seen = list[str](), set[int]()

    def start(node_id: str) -> Any:
        """Start nothing; a call's reference is the number of processes that were started until then."""
        started.append(node_id)
        number = len(started)
        return calls(advance=lambda slot, spec, place, after: (seen.add(after), number)[1])

    monkeypatch.setattr(advancers, "_start", start)

    def advance(node: str) -> Any:
        return advancers.advance(Place(node, node, None), "0", "00000", SPEC)

    assert [advance("a"), advance("a"), advance("b")] == [1, 1, 2]
    died.append(1)
    assert (advance("a"), started, len(killed)) == (3, ["a", "b", "a"], 1)
    living[:] = ["b", "c"]
    assert (advance("b"), len(killed)) == (2, 1)
    assert (advance("c"), len(killed)) == (4, 2)
    advancers.close()
    assert len(killed) == 4
    assert seen == {4}, "the step of the last report that the search has"
