"""What rows begin with alike, or stand behind, is computed once, and changes nothing that is read or written."""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import replace
from functools import partial
from typing import Any

import numpy as np
import pytest
import torch
from support.decoders import VOCABULARY, DecoderWorld, tokenizer
from support.families import families
from support.trials import write
from torch import Tensor
from torch.nn.functional import cross_entropy

from loraxs_search.engine import generation
from loraxs_search.engine.generation import Decoding
from loraxs_search.engine.passes import PassExecutor, ask
from loraxs_search.tasks.encoded import Batch, EncodedRows, Ragged, RowSource
from loraxs_search.tasks.kinds import ForwardRequest, GenerateRequest, PassOutputs

FAMILIES = ["llama", "qwen2", "qwen3", "mistral", "gemma", "gemma2", "gpt2"]
GAPLESS = {"mistral", "gemma2"}  # their layers have windows
SIZE = 14


def rows(count: int = 23, *, alike: int = SIZE, seed: int = 0) -> EncodedRows:
    """Return rows that begin with so many equal tokens; the last two of each are read."""
    random = np.random.default_rng(seed)
    shared = random.integers(4, VOCABULARY, alike)
    ids = [np.append(shared, [4 + i % 2, *random.integers(4, VOCABULARY, 1 + i % 5)]) for i in range(count)]
    places = [range(len(row) - 2, len(row)) for row in ids]
    return EncodedRows(
        Ragged.of(ids, np.int32),
        positions=Ragged.of(places, np.int32),
        targets=Ragged.of([np.full(len(own), 7) for own in places], np.int64),
    )


def options(seed: int = 1, num_prompts: int = 9, *, longest: int = 20, most: int = 6, alike: int = 0) -> EncodedRows:
    """Return rows of 1 to `most` tokens behind prompts, of which one has one row; without `alike`, one has no token."""
    random = np.random.default_rng(seed)
    shared = random.integers(4, VOCABULARY, alike)
    prompts = [
        np.append(shared, random.integers(4, VOCABULARY, random.integers(1, longest))) for _ in range(num_prompts - 1)
    ]
    prompt_of = np.repeat(np.arange(num_prompts), [1, *random.integers(2, 6, num_prompts - 1)])
    ids = [random.integers(4, VOCABULARY, random.integers(1, most + 1)) for _ in prompt_of]
    return EncodedRows(
        Ragged.of(ids, np.int32),
        positions=Ragged.of([range(len(row)) for row in ids], np.int32),
        targets=Ragged.of([np.append(row[1:], 5) for row in ids], np.int64),
        prompts=Ragged.of([*prompts[:3], shared, *prompts[3:]], np.int32),
        prompt_of=prompt_of,
    )


def reduced(outputs: PassOutputs, batch: Batch) -> tuple[Tensor, ...]:
    """Return each row's loss, and the logits at its last read."""
    assert outputs.project is not None
    logits = outputs.project(outputs.read)
    losses = cross_entropy(logits, batch.targets, reduction="none").split(batch.counts.tolist())
    return torch.stack([own.sum() for own in losses]), logits[batch.counts.cumsum(0) - 1]


@torch.inference_mode()
def plain(model: Any, source: EncodedRows, chosen: Any) -> tuple[Tensor, ...]:
    """Return the same of each row, computed alone and whole."""
    whole, losses, last = source.with_prompts(), [], []
    assert whole.positions is not None and whole.targets is not None
    for row in chosen:
        ids = torch.from_numpy(whole.ids.row(row).astype(np.int64))[None]
        logits = model(input_ids=ids).logits[0, whole.positions.row(row).tolist()]
        losses.append(cross_entropy(logits, torch.from_numpy(whole.targets.row(row)), reduction="sum"))
        last.append(logits[-1])
    return torch.stack(losses), torch.stack(last)


def reading(source: EncodedRows, chosen: Any = None) -> ForwardRequest:
    return ForwardRequest(source, np.arange(len(source)) if chosen is None else chosen, reduced)


def read(model: Any, request: ForwardRequest, executor: PassExecutor | None = None) -> tuple[Tensor, ...]:
    def asking() -> Any:
        return (yield request)

    found: tuple[Tensor, ...] = ask(model, RowSource(tokenizer()), asking(), executor)
    return found


def check(actual: tuple[Tensor, ...], model: Any, request: ForwardRequest) -> None:
    (losses, logits), expected = actual, plain(model, request.source, request.rows)
    torch.testing.assert_close(losses, expected[0], rtol=1e-5, atol=1e-5)
    torch.testing.assert_close(logits, expected[1], rtol=1e-4, atol=1e-5)


@pytest.fixture
def make_world(tmp_path):
    return partial(DecoderWorld, tmp_path)


def lively(world: DecoderWorld) -> Any:
    """A trial whose adapter changes what is read and written."""
    return world.spec("1", init_std=0.3, scale=2.0)


@contextmanager
def counted(model: Any) -> Iterator[list[torch.Size]]:
    """Collect the shape of each pass."""
    sizes: list[torch.Size] = []
    handle = model.get_input_embeddings().register_forward_pre_hook(lambda _, args: sizes.append(args[0].shape))
    try:
        yield sizes
    finally:
        handle.remove()


# ---- reads -----------------------------------------------------------------------------------------------------------
SOURCES = {
    "rows": rows(),
    "prompts": options(),
    "prompts that begin alike": options(1, 23, longest=6, most=3, alike=SIZE),
}


@pytest.mark.parametrize("family", families(FAMILIES))
@pytest.mark.parametrize("name", SOURCES)
def test_lone_trials_read_what_whole_rows_give(make_world, family, name):
    world, source = make_world(family), SOURCES[name]
    chosen = np.random.default_rng(3).permutation(len(source))[:-3]
    request = reading(source, chosen if name != "prompts that begin alike" else np.sort(chosen))
    with world.attached(lively(world)) as model, counted(model) as sizes:
        actual = read(model, request)
        num_tokens = sum(shape.numel() for shape in sizes)
        check(actual, model, request)
        check(read(model, request, PassExecutor(2)), model, request)
    whole = source.take(np.sort(chosen)).with_prompts().lengths.sum()
    if name == "rows" or family not in GAPLESS:  # of prompts, each token is computed for two or three rows already
        assert num_tokens < {"rows": 0.7, "prompts": 0.8, "prompts that begin alike": 0.35}[name] * whole


@pytest.mark.parametrize("size", [2, 20])
def test_a_prompt_that_no_row_continues_plays_no_part(make_world, size):
    world, source = make_world("llama"), options(alike=SIZE)
    assert source.prompts is not None and source.prompt_of is not None
    prompts = [np.full(size, 5), *map(source.prompts.row, range(1, 9))]
    request = reading(replace(source, prompts=Ragged.of(prompts, np.int32)), np.flatnonzero(source.prompt_of))
    with world.attached(lively(world)) as model:
        check(read(model, request), model, request)


def test_layers_that_others_skip_are_computed(make_world):
    world, request = make_world("llama"), reading(options(2))
    spec = world.spec("1", init_std=0.2, target_modules=tuple(name for name in world.names if ".1." in name))
    pack = world.pack()
    slots, split = [pack.join(spec, world.tasks[0])], ForwardRequest("validation", np.arange(33), reduced)
    first, actual, again = (pack.answer(slots, {"1": asked})["1"] for asked in (split, request, split))
    assert pack.base.prefix.depth == 1
    pack.base.clear()
    with world.attached(spec) as model:
        check(actual, model, request)
    torch.testing.assert_close(first, again)


@pytest.mark.parametrize("num_workers", [1, 2])
def test_passes_that_memory_cannot_hold_are_made_smaller(make_world, num_workers, monkeypatch):
    world, request, sizes = make_world("llama"), reading(options(4)), list[int]()

    compute = Decoding.compute

    def within_memory(self: Decoding, ids: Tensor, mask: Tensor) -> Tensor:
        sizes.append(len(ids))
        if sizes[-1] > 12:
            raise MemoryError
        return compute(self, ids, mask)

    monkeypatch.setattr(Decoding, "compute", within_memory)
    trials, pack = world.mixed_trials(init_std=0.2)[:2], world.pack(max_tokens=2000, num_workers=num_workers)
    slots = [pack.join(spec, data) for spec, data in trials]
    actual = pack.answer(slots, {spec.name: request for spec, _ in trials})
    pack.base.clear()
    assert max(sizes) > 12 and pack.engine.max_tokens < 2000
    for spec, _ in trials:
        with world.attached(spec) as model:
            check(actual[spec.name], model, request)


# ---- writing ---------------------------------------------------------------------------------------------------------
def check_written(actual: Any, model: Any, source: EncodedRows) -> None:
    """Assert that each row is written as it is alone, but for those that rounding decides."""
    for row in np.flatnonzero(actual.margins > 1e-4):
        alone = write(model, GenerateRequest(source, np.array([row]), 9), tokenizer())
        assert actual.tokens.row(row).tolist() == alone.tokens.row(0).tolist()
        assert actual.margins[row] == pytest.approx(alone.margins[0], abs=1e-4)


@pytest.mark.parametrize("family", families(FAMILIES))
def test_what_is_written_is_written_behind_whole_prompts(make_world, family):
    world, source = make_world(family), rows()
    with world.attached(lively(world)) as model:
        with counted(model) as sizes:
            actual = write(model, GenerateRequest(source, np.arange(23), 9), tokenizer())
        check_written(actual, model, source)
    assert len(set(actual.margins.tolist())) > 11 and (actual.margins > 1e-4).mean() > 0.9
    assert family in GAPLESS or sum(shape.numel() for shape in sizes[:2]) < 0.7 * source.lengths.sum()


@pytest.mark.parametrize("family", families(FAMILIES))
@pytest.mark.parametrize("alike", [0, 12])
def test_prompts_of_unlike_lengths_are_read_in_passes_of_their_own_and_go_on_as_each_alone(
    make_world, monkeypatch, family, alike
):
    monkeypatch.setattr(generation, "RUN_TOKENS", 4)
    world, random = make_world(family), np.random.default_rng(0)
    shared = random.integers(4, VOCABULARY, alike)
    ids = [np.append(shared, random.integers(4, VOCABULARY, size)) for size in (30, 2, 9, 31, 1, 2, 9, 10, 30, 3)]
    source = EncodedRows(Ragged.of(ids, np.int32))
    with world.attached(lively(world)) as model:
        with counted(model) as sizes:
            actual = write(model, GenerateRequest(source, np.arange(10), 9), tokenizer())
        check_written(actual, model, source)
    widths = [shape[1] for shape in sizes]
    assert sum(width > 1 for width in widths) >= 3
    assert widths[-1] == 1 and len(set(actual.margins.tolist())) > 5


# ---- how far rows begin alike ----------------------------------------------------------------------------------------
@pytest.mark.parametrize("alike", [1, SIZE])
def test_a_beginning_that_saves_little_is_computed_with_each_row(make_world, alike):
    world, source = make_world("llama"), rows(9, alike=alike)
    with world.attached(lively(world)) as model, counted(model) as sizes:
        check(read(model, reading(source)), model, reading(source))
    assert (sizes[0] == (1, SIZE)) == (alike == SIZE)


def test_nothing_that_is_read_is_left_out(make_world):
    world, source = make_world("llama"), rows(9)
    assert source.positions is not None and source.targets is not None
    places = [[10, *source.positions.row(i)] for i in range(9)]
    targets = [[7, *source.targets.row(i)] for i in range(9)]
    early = replace(source, positions=Ragged.of(places, np.int32), targets=Ragged.of(targets, np.int64))
    with world.attached(lively(world)) as model, counted(model) as sizes:
        check(read(model, reading(early)), model, reading(early))
    assert sizes[0] == (1, 10)
