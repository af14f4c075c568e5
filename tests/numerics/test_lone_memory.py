"""A lone trial whose batch does not fit into memory: more passes, then layers computed again; the same numbers."""

from __future__ import annotations

from collections.abc import Callable, Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import pytest
import torch
from support.decoders import DecoderWorld
from torch import nn

from loraxs_search.engine.out_of_memory import _CheckpointedLayer
from loraxs_search.errors import UsageError

TOLERANCE, NUM_STEPS = 5e-5, 6  # AdamW divides by the size of a gradient, so rounding counts where that is small


@contextmanager
def memory_of(model: nn.Module, tokens: int, *, checkpointed: bool = False) -> Iterator[list[int]]:
    """Have memory run out in passes with gradients of more padded tokens; yield the rows of those that fit.

    Args:
        checkpointed: Whether it lasts where layers are checkpointed.
    """
    fitting: list[int] = []

    def refuse(_: nn.Module, args: tuple[Any, ...], kwargs: dict[str, Any]) -> None:
        if not torch.is_grad_enabled():
            return
        saved = checkpointed and any(isinstance(module, _CheckpointedLayer) for module in model.modules())
        if kwargs["input_ids"].numel() > tokens and not saved:
            raise torch.OutOfMemoryError("CUDA out of memory.")
        fitting.append(len(kwargs["input_ids"]))

    handle = model.register_forward_pre_hook(refuse, with_kwargs=True)
    try:
        yield fitting
    finally:
        handle.remove()


@pytest.mark.parametrize("family", ["bert", "llama"])
def test_a_batch_that_does_not_fit_is_computed_in_parts(make_world: Callable[..., Any], family: str, caplog) -> None:
    world = make_world(family)
    spec = world.spec("1", batch_size=11)
    whole = world.lone(spec, NUM_STEPS)
    longest = int(world.data.lengths("train").max())
    with memory_of(world.model, tokens=3 * longest) as fitting:
        parts = world.lone(spec, NUM_STEPS)
    assert max(fitting[-4:]) < 11
    assert "Memory ran out; passes have at most" in caplog.text
    assert world.distance(parts, whole) < TOLERANCE
    assert parts.reports[-1].metrics == pytest.approx(whole.reports[-1].metrics, rel=1e-5)
    assert parts.reports[-1].train_loss == pytest.approx(whole.reports[-1].train_loss, rel=1e-5)
    assert parts.num_tokens == whole.num_tokens


def test_where_one_row_is_too_much_layers_are_checkpointed(world: Any, caplog: pytest.LogCaptureFixture) -> None:
    spec = world.spec("1", batch_size=5)
    whole = world.lone(spec, NUM_STEPS)
    with memory_of(world.model, tokens=0, checkpointed=True) as fitting:
        again = world.lone(spec, NUM_STEPS)
    assert sum(fitting) == 5 * NUM_STEPS and max(fitting) > 1  # several rows in a pass again: each takes less
    assert "computed again in backward" in caplog.text
    assert not any(isinstance(module, _CheckpointedLayer) for module in world.model.modules())
    for name, value in whole.parameters.items():
        assert torch.equal(again.parameters[name], value), name


def test_of_a_decoder_the_learnt_tokens_are_counted_over_the_batch(tmp_path: Path) -> None:
    world = DecoderWorld(tmp_path, "llama")
    spec, data = world.mixed_trials()[0]
    whole = world.lone(spec, data, NUM_STEPS)
    with memory_of(world.model.base_model, tokens=90):
        parts = world.lone(spec, data, NUM_STEPS)
    for name, value in whole.parameters.items():
        assert (parts.parameters[name] - value).norm() <= TOLERANCE * value.norm(), name


def test_memory_that_holds_no_row_is_refused_with_what_to_do(world: Any) -> None:
    spec = world.spec("1")
    with memory_of(world.model, tokens=0), pytest.raises(UsageError, match="pass of one row") as error:
        world.lone(spec, 1)
    assert "max_length" in str(error.value.hint)
    assert world.lone(spec, 1).step == 1  # it may be there the next time
