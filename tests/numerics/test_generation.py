"""What is written follows from the row and its adapter alone: tokens are those of `generate` with the merged model.

Rows whose two largest logits ever lie within 1e-4 are left out, and counted: rounding decides there. What rows begin
with alike, or stand behind, is computed once, and changes nothing that is read or written.
"""

from __future__ import annotations

import copy
import json
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from dataclasses import replace
from typing import Any

import numpy as np
import pytest
import torch
from support import toy_language
from support.bases import families
from support.trials import VOCABULARY, DecoderWorld, tokenizer, write
from torch import Tensor
from torch.nn.functional import cross_entropy

from loraxs_search.base_model.tokenizer import load_tokenizer
from loraxs_search.engine import generation, passes
from loraxs_search.engine.generation import Decoding, Generation, OpenSequence
from loraxs_search.engine.layers import AdaptedBase
from loraxs_search.engine.passes import PassExecutor, ask
from loraxs_search.errors import UsageError
from loraxs_search.records.task import BaseModel, DataSource
from loraxs_search.tasks.encoded import Batch, EncodedRows, Ragged, RowSource
from loraxs_search.tasks.kinds import ForwardRequest, Generated, GenerateRequest, PassOutputs, Sampling
from loraxs_search.tasks.prepared import prepare

FAMILIES = ["llama", "qwen2", "qwen3", "mistral", "gemma", "gemma2", "gpt2"]
GAPLESS = {"mistral", "gemma2"}  # their layers have windows
NEW = 20
MARGIN = 1e-4
ENDS = [2, 11, 20, 29, 38, 47, 56]  # so many that random models end rows at different steps
SIZE = 14  # of what rows begin with alike


def prompts(seed: int = 0, count: int = 24) -> EncodedRows:
    random = np.random.default_rng(seed)
    rows = [random.integers(4, VOCABULARY, random.integers(1, 16)) for _ in range(count)]
    return EncodedRows(Ragged.of(rows, np.int32))


def request(source: EncodedRows, rows: Sequence[int] | None = None, **changes: Any) -> GenerateRequest:
    return GenerateRequest(
        source, np.arange(len(source)) if rows is None else np.array(rows), **{"max_new_tokens": NEW} | changes
    )


@pytest.fixture
def make_world(tmp_path):
    def make(family: str, ends: Sequence[int] = ENDS) -> DecoderWorld:
        world = DecoderWorld(tmp_path, family)
        world.model.generation_config.eos_token_id = list(ends)
        return world

    return make


@contextmanager
def adapted(world: DecoderWorld, **changes: Any) -> Iterator[Any]:
    """Put an adapter on the base that changes what is written."""
    with world.attached(world.spec("1", **{"init_std": 0.3, "scale": 2.0} | changes)) as model:
        yield model


def little_memory(monkeypatch: pytest.MonkeyPatch, most: int, after: int = 0) -> list[int]:
    """Have memory run out in passes of more rows than `most` after some; return a list to which each adds its rows."""
    compute, sizes = Decoding.compute, list[int]()

    def within_memory(self: Decoding, ids: Tensor, mask: Tensor) -> Tensor:
        sizes.append(len(ids))
        if len(ids) > most and len(sizes) > after:
            raise MemoryError
        return compute(self, ids, mask)

    monkeypatch.setattr(Decoding, "compute", within_memory)
    return sizes


@torch.inference_mode()
def generated(model: Any, prompt: Any) -> list[int]:
    """Return what transformers writes after one prompt."""
    ids = torch.from_numpy(prompt.astype(np.int64))[None]
    out = model.generate(ids, attention_mask=torch.ones_like(ids), max_new_tokens=NEW, do_sample=False, use_cache=True)
    return out[0, len(prompt) :].tolist()


def tokens_of(written: Generated) -> list[list[int]]:
    return [written.tokens.row(i).tolist() for i in range(len(written.tokens))]


def check_sure(actual: Generated, expected: Sequence[Sequence[int]]) -> None:
    """Assert that rows are equal, but for a few whose likeliest tokens are nearly equally likely."""
    sure = actual.margins > MARGIN
    assert sure.mean() > 0.9
    different = [i for i, row in enumerate(tokens_of(actual)) if sure[i] and row != list(expected[i])]
    assert not different


@pytest.mark.parametrize("family", families(FAMILIES))
def test_tokens_are_those_of_generate_with_the_merged_model_in_any_company(make_world, family):
    world, source = make_world(family), prompts()
    with adapted(world) as model:
        actual = write(model, request(source), tokenizer())
        order = np.random.default_rng(2).permutation(len(source)).tolist()
        turned = write(model, request(source, order), tokenizer(), max_rows=7)
        fewer = write(model, request(source, [3, 3, 9, 0]), tokenizer(), max_rows=1)
        merged = copy.deepcopy(model).merge_and_unload()
    check_sure(actual, [generated(merged, source.ids.row(i)) for i in range(len(source))])
    check_sure(turned, [tokens_of(actual)[i] for i in order])
    check_sure(fewer, [tokens_of(actual)[i] for i in (3, 3, 9, 0)])
    assert actual.margins[order] == pytest.approx(turned.margins, abs=1e-4)
    assert len(set(map(tuple, tokens_of(actual)))) > len(source) // 2
    assert len(set(actual.tokens.lengths.tolist())) > 1  # some end at different steps
    for row, ended in zip(tokens_of(actual), actual.ended, strict=True):
        assert ended == (row[-1] in ENDS) and len(row) <= NEW


def test_rows_join_as_others_end(make_world, monkeypatch):
    """A batch need not be written to the end of its longest row before others begin."""
    world, source = make_world("llama", ends=range(2, VOCABULARY, 5)), prompts(count=40)
    sizes, follow = list[int](), Decoding.follow
    monkeypatch.setattr(Decoding, "follow", lambda *given: sizes.append(len(given[1])) or follow(*given))
    with adapted(world) as model:
        actual = write(model, request(source), tokenizer(), max_rows=8)
        steps = len(sizes)
        parts = [write(model, request(source, range(i, i + 8)), tokenizer()) for i in range(0, 40, 8)]
        assert max(sizes) <= 8 and steps < 0.8 * (len(sizes) - steps)
        monkeypatch.setattr(passes, "WRITING_TOKENS", 4 * (NEW + 15))  # four of the longest, or a few more
        sizes.clear()
        fewer = write(model, request(source), tokenizer())
        assert 4 <= max(sizes) <= 4 * (NEW + 15) // (NEW + 1)
    check_sure(actual, [row for part in parts for row in tokens_of(part)])
    check_sure(fewer, tokens_of(actual))


@pytest.mark.parametrize("family", families(["mamba", "lfm2", "falcon_h1"]))
def test_recurrent_bases_continue_rows_of_any_length_as_whole_passes_do(make_world, family):
    """Rows end at different steps, and several follow one that they share."""
    model, source = make_world(family).model, prompts(count=5)

    @torch.inference_mode()
    def states(ids: Any) -> torch.Tensor:
        return model.base_model(input_ids=torch.from_numpy(ids.astype(np.int64))[None])[0][0]

    rows = [source.ids.row(i) for i in range(len(source))]
    width = max(map(len, rows))
    ids, mask = np.zeros((len(rows), width), np.int64), np.zeros((len(rows), width), np.int64)
    for own_ids, own_mask, row in zip(ids, mask, rows, strict=True):
        own_ids[width - len(row) :], own_mask[width - len(row) :] = row, 1
    decoding, random = Decoding(model), np.random.default_rng(3)
    decoding.compute(torch.from_numpy(ids), torch.from_numpy(mask))
    fork = decoding.forked(np.array([4, 1, 1]))
    for part, left in ((decoding, [[0, 1, 2, 3, 4], [3, 1, 4], [1, 1]]), (fork, [[0, 1, 2], [2, 0]])):
        followed = [rows[i] for i in (range(5) if part is decoding else (4, 1, 1))]
        for chosen in left:
            part.select(np.array(chosen))
            followed = [followed[i] for i in chosen]
            for _ in range(3):
                tokens = random.integers(4, VOCABULARY, len(chosen))
                followed = [np.append(row, token) for row, token in zip(followed, tokens, strict=True)]
                expected = torch.stack([states(row)[-1] for row in followed])
                torch.testing.assert_close(part.follow(tokens), expected, atol=1e-4, rtol=1e-4)


def test_a_limit_ends_rows_that_go_on_and_no_more_rows_move_than_leave(make_world, monkeypatch):
    world, source, moves, select = make_world("llama"), prompts(), [], Decoding.select

    def watched(self: Decoding, rows: Any) -> None:
        moves.append(((rows != np.arange(len(rows))).sum(), len(self._mask_nS) - len(rows)))
        select(self, rows)

    monkeypatch.setattr(Decoding, "select", watched)
    with adapted(world) as model:
        long, short = (write(model, request(source, max_new_tokens=n), tokenizer()) for n in (NEW, 5))
    assert moves and all(moved <= left for moved, left in moves)
    assert tokens_of(short) == [row[:5] for row in tokens_of(long)]
    assert short.ended.tolist() == [len(row) < 5 or row[4] in ENDS for row in tokens_of(long)]
    assert 0 < short.ended.sum() < len(short.ended)


def test_rows_end_at_the_tokenizers_and_the_bases_end_tokens_and_at_stop_strings_in_the_text(make_world):
    world, source = make_world("llama", [2]), prompts()
    with adapted(world) as model:
        free = write(model, request(source), tokenizer())
        # A row whose first tokens are words, of which the first four differ.
        row = next(i for i, own in enumerate(tokens_of(free)) if min(own[:6]) > 3 and len(set(own[:4])) == 4)
        words, other = free.texts[row].split(), tokens_of(free)[row][2]
        stop = (f"{words[2][1:]} {words[3][:2]}", "never")  # begins inside one token and ends inside the next
        stopped = write(model, request(source, stop=stop), tokenizer())
        world.model.generation_config.eos_token_id = [other, 5]
        ended = write(model, request(source), tokenizer())
    for tokens, expected in zip(tokens_of(ended), tokens_of(free), strict=True):
        first = next((i for i, token in enumerate(expected) if token in {2, 5, other}), NEW - 1)
        assert tokens == expected[: first + 1]
    assert ended.texts[row] == tokenizer().decode(tokens_of(free)[row][:2])  # no end token is text
    assert stopped.texts[row] == f"{words[0]} {words[1]} {words[2][0]}"
    assert stopped.ended[row] and len(stopped.tokens.row(row)) == 4  # both tokens are there, and none after them
    for text, whole, tokens in zip(stopped.texts, free.texts, tokens_of(stopped), strict=True):
        assert text == whole.split(stop[0])[0]
        assert whole.startswith(tokenizer().decode(tokens, skip_special_tokens=True))


def test_drawn_tokens_follow_from_seed_and_prompt_at_any_place(make_world):
    world, source = make_world("llama", [2]), prompts()
    sampling = Sampling(seed=5, temperature=0.8, top_p=0.9)
    with adapted(world) as model:
        first = write(model, request(source, sampling=sampling), tokenizer())
        again = write(model, request(source, sampling=sampling), tokenizer(), max_rows=5)
        other = write(model, request(source, sampling=Sampling(6, 0.8, 0.9)), tokenizer())
        cold = write(model, request(source, sampling=Sampling(5, 1e-4)), tokenizer())
        likeliest = write(model, request(source, sampling=Sampling(5, 5.0, top_p=1e-6)), tokenizer())
        greedy = write(model, request(source), tokenizer())
        moved = write(model, request(source, [4, 0, 4, 2], sampling=sampling), tokenizer())
    assert tokens_of(first) == tokens_of(again)
    assert tokens_of(first) != tokens_of(other)
    check_sure(greedy, tokens_of(cold))
    check_sure(greedy, tokens_of(likeliest))
    assert tokens_of(moved) == [tokens_of(first)[row] for row in (4, 0, 4, 2)]


@pytest.mark.parametrize("can_be_joined", [True, False])
@pytest.mark.parametrize("family", families(["llama", "mistral", "gemma2"]))
def test_sequences_join_and_leave_between_tokens(make_world, family, can_be_joined, monkeypatch):
    """Some models have layers whose states cannot stand side by side once rows differ in length."""
    world, asked = make_world(family), request(prompts(count=15))
    start = Decoding.__init__

    def started(self: Decoding, model: Any) -> None:
        start(self, model)
        self.can_be_joined = can_be_joined

    with adapted(world) as model:
        expected = write(model, asked, tokenizer())
        monkeypatch.setattr(Decoding, "__init__", started)
        generation, sequences = Generation(AdaptedBase(model)), OpenSequence.of(asked, tokenizer(), model)
        left, sizes = [], []
        for chosen in np.split(np.arange(15), [6, 7, 12]):
            owners = np.arange(len(chosen)) % 3  # rows of one owner stand side by side, old ones and new ones
            left += generation.join([sequences[i] for i in chosen.tolist()], np.sort(owners))
            for _ in range(3):
                sizes.append(len(generation))
                left += generation.step()
        while len(generation):
            left += generation.step()
    assert max(sizes) > 6 and sorted(map(id, left)) == sorted(map(id, sequences))
    sure = expected.margins > MARGIN
    for number, sequence in enumerate(sequences):
        assert not sure[number] or sequence.tokens == expected.tokens.row(number).tolist()
        assert sequence.margin == pytest.approx(expected.margins[number], abs=1e-4) or not sure[number]


# ---- reading ---------------------------------------------------------------------------------------------------------
def rows(count: int = 23, *, alike: int = SIZE) -> EncodedRows:
    """Return rows that begin with so many equal tokens; the last two of each are read."""
    random = np.random.default_rng(0)
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


def read(model: Any, asked: ForwardRequest, executor: PassExecutor | None = None) -> tuple[Tensor, ...]:
    def asking() -> Any:
        return (yield asked)

    found: tuple[Tensor, ...] = ask(model, RowSource(tokenizer()), asking(), executor)
    return found


def check(actual: tuple[Tensor, ...], model: Any, asked: ForwardRequest) -> None:
    (losses, logits), expected = actual, plain(model, asked.source, asked.rows)
    torch.testing.assert_close(losses, expected[0], rtol=1e-5, atol=1e-5)
    torch.testing.assert_close(logits, expected[1], rtol=1e-4, atol=1e-5)


@contextmanager
def counted(model: Any) -> Iterator[list[torch.Size]]:
    """Collect the shape of each pass."""
    sizes: list[torch.Size] = []
    handle = model.get_input_embeddings().register_forward_pre_hook(lambda _, args: sizes.append(args[0].shape))
    try:
        yield sizes
    finally:
        handle.remove()


# ---- packs -----------------------------------------------------------------------------------------------------------
def lone(world: DecoderWorld, spec: Any, asked: GenerateRequest) -> Generated:
    with world.attached(spec) as model:
        return write(model, asked, tokenizer())


@pytest.mark.parametrize("family", families(["llama", "qwen3", "mistral", "gemma2"]))
def test_a_pack_writes_what_lone_trials_write(make_world, family):
    world, drawn = make_world(family), Sampling(3, 0.7, 0.9)
    trials, pack = world.mixed_trials(init_std=0.3), world.pack(num_workers=2)
    slots = [pack.join(spec, data) for spec, data in trials]
    asked = {
        spec.name: request(
            prompts(i, 5 + 3 * i),
            max_new_tokens=NEW - i,
            stop=("w9 w",) if i % 2 else (),
            sampling=drawn if i == 2 else None,
        )
        for i, (spec, _) in enumerate(trials)
    }
    written = pack.answer(slots, asked)
    pack.base.clear()
    assert len({written[spec.name].texts[0] for spec, _ in trials}) > 1
    for spec, _ in trials:
        alone = lone(world, spec, asked[spec.name])
        check_sure(alone, tokens_of(written[spec.name]))
        assert written[spec.name].margins == pytest.approx(alone.margins, abs=1e-4)
        assert written[spec.name].ended.tolist() == alone.ended.tolist()


def test_some_slots_write_while_others_read_or_rest(make_world):
    """Here the slots adapt the upper layer alone: reads of a split skip the lower one, all else does not."""
    world = make_world("llama")
    top = tuple(name for name in world.names if ".1." in name)
    specs = [world.spec(str(i), init_std=0.3, rank=2 + i, target_modules=top) for i in range(4)]
    data, pack = world.tasks[0], world.pack(num_workers=2)
    slots = [pack.join(spec, data) for spec in specs]
    read = ForwardRequest("validation", np.arange(33), reduced)
    first = pack.answer(slots, {"0": request(prompts(3)), "1": read, "3": request(prompts(4))})
    assert pack.base.prefix.depth == 1
    behind = reading(options(2))
    second = pack.answer(slots, {"0": read, "1": request(prompts(3)), "2": behind})
    reads = pack.answer(slots, {spec.name: read for spec in specs})
    pack.base.clear()
    for trial, source, written in [("0", 3, first["0"]), ("3", 4, first["3"]), ("1", 3, second["1"])]:
        check_sure(written, tokens_of(lone(world, specs[int(trial)], request(prompts(source)))))
    assert torch.allclose(first["1"][0], reads["1"][0], rtol=1e-5)
    assert torch.allclose(second["0"][0], reads["0"][0], rtol=1e-5)
    with world.attached(specs[2]) as model:
        check(second["2"], model, behind)


@pytest.mark.parametrize("num_workers", [1, 2])
def test_a_batch_that_memory_cannot_hold_is_halved(make_world, num_workers, monkeypatch):
    world, sizes = make_world("llama"), little_memory(monkeypatch, 4, after=3)
    trials, pack = world.mixed_trials(init_std=0.3)[:3], world.pack(num_workers=num_workers)
    slots, asked = [pack.join(spec, data) for spec, data in trials], request(prompts(5, 9))
    written = pack.answer(slots, {spec.name: asked for spec, _ in trials})
    later = len(sizes)
    again = pack.answer(slots, {spec.name: asked for spec, _ in trials})
    pack.base.clear()
    monkeypatch.undo()
    assert max(sizes[:later]) > 4 and max(sizes[later:]) <= 4
    for spec, _ in trials:
        alone = lone(world, spec, asked)
        check_sure(alone, tokens_of(written[spec.name]))
        check_sure(alone, tokens_of(again[spec.name]))


def test_what_one_row_needs_must_fit_into_memory(make_world, monkeypatch):
    world = make_world("llama")

    def full(*_: Any) -> None:
        raise MemoryError

    monkeypatch.setattr(Decoding, "compute", full)
    ((spec, data), *_), pack = world.mixed_trials(init_std=0.3), world.pack()
    with pytest.raises(UsageError, match="14 tokens") as refusal:
        pack.answer([pack.join(spec, data)], {spec.name: request(prompts(5, 2), max_new_tokens=3)})
    assert "max_new_tokens" in str(refusal.value.hint)


def test_a_trial_that_diverged_ends_its_rows_and_no_others(make_world):
    world = make_world("llama")
    trials, pack = world.mixed_trials(init_std=0.3)[:3], world.pack()
    slots = [pack.join(spec, data) for spec, data in trials]
    with torch.no_grad():
        slots[1].adapter.tensors[0].fill_(torch.nan)
    asked = request(prompts())
    written = pack.answer(slots, {spec.name: asked for spec, _ in trials})
    pack.base.clear()
    assert np.isnan(written["2"].margins).all() and (written["2"].tokens.lengths == 1).all()
    for spec, _ in (trials[0], trials[2]):
        check_sure(lone(world, spec, asked), tokens_of(written[spec.name]))


# ---- beginnings and prompts in reading -------------------------------------------------------------------------------
SOURCES = {
    "rows": rows(),
    "prompts": options(),
    "prompts that begin alike": options(1, 23, longest=6, most=3, alike=SIZE),
}


@pytest.mark.parametrize("family", families(FAMILIES))
@pytest.mark.parametrize("name", SOURCES)
def test_lone_trials_read_what_whole_rows_give(make_world, family, name):
    world, source = make_world(family, [2]), SOURCES[name]
    chosen = np.random.default_rng(3).permutation(len(source))[:-3]
    asked = reading(source, chosen if name != "prompts that begin alike" else np.sort(chosen))
    with adapted(world) as model, counted(model) as sizes:
        actual = read(model, asked)
        num_tokens = sum(shape.numel() for shape in sizes)
        check(actual, model, asked)
        check(read(model, asked, PassExecutor(2)), model, asked)
    whole = source.take(np.sort(chosen)).with_prompts().lengths.sum()
    if name == "rows" or family not in GAPLESS:  # of prompts, each token is computed for two or three rows already
        assert num_tokens < {"rows": 0.7, "prompts": 0.8, "prompts that begin alike": 0.35}[name] * whole


@pytest.mark.parametrize("size", [2, 20])
def test_a_prompt_that_no_row_continues_plays_no_part(make_world, size):
    world, source = make_world("llama", [2]), options(alike=SIZE)
    assert source.prompts is not None and source.prompt_of is not None
    prompts = [np.full(size, 5), *map(source.prompts.row, range(1, 9))]
    asked = reading(replace(source, prompts=Ragged.of(prompts, np.int32)), np.flatnonzero(source.prompt_of))
    with adapted(world) as model:
        check(read(model, asked), model, asked)


@pytest.mark.parametrize("num_workers", [1, 2])
def test_passes_that_memory_cannot_hold_are_made_smaller(make_world, num_workers, monkeypatch):
    world, asked, sizes = make_world("llama", [2]), reading(options(4)), little_memory(monkeypatch, 12)
    trials, pack = world.mixed_trials(init_std=0.2)[:2], world.pack(max_tokens=2000, num_workers=num_workers)
    slots = [pack.join(spec, data) for spec, data in trials]
    actual = pack.answer(slots, {spec.name: asked for spec, _ in trials})
    pack.base.clear()
    assert max(sizes) > 12 and pack.engine.max_tokens < 2000
    for spec, _ in trials:
        with world.attached(spec) as model:
            check(actual[spec.name], model, asked)


# ---- beginnings in writing -------------------------------------------------------------------------------------------
def check_written(actual: Any, model: Any, source: EncodedRows) -> None:
    """Assert that each row is written as it is alone, but for those that rounding decides."""
    for row in np.flatnonzero(actual.margins > 1e-4):
        alone = write(model, GenerateRequest(source, np.array([row]), 9), tokenizer())
        assert actual.tokens.row(row).tolist() == alone.tokens.row(0).tolist()
        assert actual.margins[row] == pytest.approx(alone.margins[0], abs=1e-4)


@pytest.mark.parametrize("family", families(FAMILIES))
def test_what_is_written_is_written_behind_whole_prompts(make_world, family):
    world, source = make_world(family, [2]), rows()
    with adapted(world) as model:
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
    world, random = make_world(family, [2]), np.random.default_rng(0)
    shared = random.integers(4, VOCABULARY, alike)
    ids = [np.append(shared, random.integers(4, VOCABULARY, size)) for size in (30, 2, 9, 31, 1, 2, 9, 10, 30, 3)]
    source = EncodedRows(Ragged.of(ids, np.int32))
    with adapted(world) as model:
        with counted(model) as sizes:
            actual = write(model, GenerateRequest(source, np.arange(10), 9), tokenizer())
        check_written(actual, model, source)
    widths = [shape[1] for shape in sizes]
    assert sum(width > 1 for width in widths) >= 3
    assert widths[-1] == 1 and len(set(actual.margins.tolist())) > 5


def test_a_beginning_that_saves_little_or_is_read_is_computed_with_each_row(make_world):
    world, long, short = make_world("llama", [2]), rows(9), rows(9, alike=1)
    assert long.positions is not None and long.targets is not None
    places = [[10, *long.positions.row(i)] for i in range(9)]
    targets = [[7, *long.targets.row(i)] for i in range(9)]
    early = replace(long, positions=Ragged.of(places, np.int32), targets=Ragged.of(targets, np.int64))
    with adapted(world) as model:
        for source, first in ((long, SIZE), (early, 10), (short, None)):
            with counted(model) as sizes:
                check(read(model, reading(source)), model, reading(source))
            assert sizes[0] == (1, first) if first else (1, 1) not in sizes


# ---- model -----------------------------------------------------------------------------------------------------------
def test_the_template_s_end_of_a_turn_ends_what_is_written(tmp_path):
    """An adapter learns [TURN] behind each answer, with which neither the base nor its tokenizer ends."""
    toy_language.save_base(tmp_path, chat=True)
    rows = [{"words": word, "said": "w1 w2"} for word in toy_language.WORDS]
    files = dict.fromkeys(("train", "validation", "test"), str(tmp_path / "rows.jsonl"))
    (tmp_path / "rows.jsonl").write_text("".join(json.dumps(row) + "\n" for row in rows))
    task = toy_language.writing(source=DataSource(data_files=files), answer="{said}")
    messages = {"messages": [{"role": "user", "content": "say {words}"}]}
    task = replace(task, settings={k: v for k, v in task.settings.items() if k != "prompt"} | messages)
    base = BaseModel("toy", str(tmp_path), "0" * 64)
    world = DecoderWorld.of(base, [prepare(task, load_tokenizer(base))])
    spec = world.spec("1", rank=16, learning_rate=0.05, batch_size=16, max_steps=80)
    metrics = world.lone(spec, world.tasks[0], 80).reports[-1].metrics
    assert metrics["exact_match"] == 1.0
    assert metrics["unended"] == 0.0
