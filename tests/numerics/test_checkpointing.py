"""Layers that are computed again in backward: the same numbers, less memory, in whatever thread backward runs."""

from __future__ import annotations

from concurrent.futures import ThreadPoolExecutor
from contextlib import contextmanager
from typing import Any

import pytest
import torch
from support.decoders import DecoderWorld
from support.families import families
from support.trials import same_bits, train
from torch import nn

from loraxs_search.engine.layers import _CheckpointedLayer
from loraxs_search.errors import UsageError

TOLERANCE = 1e-5


def checkpointed(model: nn.Module) -> list[str]:
    return [name for name, module in model.named_modules() if isinstance(module, _CheckpointedLayer)]


@contextmanager
def little_memory(model: nn.Module, whole: int) -> Any:
    """Have memory run out in passes with gradients of more than `whole` tokens, until layers are checkpointed."""

    def refuse(_: nn.Module, args: tuple[Any, ...], kwargs: dict[str, Any]) -> None:
        if torch.is_grad_enabled() and kwargs["input_ids"].numel() > whole and not checkpointed(model):
            raise torch.OutOfMemoryError("CUDA out of memory.")

    handle = model.register_forward_pre_hook(refuse, with_kwargs=True)
    try:
        yield
    finally:
        handle.remove()


def trained(world: Any, trials: list[Any], steps: int, num_workers: int = 1, on: bool = False) -> Any:
    """Return states and metrics of trials, given with their data, after so many steps."""
    pack = world.pack(num_workers=num_workers)
    assert not on or pack.base.checkpoint_gradients()
    slots = [pack.join(spec, data) for spec, data in trials]
    train(pack, slots, steps)
    assert bool(checkpointed(world.model)) == on
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


def test_one_row_too_much_for_memory_turns_checkpointing_on_and_equals_the_lone_trial(world, caplog):
    spec, pack = world.spec("1"), world.pack(max_tokens=400)
    slots = world.join(pack, [spec])
    with little_memory(world.model, whole=2):
        train(pack, slots, 5)
        assert checkpointed(world.model)
        metrics = pack.evaluate(slots, "validation")
    assert pack.engine.max_tokens == 400  # the first budget again: a token takes less
    assert "computed again in backward" in caplog.text
    pack.base.clear()
    assert checkpointed(world.model) == []
    lone = world.lone(spec, 5)
    assert world.distance(slots[0].snapshot(), lone) < TOLERANCE
    assert metrics["1"] == pytest.approx(lone.reports[-1].metrics, rel=1e-5)


def test_a_peft_model_is_checkpointed_too(world):
    spec = world.spec("1", batch_size=5)
    whole = world.lone(spec, 5)
    with little_memory(world.model, whole=2):
        again = world.lone(spec, 5)
    assert checkpointed(world.model) == []
    assert same_bits(whole, again)


def test_memory_that_holds_no_row_even_so_is_refused(world):
    pack = world.pack()
    slots = world.join(pack, [world.spec("1")])

    def refuse(_: nn.Module, args: tuple[Any, ...]) -> None:
        raise torch.OutOfMemoryError("CUDA out of memory.")

    with world.model.register_forward_pre_hook(refuse):
        errors = pack.step(slots)
    assert isinstance(errors["1"], UsageError) and "pass of one row" in str(errors["1"])
    assert pack.step(slots) == {}  # it may be there the next time


def kept_bytes(world: Any, monkeypatch: pytest.MonkeyPatch, on: bool) -> int:
    """Return the bytes that a step's one pass keeps when backward begins."""
    pack = world.pack(max_tokens=10_000)
    assert not on or pack.base.checkpoint_gradients()
    slots = world.join(pack, [world.spec("1", batch_size=16)])
    seen: dict[int, int] = {}
    kept: list[int] = []
    parameters = {p.untyped_storage().data_ptr() for p in world.model.parameters()}

    def pack_tensor(tensor: torch.Tensor) -> torch.Tensor:
        storage = tensor.untyped_storage()
        seen[storage.data_ptr()] = storage.nbytes()
        return tensor

    def begun(*args: Any, backward: Any = torch.autograd.backward) -> None:
        kept.append(sum(size for pointer, size in seen.items() if pointer not in parameters))
        seen.clear()
        backward(*args)

    with monkeypatch.context() as patch, torch.autograd.graph.saved_tensors_hooks(pack_tensor, lambda tensor: tensor):
        patch.setattr(torch.autograd, "backward", begun)
        pack.step(slots)
    pack.base.clear()
    return max(kept)


def test_a_pass_keeps_one_state_a_layer(make_world, monkeypatch):
    """Two layers of which the topmost keeps all: what is left is more than half of it by that layer alone."""
    world = make_world("llama")
    whole, less = (kept_bytes(world, monkeypatch, on) for on in (False, True))
    assert less < 0.7 * whole, (less, whole)
