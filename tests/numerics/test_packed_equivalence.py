"""A pack of n trials is n lone trials: the same numbers, whoever shares the pass, whoever fails, whoever moves.

Single-precision noise of the lone trial itself (its rows in another order) is 3e-6 after 50 steps on this base. A
learning rate has its whole schedule within `MAX_STEPS`.
"""

from __future__ import annotations

from collections.abc import Sequence
from concurrent.futures import ThreadPoolExecutor
from contextlib import ExitStack
from dataclasses import replace
from functools import partial
from pathlib import Path
from typing import Any

import pytest
import torch
from support.bases import families
from support.trials import DECODERS, DecoderWorld, TrialBase, same_bits, train
from torch import nn

from loraxs_search.base_model.load import load_model
from loraxs_search.engine.layers import AdaptedLinear, _CheckpointedLayer
from loraxs_search.errors import BaseModelError, TrialDivergedError, UsageError
from loraxs_search.methods import get_method
from loraxs_search.methods.stored import rounded
from loraxs_search.records.trial import TrialSpec
from loraxs_search.tasks.kinds import classifier
from loraxs_search.tasks.prepared import PreparedTask, prepare
from loraxs_search.trial.snapshot import Snapshot

from .conftest import World

TOLERANCE = 1e-5  # relative, on every R and its moments; see `World.distance`
MAX_STEPS = 14
OUT_OF_MEMORY = "CUDA out of memory."

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
    marks = {family: pytest.mark.long(part="bases") for family in others}
    return [
        pytest.param(trials, family, id=f"{trials.__name__}-{family}", marks=marks.get(family, ()))
        for family in (*usual, *others)
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


def test_what_cannot_be_in_a_pack_is_refused(world, make_world):
    with pytest.raises(UsageError, match="15 of dora"):
        world.join(world.pack(), [world.dora("15")])
    world = make_world("distilbert")
    spec = world.spec("1", head="output")  # of an output layer that PEFT would confuse, alone too
    for start in (lambda: world.lone(spec, 1), lambda: world.join(world.pack(), [spec])):
        with pytest.raises(BaseModelError, match="classifier ends pre_classifier"):
            start()


def test_trials_may_join_and_leave_between_rounds_and_the_base_stays_the_same_bits(world):
    before, modules = {n: value.clone() for n, value in world.model.state_dict().items()}, [*world.model.modules()]
    specs, pack = world.mixed_specs(), world.pack()
    slots = world.join(pack, specs)
    train(pack, slots[:3], 3)
    train(pack, slots[1:8], 4)
    train(pack, [slots[8], slots[0], slots[4]], 5)
    assert [slot.step for slot in slots] == [8, 7, 7, 4, 9, 4, 4, 4, 5]
    assert [*world.model.modules()] != modules
    pack.base.clear()
    assert [*world.model.modules()] == modules
    after = world.model.state_dict()
    assert list(after) == list(before) and all(torch.equal(after[name], value) for name, value in before.items())
    assert not any(p.requires_grad or p.grad is not None for p in world.model.parameters())
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


def test_scores_are_those_of_the_stored_numbers_and_training_goes_on_from_the_exact_ones(world):
    exact, compact = (
        [
            world.spec(str(first + n), seed=n, learning_rate=0.2, head_learning_rate=0.2, stored_dtype=dtype, **more)
            for n, more in enumerate(({}, {}, {"method": "lora", "method_params": {"rank": 2}}))
        ]
        for first, dtype in ((0, "float32"), (3, "int8"))
    )
    pack = world.pack()
    slots = world.join(pack, [*exact, *compact])
    train(pack, slots, 5)
    before = [slot.snapshot() for slot in slots]
    found = pack.evaluate(slots, "validation")
    assert all(same_bits(slot.snapshot(), own) for slot, own in zip(slots, before, strict=True))
    assert all(abs(found[str(n)]["loss"] - found[str(n + 3)]["loss"]) > 1e-5 for n in range(3)), found
    with ExitStack() as stored, torch.no_grad():  # the exact trials, with the numbers that are stored of the others
        for one, other in zip(slots[:3], slots[3:], strict=True):
            before_rounding = [value.clone() for value in other.adapter.named(other.adapter.tensors).values()]
            stored.enter_context(other.as_stored())
            for own, value in zip(other.adapter.named(other.adapter.tensors).values(), before_rounding, strict=True):
                torch.testing.assert_close(own, rounded(value, "int8", is_head=False), rtol=0, atol=0)
            for parameter, value in zip(one.parameters, other.parameters, strict=True):
                parameter.copy_(value)
    again = pack.evaluate(slots[:3], "validation")
    for one, other in zip(slots[:3], slots[3:], strict=True):
        assert again[one.name]["loss"] == pytest.approx(found[other.name]["loss"], rel=1e-6)


@pytest.mark.parametrize(("poison", "num_workers"), [(float("nan"), 1), (1e30, 3)])
def test_a_diverging_trial_changes_no_bit_of_its_neighbours(world, poison, num_workers):
    specs = world.mixed_specs()[:2] + world.mixed_specs()[7:]
    runs = []
    for factor in (poison, 1.0):
        pack = world.pack(num_workers=num_workers)
        slots = world.join(pack, specs)
        train(pack, slots, 2)
        with torch.no_grad():
            slots[1].adapter.r.mul_(factor)
        before = slots[1].snapshot()
        errors = pack.step(slots)
        assert list(errors) == (["2"] if factor != 1.0 else [])
        if errors:
            assert isinstance(errors["2"], TrialDivergedError)
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


# ---- memory ----------------------------------------------------------------------------------------------------------
def checkpointed(model: nn.Module) -> bool:
    return any(isinstance(module, _CheckpointedLayer) for module in model.modules())


def little_memory(model: nn.Module, whole: int, *, until_checkpointed: bool = False) -> Any:
    """Have memory run out in passes of more than `whole` padded tokens; return what ends it."""

    def refuse(_: nn.Module, args: tuple[Any, ...], kwargs: dict[str, Any]) -> None:
        eased = until_checkpointed and (checkpointed(model) or not torch.is_grad_enabled())
        if kwargs["input_ids"].numel() > whole and not eased:
            raise torch.OutOfMemoryError(OUT_OF_MEMORY)

    return model.register_forward_pre_hook(refuse, with_kwargs=True)


def test_memory_that_runs_out_halves_the_budget_and_that_for_the_longest_row_alone_is_enough(world):
    longest = int(max(world.data.lengths("train").max(), world.data.lengths("validation").max()))
    spec, pack = world.spec("1"), world.pack(max_tokens=2 * longest - 2)  # half of it is too little for that row
    slots = world.join(pack, [spec])
    with little_memory(world.model, longest):
        train(pack, slots, 5)
        pack.evaluate(slots, "validation")
    assert pack.engine.max_tokens <= longest
    world.check_as_alone(pack, slots)


def test_a_row_that_memory_does_not_hold_fails_its_own_trial_alone(world):
    pack, lengths = world.pack(), world.data.lengths("train")
    slots = world.join(pack, [world.spec(str(number), batch_size=2) for number in range(1, 5)])
    longest = {slot.name: int(lengths[slot.batches.at(slot.step)].max()) for slot in slots}
    limit = sorted(set(longest.values()))[-2]
    with little_memory(world.model, limit):
        errors = pack.step(slots)
    assert set(errors) == {name for name, length in longest.items() if length > limit}
    assert all(isinstance(error, UsageError) and "pass of one row" in str(error) for error in errors.values())
    held = [(slot.spec, slot.snapshot()) for slot in slots if slot.name not in errors]
    assert pack.step(slots) == {}  # it may be there the next time
    pack.base.clear()
    assert all(world.distance(snapshot, world.lone(spec, 1)) < TOLERANCE for spec, snapshot in held)


def test_trials_whose_rows_fit_into_memory_are_scored_where_those_of_another_do_not(world):
    pack, limit = world.pack(), 8
    cut = prepare(replace(world.data.task, max_length=limit), world.data.tokenizer)
    slots = [pack.join(world.spec("1"), world.data), pack.join(world.spec("2"), cut)]
    with little_memory(world.model, limit):
        scores = pack.evaluate(slots, "validation")
    pack.base.clear()
    assert isinstance(scores["1"], UsageError)
    assert "accuracy" in scores["2"]


def test_slots_are_not_larger_than_the_method_says(world):
    """Nor much smaller: a pack is as large as memory allows by these numbers."""
    for spec in (*world.mixed_specs()[:2], *world.mixed_specs()[6:8]):
        pack = world.pack(num_workers=3)
        (slot,) = world.join(pack, [spec])
        train(pack, [slot], 1)
        method, modules = get_method(spec.hyperparameters.method), set(spec.hyperparameters.target_modules)
        adapted = [module for module in world.modules if module.name in modules]
        said = method.slot_bytes(method.params(spec.hyperparameters), adapted, 3)
        moments = [m for pair in slot.moments[: len(slot.adapter.tensors)] for m in pair]
        held = sum(tensor.nbytes for tensor in (*slot.adapter.tensors, *moments)) + pack.base.slot_bytes
        pack.base.clear()
        assert held <= said < 2 * held


# ---- layers that are computed again in backward ----------------------------------------------------------------------
def trained(world: Any, trials: Trials, steps: int, num_workers: int = 1, on: bool = False) -> Any:
    """Return states and metrics of trials after so many steps."""
    pack = world.pack(num_workers=num_workers)
    assert not on or pack.base.checkpoint_gradients()
    slots = [pack.join(spec, data) for spec, data in trials]
    train(pack, slots, steps)
    assert checkpointed(world.model) == on
    metrics = pack.evaluate(slots, "validation")
    pack.base.clear()
    return [slot.snapshot() for slot in slots], metrics


@pytest.mark.parametrize("family", families(["bert", "gpt2", "llama"]))
def test_checkpointing_changes_no_bit(make_world, family, tmp_path):
    """Decoders too, whose topmost layer is pruned to reads."""
    world, decoder = make_world(family), DecoderWorld(tmp_path / "decoder", "llama")
    for own, trials in (
        (world, [(spec, world.data) for spec in world.mixed_specs()]),
        (decoder, decoder.mixed_trials()),
    ):
        (plain, expected), (again, metrics) = (trained(own, trials, 5, num_workers=3, on=on) for on in (False, True))
        assert all(same_bits(a, b) for a, b in zip(plain, again, strict=True))
        assert metrics == expected


def test_backward_may_run_in_another_thread_as_on_an_accelerator(world, monkeypatch):
    trials, backward = [(spec, world.data) for spec in world.mixed_specs()[:3]], torch.autograd.backward
    plain, _ = trained(world, trials, 3)

    def elsewhere(*args: Any, **kwargs: Any) -> None:
        with ThreadPoolExecutor(1) as pool:
            pool.submit(backward, *args, **kwargs).result()

    monkeypatch.setattr(torch.autograd, "backward", elsewhere)
    again, _ = trained(world, trials, 3, on=True)
    assert all(same_bits(a, b) for a, b in zip(plain, again, strict=True))


def test_one_row_too_much_for_memory_turns_checkpointing_on_packed_and_alone(world, caplog):
    spec, pack = world.spec("1", batch_size=5), world.pack(max_tokens=400)
    lone, slots = world.lone(spec, 5), world.join(pack, [spec])
    with little_memory(world.model, 2, until_checkpointed=True):
        train(pack, slots, 5)
        assert checkpointed(world.model)
        metrics = pack.evaluate(slots, "validation")
        assert pack.engine.max_tokens == 400  # the first budget again: a token takes less
        assert "computed again in backward" in caplog.text
        pack.base.clear()
        assert not checkpointed(world.model)
        again = world.lone(spec, 5)
    assert not checkpointed(world.model)
    assert same_bits(lone, again)
    assert world.distance(slots[0].snapshot(), lone) < TOLERANCE
    assert metrics["1"] == pytest.approx(lone.reports[-1].metrics, rel=1e-5)


def kept_bytes(world: Any, monkeypatch: pytest.MonkeyPatch, on: bool) -> int:
    """Return the bytes that a step's one pass keeps when backward begins."""
    pack = world.pack(max_tokens=10_000)
    assert not on or pack.base.checkpoint_gradients()
    slots = world.join(pack, [world.spec("1", batch_size=16)])
    seen, kept = dict[int, int](), list[int]()
    parameters = {p.untyped_storage().data_ptr() for p in world.model.parameters()}

    def keep(tensor: torch.Tensor) -> torch.Tensor:
        storage = tensor.untyped_storage()
        seen[storage.data_ptr()] = storage.nbytes() if storage.data_ptr() not in parameters else 0
        return tensor

    def begun(*args: Any, backward: Any = torch.autograd.backward) -> None:
        kept.append(sum(seen.values()))
        backward(*args)

    with monkeypatch.context() as patch, torch.autograd.graph.saved_tensors_hooks(keep, lambda tensor: tensor):
        patch.setattr(torch.autograd, "backward", begun)
        pack.step(slots)
    pack.base.clear()
    return kept[0]


def test_a_pass_keeps_one_state_a_layer(make_world, monkeypatch):
    """Two layers of which the topmost keeps all: what is left is more than half of it by that layer alone."""
    world = make_world("llama")
    whole, less = (kept_bytes(world, monkeypatch, on) for on in (False, True))
    assert less < 0.7 * whole, (less, whole)


# ---- layers below the lowest adapted one, which are computed once for each row ---------------------------------------
@pytest.fixture
def deep(make_world):
    """Make a world whose base has four layers: two to adapt, two to skip."""
    return partial(make_world, layers=4)


def upper(world: Any, lowest: int = 2) -> tuple[str, ...]:
    """Name the linear layers of the blocks from `lowest` on."""
    return tuple(name for name in world.names if int(next(filter(str.isdigit, name.split(".")))) >= lowest)


def upper_specs(world: Any) -> list[TrialSpec]:
    names = upper(world)
    return [
        world.spec("1", target_modules=names),
        world.spec("2", target_modules=names[1::2], rank=8, scale=2.0, weight_decay=0.1, batch_size=5),
        world.spec("3", target_modules=names, rank=2, sigma="sqrt", batch_size=16, lr_schedule="cosine"),
        world.spec("4", target_modules=names[len(names) // 2 :], rank=6, sigma="output", basis="bottom"),
    ]


def rows_through(world: Any, block: int) -> list[int]:
    """Return a list to which each call of a block's first linear layer adds how many rows it has."""
    layer = world.model.get_submodule(next(name for name in world.names if f".{block}." in name))
    seen: list[int] = []
    own = layer.base_layer if isinstance(layer, AdaptedLinear) else layer
    own.register_forward_hook(lambda _, args, out: seen.append(len(args[0])))
    return seen


@pytest.mark.parametrize("family", families(["bert", "llama", "roberta", "distilbert", "gpt2"]))
def test_four_trials_on_the_last_layers_and_a_guest_on_all_equal_lone_trials(deep, family):
    world = deep(family)
    specs, guest, pack = upper_specs(world), world.spec("5", rank=3), world.pack(num_workers=3)
    slots = world.join(pack, specs)
    train(pack, slots, 6)
    assert pack.base.prefix.depth == 2
    slots += world.join(pack, [guest])
    train(pack, slots, 20)  # a first gradient near AdamW's eps may set one number 3e-7 apart: little beside R by then
    assert pack.base.prefix.depth == 0
    train(pack, slots[:4], 6)
    assert pack.base.prefix.depth == 2
    assert [slot.step for slot in slots] == [32, 32, 32, 32, 20]
    world.check_as_alone(pack, slots)


def test_each_row_goes_through_the_skipped_layers_once(deep):
    world = deep("bert")
    pack = world.pack(num_workers=2)
    slots = world.join(pack, upper_specs(world))
    pack.base.place(slots)  # seats them, after a probe of the base
    below, above = rows_through(world, 0), rows_through(world, 2)
    pack.evaluate(slots, "validation")
    assert sum(below) == world.data.num_rows("validation")
    assert sum(above) == 4 * world.data.num_rows("validation")
    pack.evaluate(slots, "validation")
    assert sum(below) == world.data.num_rows("validation")
    below.clear()
    train(pack, slots, 20)  # more than an epoch of the first slot alone
    assert sum(below) == world.data.num_rows("train")
    train(pack, world.join(pack, upper_specs(world)), 5)  # other slots, the same rows
    assert sum(below) == world.data.num_rows("train")


@pytest.mark.parametrize("cache_bytes", [0, 20_000])
def test_memory_is_bounded_and_a_full_one_changes_no_number(deep, cache_bytes):
    world = deep("bert")
    pack = world.pack(num_workers=2, cache_bytes=cache_bytes)
    slots = world.join(pack, upper_specs(world))
    for _ in range(15):
        train(pack, slots, 1)
        assert pack.base.prefix.num_bytes <= cache_bytes
    pack.evaluate(slots, "validation")
    assert cache_bytes / 2 < pack.base.prefix.num_bytes <= cache_bytes or not cache_bytes
    assert pack.base.prefix.depth == (2 if cache_bytes else 0)
    if cache_bytes:  # what no seated slot can use makes room
        higher = world.join(pack, [world.spec("6", target_modules=upper(world, 3))])
        pack.evaluate(higher, "validation")
        assert pack.base.prefix.depth == 3
        below = rows_through(world, 0)
        pack.evaluate(higher, "validation")
        assert sum(below) < world.data.num_rows("validation")
    world.check_as_alone(pack, slots)


def test_memory_that_runs_out_takes_the_cache_first(deep):
    world = deep("bert")
    spec, pack = world.spec("1", target_modules=upper(world), batch_size=16), world.pack(num_workers=2)
    slots = world.join(pack, [spec])
    train(pack, slots, 5)
    held, refusals = pack.base.prefix.num_bytes, [torch.OutOfMemoryError(OUT_OF_MEMORY)]

    def refuse(_: nn.Module, args: object) -> None:
        if refusals:
            raise refusals.pop()

    with world.model.register_forward_pre_hook(refuse):
        train(pack, slots, 5)
    assert 0 < pack.base.prefix.num_bytes <= held // 2
    world.check_as_alone(pack, slots)


def test_tasks_in_one_pass_keep_their_rows_apart(deep, other_data):
    world = deep("bert")
    pack, names = world.pack(num_workers=2), upper(world)
    slots = [
        pack.join(world.spec("1", target_modules=names), world.data),
        pack.join(world.spec("2", target_modules=names, rank=8), other_data),
    ]
    train(pack, slots, 6)
    packed = [slot.snapshot() for slot in slots]
    pack.base.clear()
    assert world.distance(packed[0], world.lone(slots[0].spec, 6)) < TOLERANCE
    world.model, world.data = load_model(world.base, classifier(3)), other_data
    assert world.distance(packed[1], world.lone(slots[1].spec, 6)) < TOLERANCE
