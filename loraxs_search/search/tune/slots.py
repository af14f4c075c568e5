"""Where Ray Tune is used by more than its public names: slots without processes, and a controller that takes them.

Ray Tune makes an actor for each trial that runs: a process of 105 MB, which takes a second of CPU time to start. What
it gets here instead is a `Slot`, which reserves its share of a device. That passes what Tune asks on to the one process
of the slot's node.

Tune has a point for that, for developers: a controller takes another resource manager, and what that acquires decides
what an actor class becomes. `test_search_slots.py` searches with it.
"""

from __future__ import annotations

import functools
import itertools
import sys
import threading
import uuid
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any, cast

import ray
from ray import ObjectRef, tune
from ray.actor import ActorProxy
from ray.air.execution._internal.actor_manager import RayActorManager
from ray.air.execution.resources.placement_group import PlacementGroupAcquiredResources, PlacementGroupResourceManager
from ray.exceptions import RayActorError, RayError, RayTaskError
from ray.tune import Callback, CheckpointConfig
from ray.tune.execution.tune_controller import TuneController
from ray.tune.experiment import Experiment
from ray.tune.schedulers import TrialScheduler
from ray.tune.search import Searcher, SearchGenerator
from ray.util.placement_group import placement_group_table
from ray.util.scheduling_strategies import NodeAffinitySchedulingStrategy

from loraxs_search.records.codec import from_json
from loraxs_search.records.search import SearchPlan
from loraxs_search.records.trial import TrialRecord, TrialSpec
from loraxs_search.search.cluster.connection import MAX_RESTARTS, living_nodes
from loraxs_search.search.hosts.answers import kill
from loraxs_search.search.hosts.pool import StudyActors
from loraxs_search.search.tune.advancer import Place, TrialAdvancer, find_place
from loraxs_search.studies.record_files import StudyInfo

SPEC = "spec"
RESOURCES = "resources"
_MAX_RETRIES = 10  # of a call whose process dies: then it is a loss of the trial
_MAX_SLOTS = 10_000  # of a node


class _TrialTrainable(tune.Trainable):
    """Tells Tune what a trial takes; no process is made of it."""

    @classmethod
    def default_resource_request(cls, config: dict[str, Any]) -> tune.PlacementGroupFactory:
        """Request the resources of a slot at the time of the proposal: nodes come and go during a search."""
        return tune.PlacementGroupFactory([dict(config[RESOURCES])])


class Advancers:
    """The processes of a search that train its trials, by node; each is started when a slot needs it.

    One that dies is started anew, and asked again what it had not answered. One whose node is lost starts elsewhere: it
    tells Tune that the hosts of that node are lost, too. Ray may also start it elsewhere while its node is very busy;
    then states pass through the network twice.

    Args:
        records: What the search has of its trials, now.
    """

    def __init__(self, info: StudyInfo, actors: StudyActors, records: Mapping[str, TrialRecord]) -> None:
        self._info, self._actors, self._records = info, actors, records
        self._by_node: dict[str, ActorProxy[TrialAdvancer]] = {}
        self._last_calls: dict[str, ObjectRef[dict[str, Any]]] = {}  # by node
        self._calls: dict[str, ObjectRef[dict[str, Any]]] = {}  # by slot

    def advance(self, place: Place, slot: str, trial_id: str, spec: str) -> ObjectRef[dict[str, Any]]:
        """Have a trial trained to its next report, in a slot at a place."""
        if place.node_id in self._by_node and _has_died(self._last_calls[place.node_id]):  # for good: Ray asks again
            kill(self._by_node.pop(place.node_id))
        if place.node_id not in self._by_node:
            for node_id in self._by_node.keys() - {node.node_id for node in living_nodes()}:
                kill(self._by_node.pop(node_id))  # Ray has started it elsewhere, and no slot is on its node any more
            self._by_node[place.node_id] = self._start(place.node_id)
        call = self._by_node[place.node_id].advance.remote(slot, spec, place, self._records[trial_id].step)
        self._last_calls[place.node_id] = self._calls[slot] = call
        return call

    def forget(self, place: Place, slot: str) -> None:
        """Drop what the process of a place keeps for a slot."""
        self._calls.pop(slot, None)
        if (advancer := self._by_node.get(place.node_id)) is not None:
            advancer.forget.remote(slot)

    def close(self) -> None:
        """End all processes now, and what they were asked."""
        for call in self._calls.values():
            if not _is_done(call):
                ray.cancel(call)  # else Ray says on stdout that it will ask again
        for advancer in self._by_node.values():
            kill(advancer)

    def _start(self, node_id: str) -> ActorProxy[TrialAdvancer]:
        near = NodeAffinitySchedulingStrategy(node_id, soft=True)
        again = {"max_restarts": MAX_RESTARTS, "max_task_retries": _MAX_RETRIES, "max_concurrency": _MAX_SLOTS}
        actor = ray.remote(TrialAdvancer).options(num_cpus=0, scheduling_strategy=near, **again)
        names = self._actors.snapshot_store_name, self._actors.pool.directory_name
        return actor.remote(self._info.task, self._info.search, *names)


def _is_done(call: ObjectRef[Any]) -> bool:
    return bool(ray.wait([call], timeout=0)[0])


def _has_died(call: ObjectRef[dict[str, Any]]) -> bool:
    """Return whether a call has ended with the process that it was made to."""
    if not _is_done(call):
        return False
    try:
        ray.get(call)
    except RayTaskError:  # of the call itself, whatever its cause
        return False
    except RayError:
        return True
    return False


@dataclass(frozen=True)
class _Verb:
    """A method of an actor, as Tune calls it."""

    remote: Callable[..., Any]


class Slot:
    """What Tune takes for the actor of a trial, and after it of others.

    Args:
        place: Where Ray has reserved the slot's share.
        spec: Of its first trial.
    """

    _names = itertools.count()

    def __init__(self, place: ObjectRef[Place], advancers: Advancers, spec: str) -> None:
        self._name, self._place, self._advancers, self._spec = str(next(self._names)), place, advancers, spec
        self._is_used = False
        nothing = ray.put(dict[str, Any]())  # is known of a trial before its first report
        self.__ray_ready__ = _Verb(lambda: place)
        self.get_auto_filled_metrics = _Verb(lambda **_: nothing)
        self.train, self.reset, self.stop = _Verb(self._train), _Verb(self._reset), _Verb(self._stop)

    def _train(self) -> ObjectRef[dict[str, Any]]:
        place = ray.get(self._place)  # it is there: Tune trains a slot that is ready
        self._is_used = True
        return self._advancers.advance(place, self._name, from_json(TrialSpec, self._spec).trial_id, self._spec)

    def _reset(self, config: Mapping[str, Any], **_: Any) -> ObjectRef[bool]:
        self._spec = config[SPEC]
        return ray.put(True)

    def _stop(self) -> ObjectRef[Place]:
        if self._is_used:
            self._advancers.forget(ray.get(self._place), self._name)
        elif not _is_done(self._place):
            ray.cancel(self._place)  # after ten minutes Tune would kill an actor, which a slot is not
        return self._place  # what finds it has ended before Tune gives back the share: Ray would kill it, and try again


@dataclass
class _SlotResources(PlacementGroupAcquiredResources):
    """A reserved share of a device, of which Tune makes a slot where it would start an actor."""

    advancers: Advancers

    def annotate_remote_entities(self, entities: Sequence[Any]) -> list[Any]:
        return [_Verb(self._slot)]

    def _slot(self, config: Mapping[str, Any], **_: Any) -> Slot:
        """Make a slot where the share is. Which GPU it is of, a process that has the share is asked.

        So is where it will be, if its node has just been lost.
        """
        node_id = placement_group_table(self.placement_group)["bundles_to_node_id"][0]
        if self.resource_request.bundles[0].get("GPU") or not node_id:
            (find,) = super().annotate_remote_entities([cast("Any", ray.remote(find_place))])
            return Slot(cast("ObjectRef[Place]", find.remote()), self.advancers, config[SPEC])
        address = next((node.address for node in living_nodes() if node.node_id == node_id), node_id)
        return Slot(ray.put(Place(node_id, address, None)), self.advancers, config[SPEC])


class SlotManager(PlacementGroupResourceManager):
    """Reserves the shares of trials as Tune does, and counts those that trials hold."""

    advancers: Advancers  # set after it is made: Ray's `clear` calls `__init__` again
    num_held = 0

    def acquire_resources(self, resource_request: Any) -> _SlotResources | None:
        acquired = super().acquire_resources(resource_request)
        if acquired is None:
            return None
        self.num_held += 1
        return _SlotResources(resource_request, acquired.placement_group, self.advancers)

    def free_resources(self, acquired_resource: Any) -> None:
        self.num_held -= 1
        super().free_resources(acquired_resource)


# ---- the loop --------------------------------------------------------------------------------------------------------
_MIN_WAITING = 1000  # trials that Tune may have waiting, whatever the plan says
# Tune registers what it runs in a dictionary of the process, which it walks through: studies that are searched
# together set up one after the other.
_SETTING_UP = threading.Lock()


def make_controller(
    searcher: Searcher, scheduler: TrialScheduler, watch: Callback, slots: SlotManager, storage: Path, plan: SearchPlan
) -> TuneController:
    """Return what `Tuner.fit` makes, which takes no slots. It reports nothing, and handles no signals.

    Args:
        storage: Where Tune writes its snapshots.
    """
    outlive_lost_processes()
    search = SearchGenerator(searcher)
    with _SETTING_UP:
        experiment = Experiment(
            uuid.uuid4().hex,  # every run of the driver is a fresh experiment to Tune
            _TrialTrainable,
            num_samples=sys.maxsize,
            storage_path=str(storage),
            checkpoint_config=CheckpointConfig(checkpoint_at_end=False),  # the SnapshotStore keeps snapshots
            trial_dirname_creator=lambda trial: trial.trial_id,
            max_failures=plan.max_failures,
        )
        search.add_configurations([experiment])
    controller = TuneController(
        search_alg=search,
        scheduler=scheduler,
        callbacks=[watch],
        trial_checkpoint_config=experiment.checkpoint_config,
        storage=experiment.storage,
        reuse_actors=True,
        resource_manager_factory=lambda: slots,
    )
    # The searcher proposes no more than fits now; this bounds what Tune has waiting. People may add trials.
    controller.update_max_pending_trials(max(plan.trials, _MIN_WAITING))
    return controller


@functools.cache
def outlive_lost_processes() -> None:
    """Have Ray Tune replace a process whatever it was lost to, as it does one that died.

    Tune ends its loop with errors that it does not know, and the search with that: of a process that Ray's memory
    monitor has ended, or whose environment could not be made.
    """
    take_failure = RayActorManager._actor_task_failed

    def take_any_failure(manager: Any, tracked_actor_task: Any, exception: Exception) -> None:
        is_known = isinstance(exception, RayActorError | RayTaskError)
        take_failure(manager, tracked_actor_task, exception if is_known else RayActorError(error_msg=str(exception)))

    RayActorManager._actor_task_failed = take_any_failure  # type: ignore[assignment, method-assign]
