"""What rows begin with alike is computed once, and changes nothing: neither what is read nor what is written."""

from __future__ import annotations

from collections.abc import Callable, Iterator
from contextlib import contextmanager
from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st
from support.decoders import VOCABULARY, DecoderWorld, tokenizer
from support.families import families
from support.trials import write
from torch import Tensor

from loraxs_search.engine.planning import PassExecutor
from loraxs_search.engine.prefix_sharing import beginning_of, common_beginning
from loraxs_search.methods.loraxs import use_factor_store
from loraxs_search.tasks.encoded import Batch, EncodedRows, Ragged, RowSource
from loraxs_search.tasks.kinds import ForwardRequest, GenerateRequest, PassOutputs
from loraxs_search.trial.attach import attach, detach
from loraxs_search.trial.evaluate import ask

FAMILIES = ["llama", "qwen3", "mistral", "gemma2", "gpt2"]
GAPLESS = {"mistral", "gemma2"}  # their layers have windows
SIZE = 14


def rows(count: int, *, alike: int, seed: int = 0) -> EncodedRows:
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


def options(count: int, *, alike: int) -> EncodedRows:
    """Return two or three short rows behind each of some prompts, which begin with so many equal tokens."""
    random, before = np.random.default_rng(1), rows(count, alike=alike).ids
    prompt_of = np.repeat(np.arange(count), [2 + i % 2 for i in range(count)])
    ids = [random.integers(4, VOCABULARY, random.integers(1, 4)) for _ in prompt_of]
    return EncodedRows(
        Ragged.of(ids, np.int32),
        positions=Ragged.of([range(len(row)) for row in ids], np.int32),
        targets=Ragged.of([np.full(len(row), 7) for row in ids], np.int64),
        prompts=before,
        prompt_of=prompt_of,
    )


def logits(outputs: PassOutputs, batch: Batch) -> tuple[Tensor, ...]:
    """Return the logits at each row's first and last read."""
    assert outputs.project is not None
    ends = batch.counts.cumsum(0) - 1
    return outputs.project(outputs.read[ends]), outputs.project(outputs.read[ends - batch.counts + 1])


@torch.inference_mode()
def plain(model: Any, source: EncodedRows) -> tuple[Tensor, ...]:
    """Return the same of each row alone and whole."""
    whole, last, first = source.with_prompts(), [], []
    assert whole.positions is not None
    for row in range(len(whole)):
        given = torch.from_numpy(whole.ids.row(row).astype(np.int64))[None]
        places = whole.positions.row(row)
        own = model(input_ids=given).logits[0]
        last.append(own[int(places[-1])])
        first.append(own[int(places[0])])
    return torch.stack(last), torch.stack(first)


def asking(read: ForwardRequest) -> Any:
    return (yield read)


@pytest.fixture
def make_world(tmp_path: Path) -> Callable[[str], DecoderWorld]:
    return lambda family: DecoderWorld(tmp_path, family)


@contextmanager
def adapted(world: DecoderWorld) -> Iterator[Any]:
    with use_factor_store(world.factors):
        spec = world.spec("1", init_std=0.3, scale=2.0)
        model = attach(world.model, spec)
    try:
        yield model
    finally:
        detach(model, spec)


@contextmanager
def counted(model: Any) -> Iterator[list[int]]:
    """Count the tokens of each pass, padding included."""
    sizes: list[int] = []
    embedding = model.get_input_embeddings()
    handle = embedding.register_forward_pre_hook(lambda _, args: sizes.append(args[0].numel()))
    try:
        yield sizes
    finally:
        handle.remove()


@pytest.mark.parametrize("family", families(FAMILIES))
@pytest.mark.parametrize("make", [rows, options])
@pytest.mark.parametrize("side_by_side", [False, True])
def test_reads_are_those_of_whole_rows(
    make_world: Callable[..., Any], family: str, make: Callable[..., EncodedRows], side_by_side: bool
) -> None:
    world, source = make_world(family), make(23, alike=SIZE)
    chosen = np.random.default_rng(3).permutation(len(source))[:-3]
    if make is options:
        chosen = np.sort(chosen)  # prompts ascend
    taken = source.take(chosen)
    with adapted(world) as model, counted(model) as sizes:
        read = ForwardRequest(source, chosen, logits)
        actual = ask(model, RowSource(tokenizer()), asking(read), PassExecutor(2) if side_by_side else None)
        num_tokens = sum(sizes)
        expected = plain(model, taken)
    for own, other in zip(actual, expected, strict=True):
        torch.testing.assert_close(own, other, rtol=1e-4, atol=1e-5)
    if make is rows or family not in GAPLESS:  # of prompts, each token is computed for two or three rows already
        assert num_tokens < (0.7 if make is rows else 0.35) * taken.with_prompts().lengths.sum()


@pytest.mark.parametrize("size", [2, 20])
def test_a_prompt_that_no_row_continues_plays_no_part(make_world: Callable[..., Any], size: int) -> None:
    world, source = make_world("llama"), options(23, alike=SIZE)
    assert source.prompts is not None
    assert source.prompt_of is not None
    prompts = [np.full(size, 5), *map(source.prompts.row, range(1, 23))]
    source = replace(source, prompts=Ragged.of(prompts, np.int32))
    chosen = np.flatnonzero(source.prompt_of)
    with adapted(world) as model:
        actual = ask(model, RowSource(tokenizer()), asking(ForwardRequest(source, chosen, logits)))
        expected = plain(model, source.take(chosen))
    for own, other in zip(actual, expected, strict=True):
        torch.testing.assert_close(own, other, rtol=1e-4, atol=1e-5)


@pytest.mark.parametrize("family", families(FAMILIES))
def test_what_is_written_is_written_behind_whole_prompts(make_world: Callable[..., Any], family: str) -> None:
    world, source = make_world(family), rows(23, alike=SIZE)
    with adapted(world) as model, counted(model) as sizes:
        actual = write(model, GenerateRequest(source, np.arange(23), 9), tokenizer())
        first = sum(sizes[:2])
        alone = [write(model, GenerateRequest(source, np.array([row]), 9), tokenizer()) for row in range(23)]
    sure = actual.margins > 1e-4
    assert sure.mean() > 0.9
    assert len(set(actual.margins.tolist())) > 11
    for row in np.flatnonzero(sure):
        assert actual.tokens.row(row).tolist() == alone[row].tokens.row(0).tolist()
        assert actual.margins[row] == pytest.approx(alone[row].margins[0], abs=1e-4)
    if family not in GAPLESS:
        assert first < 0.7 * source.lengths.sum()


@pytest.mark.parametrize("num_workers", [1, 2])
def test_packs_write_behind_what_each_trials_prompts_begin_with(
    make_world: Callable[..., Any], num_workers: int
) -> None:
    world = make_world("llama")
    trials = [
        (replace(spec, hyperparameters=replace(spec.hyperparameters, init_std=0.3, scale=2.0)), data)
        for spec, data in world.mixed_trials()
    ]
    pack = world.pack(num_workers=num_workers)
    slots = [pack.join(spec, data) for spec, data in trials]
    sources = {spec.name: rows(9, alike=SIZE - 2 * i, seed=i) for i, (spec, _) in enumerate(trials)}
    requests = {name: GenerateRequest(source, np.arange(9), 9) for name, source in sources.items()}
    with counted(world.model) as sizes:
        written = pack.answer(slots, requests)
    pack.base.clear()
    assert sum(sizes[: 2 * num_workers]) < sum(int(source.lengths.sum()) for source in sources.values())
    for spec, _ in trials:
        with use_factor_store(world.factors):
            model = attach(world.model, spec)
        for row in np.flatnonzero(written[spec.name].margins > 1e-4):
            alone = write(model, GenerateRequest(sources[spec.name], np.array([row]), 9), tokenizer())
            assert written[spec.name].tokens.row(row).tolist() == alone.tokens.row(0).tolist()
        detach(model, spec)


def test_a_beginning_that_saves_little_is_computed_with_each_row() -> None:
    assert beginning_of(rows(9, alike=SIZE)) == SIZE
    assert beginning_of(rows(9, alike=1)) == 0
    assert beginning_of(rows(1, alike=SIZE)) == 0
    assert beginning_of(options(9, alike=SIZE)) == SIZE
    heads = replace(rows(9, alike=SIZE), positions=None, targets=None)
    assert beginning_of(heads) == 0


def test_nothing_that_is_read_is_left_out() -> None:
    source = rows(9, alike=SIZE)
    assert source.positions is not None
    early = replace(source, positions=Ragged.of([[10, *source.positions.row(i)] for i in range(9)], np.int32))
    assert beginning_of(early) == 10
    behind = early.behind(10)
    assert behind.positions is not None
    assert [int(behind.positions.row(i)[0]) for i in range(9)] == [0] * 9
    assert [behind.ids.row(i).tolist() for i in range(9)] == [source.ids.row(i)[10:].tolist() for i in range(9)]


@given(st.lists(st.lists(st.integers(0, 2), max_size=6), min_size=1, max_size=5))
def test_the_common_beginning_is_the_longest(made: list[list[int]]) -> None:
    arrays = [np.array(row, np.int32) for row in made]
    size = common_beginning(arrays)
    assert all(row[:size] == made[0][:size] for row in made)
    assert size == min(map(len, made)) or len({row[size] for row in made}) > 1
