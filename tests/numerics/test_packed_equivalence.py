"""A pack of n trials is n lone trials: the same numbers, whoever shares the pass, whoever fails, whoever moves.

Single-precision noise of the lone trial itself (its rows in another order) is 3e-6 after 50 steps on this base. A
learning rate has its whole schedule within `MAX_STEPS`.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest
import torch
from support.decoders import DECODERS, DecoderWorld
from support.trials import TrialBase, same_bits, train

from loraxs_search.errors import BaseModelError, TrialDivergedError, UsageError
from loraxs_search.methods import get_method
from loraxs_search.records.trial import TrialSpec
from loraxs_search.tasks.prepared import PreparedTask, prepare
from loraxs_search.trial.snapshot import Snapshot

from .conftest import World

LONG = pytest.mark.long(part="bases")
TOLERANCE = 1e-5  # relative, on every R and its moments; see `World.distance`
MAX_STEPS = 14


Trials = list[tuple[TrialSpec, PreparedTask]]


def unlike(folder: Path, family: str) -> tuple[TrialBase, Trials]:
    """LoRA-XS and LoRA in all that may differ within a pack, to the ends of their schedules."""
    world = World(folder, family)
    specs = [replace(s, hyperparameters=replace(s.hyperparameters, max_steps=MAX_STEPS)) for s in world.mixed_specs()]
    return world, [(spec, world.data) for spec in specs]


def heads(folder: Path, family: str) -> tuple[TrialBase, Trials]:
    """Some train the output layer of their head alone."""
    world = World(folder, family)
    specs = [world.spec("1", head="output"), world.spec("2", head="full"), world.spec("3", head="output", rank=2)]
    return world, [(spec, world.data) for spec in specs]


def pooled(folder: Path, family: str) -> tuple[TrialBase, Trials]:
    """Heads read the mean of a row's tokens."""
    world = World(folder, family, pooling="mean")
    specs = [world.spec("1"), world.spec("2", rank=8, head="full", batch_size=5), world.spec("3", sigma="none")]
    return world, [(spec, world.data) for spec in specs]


def texts(folder: Path, family: str) -> tuple[TrialBase, Trials]:
    """Language models learn two tasks."""
    world = DecoderWorld(folder, family)
    return world, world.mixed_trials()


def rows_of(trials: Any, usual: Sequence[str], others: Sequence[str] = ()) -> list[Any]:
    """Composite and two-part heads, transposed layers, windows: each family that computes in another way."""
    return [
        *(pytest.param(trials, family, id=f"{trials.__name__}-{family}") for family in usual),
        *(pytest.param(trials, family, id=f"{trials.__name__}-{family}", marks=LONG) for family in others),
    ]


@pytest.mark.parametrize(
    ("trials", "family"),
    [
        *rows_of(unlike, ["bert"], ["roberta", "distilbert", "gpt2"]),
        *rows_of(heads, ["roberta"]),
        *rows_of(pooled, ["bert"], ["modernbert"]),
        *rows_of(texts, ["llama"], [family for family in DECODERS if family != "llama"]),
    ],
)
def test_n_packed_are_n_alone(trials, family, tmp_path):
    world, own = trials(tmp_path, family)
    world.check_law(own, MAX_STEPS, num_workers=3)


def test_an_output_layer_that_peft_would_confuse_is_refused_before_the_first_step(make_world):
    world = make_world("distilbert")
    spec = world.spec("1", head="output")
    with pytest.raises(BaseModelError, match="classifier ends pre_classifier"):
        world.lone(spec, 1)
    with pytest.raises(BaseModelError, match="classifier ends pre_classifier"):
        world.join(world.pack(), [spec])


def test_trials_may_join_and_leave_between_rounds(world):
    specs, pack = world.mixed_specs(), world.pack()
    slots = world.join(pack, specs)
    train(pack, slots[:3], 3)
    train(pack, slots[1:8], 4)
    train(pack, [slots[8], slots[0], slots[4]], 5)
    assert [slot.step for slot in slots] == [8, 7, 7, 4, 9, 4, 4, 4, 5]
    world.check_as_alone(pack, slots)


def test_trials_move_between_pack_and_lone_host(world):
    specs, pack = world.mixed_specs()[::7], world.pack()  # of LoRA-XS and LoRA
    straight = [world.lone(spec, 12) for spec in specs]
    slots = world.join(pack, specs)
    train(pack, slots, 6)
    packed = [Snapshot.from_bytes(slot.snapshot().to_bytes()) for slot in slots]
    pack.base.clear()
    lone = [Snapshot.from_bytes(world.lone(spec, 6).to_bytes()) for spec in specs]
    for spec, state, expected in zip(specs, packed, straight, strict=True):
        assert world.distance(world.lone(spec, 12, state), expected) < TOLERANCE
    slots = world.join(pack, specs, lone)
    train(pack, slots, 6)
    assert all(world.distance(s.snapshot(), expected) < TOLERANCE for s, expected in zip(slots, straight, strict=True))


@pytest.mark.parametrize(("poison", "num_workers"), [(float("nan"), 1), (1e30, 3)])
def test_a_diverging_trial_changes_no_bit_of_its_neighbours(world, poison, num_workers):
    specs = world.mixed_specs()[:2] + world.mixed_specs()[7:]
    runs = []
    for poisoned in (True, False):
        pack = world.pack(num_workers=num_workers)
        slots = world.join(pack, specs)
        train(pack, slots, 2)
        if poisoned:
            with torch.no_grad():
                slots[1].adapter.r.mul_(poison)
        before = slots[1].snapshot()
        errors = pack.step(slots)
        assert list(errors) == (["2"] if poisoned else [])
        if poisoned:
            assert isinstance(errors["2"], TrialDivergedError)
            assert "must be finite" in str(errors["2"])
            after = slots[1].snapshot()
            assert after.step == 2
            assert all(torch.equal(after.moments[n], before.moments[n]) for n in before.moments)
            scores = pack.evaluate(slots, "validation")
            assert isinstance(scores.pop("2"), TrialDivergedError) and len(scores) == len(slots) - 1
        rest = [slots[0], *slots[2:]]
        train(pack, rest, 3)
        runs.append(([slot.snapshot() for slot in rest], pack.evaluate(rest, "validation")))
        pack.base.clear()
    assert all(same_bits(a, b) for a, b in zip(runs[0][0], runs[1][0], strict=True))
    assert runs[0][1] == runs[1][1]


def test_a_gradient_without_a_finite_norm_ends_a_trial(world):
    spec, pack = world.spec("1", init_std=0.0, scale=1e30), world.pack()  # R is zero: the loss is the base's own
    (error,) = pack.step(world.join(pack, [spec])).values()
    assert "`gradient norm` must be finite, but got inf at step 1" in str(error)


def test_the_base_is_the_same_bits_and_modules_after_a_pack(world):
    before = {name: value.clone() for name, value in world.model.state_dict().items()}
    modules = dict(world.model.named_modules())
    pack = world.pack()
    train(pack, world.join(pack, world.mixed_specs()), 3)
    assert dict(world.model.named_modules()) != modules
    pack.base.clear()
    assert dict(world.model.named_modules()) == modules
    after = world.model.state_dict()
    assert list(after) == list(before)
    assert all(torch.equal(after[name], value) for name, value in before.items())
    assert not any(p.requires_grad or p.grad is not None for p in world.model.parameters())


def refuse_passes(world: Any, above: int) -> Any:
    """Have memory run out in passes of more than `above` padded tokens; return what ends it."""

    def refuse(_: torch.nn.Module, args: tuple[Any, ...], kwargs: dict[str, Any]) -> None:
        if kwargs["input_ids"].numel() > above:
            raise torch.OutOfMemoryError("CUDA out of memory.")

    return world.model.register_forward_pre_hook(refuse, with_kwargs=True)


def test_memory_that_runs_out_halves_the_budget_and_that_for_the_longest_row_alone_is_enough(world):
    longest = int(max(world.data.lengths("train").max(), world.data.lengths("validation").max()))
    spec, pack = world.spec("1"), world.pack(max_tokens=2 * longest - 2)  # half of it is too little for that row
    handle = refuse_passes(world, above=longest)
    slots = world.join(pack, [spec])
    train(pack, slots, 5)
    pack.evaluate(slots, "validation")
    handle.remove()
    assert pack.engine.max_tokens <= longest
    world.check_as_alone(pack, slots)


def test_a_row_that_memory_does_not_hold_fails_its_own_trial_alone(world):
    pack, lengths = world.pack(), world.data.lengths("train")
    slots = world.join(pack, [world.spec(str(number), batch_size=2) for number in range(1, 5)])
    longest = {slot.name: int(lengths[slot.batches.at(slot.step)].max()) for slot in slots}
    limit = sorted(set(longest.values()))[-2]
    handle = refuse_passes(world, above=limit)
    errors = pack.step(slots)
    handle.remove()
    pack.base.clear()
    assert set(errors) == {name for name, length in longest.items() if length > limit}
    for slot in slots:
        if slot.name not in errors:
            assert world.distance(slot.snapshot(), world.lone(slot.spec, 1)) < TOLERANCE


def test_trials_whose_rows_fit_into_memory_are_scored_where_those_of_another_do_not(world):
    pack, limit = world.pack(), 8
    cut = prepare(replace(world.data.task, max_length=limit), world.data.tokenizer)
    slots = [pack.join(world.spec("1"), world.data), pack.join(world.spec("2"), cut)]
    handle = refuse_passes(world, above=limit)
    scores = pack.evaluate(slots, "validation")
    handle.remove()
    pack.base.clear()
    assert isinstance(scores["1"], UsageError)
    assert "accuracy" in scores["2"]


def test_a_bfloat16_base_trains_as_the_lone_trial_within_its_rounding(make_world):
    world = make_world(dtype=torch.bfloat16)
    specs, pack = world.mixed_specs()[::3], world.pack()  # of LoRA-XS and LoRA
    slots = world.join(pack, specs)
    train(pack, slots, 8)
    packed = [slot.snapshot() for slot in slots]
    pack.base.clear()
    for spec, snapshot in zip(specs, packed, strict=True):
        assert all(value.dtype == torch.float32 for value in snapshot.parameters.values())
        assert world.distance(replace(snapshot, moments={}), replace(world.lone(spec, 8), moments={})) < 0.2, spec


def test_what_changes_the_base_is_refused_in_a_pack(world):
    with pytest.raises(UsageError, match="15 of dora"):
        world.join(world.pack(), [world.dora("15")])


def test_slots_are_not_larger_than_the_method_says(world):
    """Nor much smaller: a pack is as large as memory allows by these numbers."""
    for spec in (*world.mixed_specs()[:2], *world.mixed_specs()[6:8]):
        pack = world.pack(num_workers=3)
        (slot,) = world.join(pack, [spec])
        train(pack, [slot], 1)
        method, modules = get_method(spec.hyperparameters.method), set(spec.hyperparameters.target_modules)
        adapted = [module for module in world.modules if module.name in modules]
        said = method.slot_bytes(method.params(spec.hyperparameters), adapted, 3)
        own = [
            *slot.adapter.tensors,
            *(m for pair in slot.moments[: len(slot.adapter.tensors)] for m in pair),
        ]
        held = sum(tensor.nbytes for tensor in own) + pack.base.slot_bytes
        pack.base.clear()
        assert held <= said < 2 * held
