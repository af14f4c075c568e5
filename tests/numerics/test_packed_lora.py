"""LoRA in a pack, with its own A and B for each slot, beside LoRA-XS and alone: n trials are n lone trials."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import pytest
import torch
from support.families import families
from support.trials import train

from loraxs_search.errors import UsageError
from loraxs_search.methods import get_method
from loraxs_search.records import TrialSpec
from loraxs_search.trial import Snapshot

TOLERANCE = 1e-5  # relative, on every A, B, R and their moments; see `World.distance`
NUM_STEPS = 10


def lora(world: Any, trial_id: str, own: dict[str, Any], **common: Any) -> TrialSpec:
    method = get_method("lora")
    return world.spec(trial_id, method="lora", **{"rank": 0, **method.fields({"rank": 4, **own}, {}), **common})


def mixed(world: Any) -> list[TrialSpec]:
    """Trials of both methods that differ in all that may differ within a pack."""
    first, second = world.names[: len(world.names) // 2], world.names[len(world.names) // 2 :]
    one, two = world.mixed_specs()[:2]
    return [
        lora(world, "11", {}),
        one,
        lora(world, "12", {"rank": 7, "scale": 2.0}, target_modules=tuple(first), learning_rate=5e-3, weight_decay=0.1),
        lora(world, "13", {"rank": 1, "rslora": True}, target_modules=tuple(second), batch_size=5, max_grad_norm=0.0),
        two,
        lora(world, "14", {"rank": 16, "rslora": True, "scale": 0.25}, batch_size=16),
        lora(world, "15", {"rank": 2}, target_modules=tuple(world.names[1::3]), warmup_ratio=0.3),
    ]


def test_a_pack_of_both_methods_equals_lone_trials(world: Any) -> None:
    specs, pack = mixed(world), world.pack(num_workers=3)
    slots = world.join(pack, specs)
    train(pack, slots, NUM_STEPS)
    world.check_reports_are_as_alone(pack, slots, NUM_STEPS, TOLERANCE)


@pytest.mark.parametrize("family", families(["roberta", "gpt2"]))
def test_two_part_heads_and_transposed_layers(make_world: Callable[..., Any], family: str) -> None:
    world = make_world(family)
    pack = world.pack(num_workers=2)
    slots = world.join(pack, mixed(world)[:4])
    train(pack, slots, 10)
    world.check_each_is_as_alone(pack, slots, 10, TOLERANCE)


@pytest.mark.long(part="bases")
def test_pack_equals_lone_trials_on_the_quickstart_base(quickstart: Any) -> None:
    specs, pack = mixed(quickstart)[:4], quickstart.pack(max_tokens=512)
    slots = quickstart.join(pack, specs)
    train(pack, slots, 3)
    quickstart.check_each_is_as_alone(pack, slots, 3, 1e-4)


def test_trials_join_and_leave_between_rounds(world: Any) -> None:
    specs, pack = mixed(world), world.pack()
    slots = world.join(pack, specs)
    train(pack, slots[:3], 4)
    train(pack, slots[2:], 5)
    train(pack, [slots[0]], 6)
    packed = [slot.snapshot() for slot in slots]
    pack.clear()
    assert [snapshot.step for snapshot in packed] == [10, 4, 9, 5, 5, 5, 5]
    for spec, snapshot in zip(specs, packed, strict=True):
        assert world.distance(snapshot, world.lone(spec, snapshot.step)) < TOLERANCE, spec


@pytest.mark.parametrize("packed_first", [True, False])
def test_a_snapshot_fits_pack_and_lone_trial_alike(world: Any, packed_first: bool) -> None:
    spec = mixed(world)[2]
    whole = world.lone(spec, 10)

    def packed(until: int, snapshot: Snapshot | None) -> Snapshot:
        pack = world.pack()
        (slot,) = world.join(pack, [spec], [snapshot] if snapshot else [])
        train(pack, [slot], until - slot.step)
        pack.clear()
        return slot.snapshot()

    first, second = (packed, lambda n, s: world.lone(spec, n, s)) if packed_first else (_lone(world, spec), packed)
    half = Snapshot.from_bytes(first(4, None).to_bytes())
    resumed = second(10, half)
    assert resumed.step == 10
    assert world.distance(resumed, whole) < TOLERANCE


def _lone(world: Any, spec: TrialSpec) -> Callable[[int, Snapshot | None], Snapshot]:
    return lambda until, snapshot: world.lone(spec, until, snapshot)


def test_a_resumed_pack_is_an_uninterrupted_one_bit_for_bit(world: Any) -> None:
    specs = mixed(world)

    def run(*lengths: int) -> list[Snapshot]:
        states: list[Snapshot] = []
        for length in lengths:
            pack = world.pack(num_workers=2)
            slots = world.join(pack, specs, [Snapshot.from_bytes(state.to_bytes()) for state in states])
            train(pack, slots, length)
            states = [slot.snapshot() for slot in slots]
            pack.clear()
        return states

    for once, again in zip(run(5), run(2, 3), strict=True):
        for a, b in ((once.parameters, again.parameters), (once.moments, again.moments)):
            assert a.keys() == b.keys() and all(torch.equal(a[name], b[name]) for name in b)


def test_one_that_diverges_leaves_the_others_as_they_are_alone(world: Any) -> None:
    specs = [lora(world, "11", {}), lora(world, "12", {"rank": 2}, learning_rate=1e30), world.spec("1")]
    pack = world.pack()
    slots = world.join(pack, specs)
    for _ in range(5):
        errors = pack.step(slots)
        assert set(errors) <= {"12"}
        slots = [slot for slot in slots if slot.name not in errors]
    assert [slot.name for slot in slots] == ["11", "1"]
    world.check_each_is_as_alone(pack, slots, 5, TOLERANCE)


def test_what_changes_the_base_is_refused_in_a_pack(world: Any) -> None:
    with pytest.raises(UsageError, match="11 of lora"):
        world.join(world.pack(), [lora(world, "11", {"dora": True})])


def test_slots_are_not_larger_than_the_method_says(world: Any) -> None:
    """Nor much smaller: a pack is as large as memory allows by these numbers."""
    for spec in mixed(world):
        pack = world.pack(num_workers=3)
        (slot,) = world.join(pack, [spec])
        train(pack, [slot], 1)
        method, modules = get_method(spec.hyperparameters.method), set(spec.hyperparameters.target_modules)
        adapted = [module for module in world.modules if module.name in modules]
        said = method.slot_bytes(method.params(spec.hyperparameters), adapted, 3)
        own = [*slot.adapter.tensors, *(m for pair in slot._moments[: len(slot.adapter.tensors)] for m in pair)]
        held = sum(tensor.nbytes for tensor in own) + pack.slot_bytes
        pack.clear()
        assert held <= said < 2 * held
