"""What is read behind a shared prompt is what is read of the whole row, in lone trials and in packs."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from support.decoders import VOCABULARY, DecoderWorld
from support.families import families
from torch import Tensor

from loraxs_search.engine import requests
from loraxs_search.engine.prefix_sharing import is_worth_sharing, read_shared
from loraxs_search.methods.loraxs import use_factor_store
from loraxs_search.tasks.encoded import Batch, EncodedRows, Ragged
from loraxs_search.tasks.kinds import ForwardRequest, PassOutputs
from loraxs_search.trial.attach import attach, detach
from loraxs_search.trial.evaluate import ask

FAMILIES = ["llama", "qwen2", "qwen3", "mistral", "gemma", "gemma2", "gpt2"]


def options(seed: int, num_prompts: int = 9, longest: int = 20) -> EncodedRows:
    """Rows of 1 to 6 tokens behind prompts of up to 20; one prompt has no token at all, and one has one row."""
    random = np.random.default_rng(seed)
    prompts = [random.integers(4, VOCABULARY, random.integers(1, longest)) for _ in range(num_prompts - 1)]
    prompt_of = np.repeat(np.arange(num_prompts), [1, *random.integers(2, 6, num_prompts - 1)])
    rows = [random.integers(4, VOCABULARY, random.integers(1, 7)) for _ in prompt_of]
    return EncodedRows(
        Ragged.of(rows, np.int32),
        positions=Ragged.of([range(len(row)) for row in rows], np.int32),
        targets=Ragged.of([np.append(row[1:], 5) for row in rows], np.int64),
        prompts=Ragged.of([*prompts[:3], [], *prompts[3:]], np.int32),
        prompt_of=prompt_of,
    )


def sums(outputs: PassOutputs, batch: Batch) -> tuple[Tensor, ...]:
    """Return each row's loss and how often its target was likeliest."""
    assert outputs.project is not None
    logits = outputs.project(outputs.read)
    losses = torch.nn.functional.cross_entropy(logits, batch.targets, reduction="none")
    right = logits.argmax(-1) == batch.targets
    sizes = batch.counts.tolist()
    return tuple(torch.stack([part.sum() for part in column.split(sizes)]) for column in (losses, right.long()))


@torch.inference_mode()
def plain(model: Any, source: EncodedRows, rows: Any) -> Tensor:
    """Return each row's loss, computed alone and whole."""
    losses = []
    whole = source.with_prompts()
    assert source.targets is not None
    for row in rows:
        ids = torch.from_numpy(whole.ids.row(row).astype(np.int64))
        targets = torch.from_numpy(source.targets.row(row))
        logits = model(input_ids=ids[None]).logits[0, len(ids) - len(targets) :]
        losses.append(torch.nn.functional.cross_entropy(logits, targets, reduction="sum"))
    return torch.stack(losses)


def asking(read: ForwardRequest) -> Any:
    return (yield read)


@pytest.fixture
def make_world(tmp_path: Path) -> Callable[[str], DecoderWorld]:
    return lambda family: DecoderWorld(tmp_path, family)


def lively(world: DecoderWorld) -> list[Any]:
    return [(replace(s, hyperparameters=replace(s.hyperparameters, init_std=0.2)), d) for s, d in world.mixed_trials()]


@pytest.mark.parametrize("family", families(FAMILIES))
def test_lone_trials_read_what_whole_rows_give(make_world: Callable[..., Any], family: str) -> None:
    world, source = make_world(family), options(1)
    rows = np.random.default_rng(3).permutation(len(source))[:-3]
    ((spec, data), *_) = lively(world)
    with use_factor_store(world.factors):
        model = attach(world.model, spec)
    assert is_worth_sharing(source, rows)
    losses, _ = ask(model, data, asking(ForwardRequest(source, rows, sums)))
    expected = plain(model, source, rows)
    detach(model, spec)
    torch.testing.assert_close(losses, expected, rtol=1e-5, atol=1e-5)


@pytest.mark.parametrize("family", families(FAMILIES))
@pytest.mark.parametrize("num_workers", [1, 2])
def test_packs_read_what_whole_rows_give(make_world: Callable[..., Any], family: str, num_workers: int) -> None:
    world = make_world(family)
    trials, pack = lively(world), world.pack(max_tokens=120, num_workers=num_workers)
    slots = [pack.join(spec, data) for spec, data in trials]
    reads = {spec.name: options(i, 4 + i) for i, (spec, _) in enumerate(trials)}
    read = pack.answer(
        slots, {n: ForwardRequest(source, np.arange(len(source))[::-1].copy(), sums) for n, source in reads.items()}
    )
    pack.base.clear()
    for spec, _ in trials:
        with use_factor_store(world.factors):
            model = attach(world.model, spec)
        expected = plain(model, reads[spec.name], range(len(reads[spec.name]))[::-1])
        detach(model, spec)
        torch.testing.assert_close(read[spec.name][0], expected, rtol=1e-5, atol=1e-5)


def test_layers_that_others_skip_are_computed(make_world: Callable[..., Any]) -> None:
    world, source = make_world("llama"), options(2)
    spec = world.spec("1", init_std=0.2, target_modules=tuple(name for name in world.names if ".1." in name))
    data, pack = world.tasks[0], world.pack()
    slots = [pack.join(spec, data)]
    requests = [ForwardRequest("validation", np.arange(33), sums), ForwardRequest(source, np.arange(len(source)), sums)]
    split, read, again = (pack.answer(slots, {"1": requests[i]})["1"][0] for i in (0, 1, 0))
    assert pack.base.prefix.depth == 1
    pack.base.clear()
    with use_factor_store(world.factors):
        model = attach(world.model, spec)
    expected = plain(model, source, range(len(source)))
    detach(model, spec)
    torch.testing.assert_close(read, expected, rtol=1e-5, atol=1e-5)
    torch.testing.assert_close(split, again)


def test_prompts_that_save_little_are_computed_whole(
    make_world: Callable[..., Any], monkeypatch: pytest.MonkeyPatch
) -> None:
    world, source = make_world("llama"), options(1, longest=2)
    monkeypatch.setattr(requests, "read_shared", None)
    ((spec, data), *_), pack = lively(world), world.pack()
    rows = np.arange(len(source))
    assert not is_worth_sharing(source, rows)
    (read, _) = pack.answer([pack.join(spec, data)], {spec.name: ForwardRequest(source, rows, sums)})[spec.name]
    pack.base.clear()
    with use_factor_store(world.factors):
        model = attach(world.model, spec)
    lone, _ = ask(model, data, asking(ForwardRequest(source, rows, sums)))
    expected = plain(model, source, rows)
    detach(model, spec)
    torch.testing.assert_close(read, expected, rtol=1e-5, atol=1e-5)
    torch.testing.assert_close(lone, expected, rtol=1e-5, atol=1e-5)


@pytest.mark.parametrize("num_workers", [1, 2])
def test_passes_that_memory_cannot_hold_are_made_smaller(
    make_world: Callable[..., Any], num_workers: int, monkeypatch: pytest.MonkeyPatch
) -> None:
    world, source, sizes = make_world("llama"), options(4), list[int]()

    def within_memory(base: Any, parts: Any, *others: Any) -> Any:
        sizes.append(sum(len(part) for part in parts))
        if sizes[-1] > 12:
            raise MemoryError
        return read_shared(base, parts, *others)

    monkeypatch.setattr(requests, "read_shared", within_memory)
    trials, pack = lively(world)[:2], world.pack(max_tokens=2000, num_workers=num_workers)
    slots = [pack.join(spec, data) for spec, data in trials]
    rows = np.arange(len(source))
    read = pack.answer(slots, {spec.name: ForwardRequest(source, rows, sums) for spec, _ in trials})
    pack.base.clear()
    assert max(sizes) > 12 and pack.engine.max_tokens < 2000
    for spec, _ in trials:
        with use_factor_store(world.factors):
            model = attach(world.model, spec)
        expected = plain(model, source, rows)
        detach(model, spec)
        torch.testing.assert_close(read[spec.name][0], expected, rtol=1e-5, atol=1e-5)
