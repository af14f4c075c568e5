"""Layers below the lowest adapted one are computed once for each row, and the numbers are those of the lone trial."""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import contextmanager
from functools import partial
from typing import Any

import pytest
import torch
from support.families import families
from support.trials import train
from torch import nn

from loraxs_search.base_model.load import load_model
from loraxs_search.engine.layers import AdaptedLinear
from loraxs_search.engine.passes import PassExecutor
from loraxs_search.packing.pack import Pack, PackedModel
from loraxs_search.records.trial import TrialSpec
from loraxs_search.tasks.kinds import classifier

TOLERANCE = 1e-5  # relative, on every R and its moments; see `World.distance`
NUM_LAYERS = 4


@pytest.fixture
def deep(make_world):
    """Make a world whose base has four layers: two to adapt, two to skip."""
    return partial(make_world, layers=NUM_LAYERS)


def upper(world: Any, lowest: int = NUM_LAYERS - 2) -> list[str]:
    """Name the linear layers of the blocks from `lowest` on."""
    return [name for name in world.names if int(next(filter(str.isdigit, name.split(".")))) >= lowest]


def upper_specs(world: Any) -> list[TrialSpec]:
    names = upper(world)
    return [
        world.spec("1", target_modules=tuple(names)),
        world.spec("2", target_modules=tuple(names[1::2]), rank=8, scale=2.0, weight_decay=0.1, batch_size=5),
        world.spec("3", target_modules=tuple(names), rank=2, sigma="sqrt", batch_size=16, lr_schedule="cosine"),
        world.spec("4", target_modules=tuple(names[len(names) // 2 :]), rank=6, sigma="output", basis="bottom"),
    ]


def pack_of(world: Any, cache_bytes: int | None = None, num_workers: int = 2) -> Pack:
    base = PackedModel(world.model, world.factors, world.modules, num_workers=num_workers, cache_bytes=cache_bytes)
    return Pack(base, max_tokens=200, executor=PassExecutor(num_workers))


@contextmanager
def rows_through(world: Any, block: int) -> Iterator[list[int]]:
    """Collect how many rows go through a block's first linear layer, call by call."""
    name = next(name for name in world.names if f".{block}." in name)
    layer = world.model.get_submodule(name)
    layer = layer.base_layer if isinstance(layer, AdaptedLinear) else layer
    seen: list[int] = []
    hook = layer.register_forward_hook(lambda _, args, out: seen.append(len(args[0])))
    try:
        yield seen
    finally:
        hook.remove()


@pytest.mark.parametrize("family", families(["bert", "llama", "roberta", "distilbert", "gpt2"]))
def test_four_trials_on_the_last_layers_and_a_guest_on_all_equal_lone_trials(deep, family):
    world = deep(family)
    specs, guest = upper_specs(world), world.spec("5", rank=3)
    pack = pack_of(world, num_workers=3)
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
    pack = pack_of(world)
    slots = world.join(pack, upper_specs(world))
    pack.base.place(slots)  # seats them, after a probe of the base
    with rows_through(world, 0) as below, rows_through(world, 2) as above:
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
    specs, pack = upper_specs(world), pack_of(world, cache_bytes)
    slots = world.join(pack, specs)
    for _ in range(15):
        train(pack, slots, 1)
        assert pack.base.prefix.num_bytes <= cache_bytes
    pack.evaluate(slots, "validation")
    assert cache_bytes / 2 < pack.base.prefix.num_bytes <= cache_bytes or not cache_bytes
    assert pack.base.prefix.depth == (2 if cache_bytes else 0)
    world.check_as_alone(pack, slots)


def test_what_no_seated_slot_can_use_makes_room(deep):
    world = deep("bert")
    pack = pack_of(world, 20_000)
    train(pack, world.join(pack, upper_specs(world)), 5)  # full
    higher = world.join(pack, [world.spec("6", target_modules=tuple(upper(world, 3)))])
    pack.evaluate(higher, "validation")
    assert pack.base.prefix.depth == 3
    with rows_through(world, 0) as below:
        pack.evaluate(higher, "validation")
    assert sum(below) < world.data.num_rows("validation")


def test_memory_that_runs_out_takes_the_cache_first(deep):
    world = deep("bert")
    spec, pack = world.spec("1", target_modules=tuple(upper(world)), batch_size=16), pack_of(world)
    slots = world.join(pack, [spec])
    train(pack, slots, 5)
    held, refusals = pack.base.prefix.num_bytes, [torch.OutOfMemoryError("CUDA out of memory.")]

    def refuse(_: nn.Module, args: object) -> None:
        if refusals:
            raise refusals.pop()

    handle = world.model.register_forward_pre_hook(refuse)
    train(pack, slots, 5)
    handle.remove()
    assert 0 < pack.base.prefix.num_bytes <= held // 2
    pack.base.clear()
    assert world.distance(slots[0].snapshot(), world.lone(spec, 10)) < TOLERANCE


def test_tasks_in_one_pass_keep_their_rows_apart(deep, other_data):
    world = deep("bert")
    names = tuple(upper(world))
    pack = pack_of(world)
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
