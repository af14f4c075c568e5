"""Language models in packs: what is learnt, where the topmost layer is computed, what ends a text."""

from __future__ import annotations

import json
from collections import Counter
from dataclasses import replace

import pytest
import torch
from support import toy_language
from support.decoders import DecoderWorld
from support.families import families
from torch.nn.functional import cross_entropy

from loraxs_search.base_model.tokenizer import load_tokenizer
from loraxs_search.records.base import BaseModel
from loraxs_search.records.task import DataSource
from loraxs_search.tasks.prepared import prepare


@pytest.mark.parametrize("family", families(["llama", "gemma2"]))
def test_with_r_zero_the_loss_is_the_base_s_own_over_the_learnt_tokens(tmp_path, family):
    world = DecoderWorld(tmp_path, family)
    data, pack = world.tasks[1], world.pack()
    slot = pack.join(world.spec("1", init_std=0.0), data)
    scored = pack.evaluate([slot], "validation")[slot.name]
    pack.base.clear()
    batch = data.collate("validation", range(data.num_rows("validation")))
    assert batch.reads is not None
    labels = torch.full_like(batch.inputs["input_ids"], -100)
    labels[batch.reads[:, 0], batch.reads[:, 1]] = batch.targets
    logits = world.model(**batch.inputs).logits
    expected = cross_entropy(logits.flatten(0, 1), labels.flatten())
    assert isinstance(scored, dict)
    assert scored["loss"] == pytest.approx(float(expected), rel=1e-5)


def test_the_topmost_layer_is_computed_where_a_pass_reads_it(tmp_path):
    world = DecoderWorld(tmp_path, "llama")
    pack, num_positions = world.pack(), Counter[str]()
    slots = [pack.join(spec, data) for spec, data in world.mixed_trials()[:2]]
    assert pack.step(slots) == {}  # places what replaces the base's own layers
    for name in world.names:
        count = lambda _, args, name=name: num_positions.update({name: args[0][..., 0].numel()})  # noqa: E731
        world.model.get_submodule(name).register_forward_pre_hook(count)
    rows = {slot.name: slot.batches.at(slot.step) for slot in slots}
    num_reads = sum(int(slot.data.encoded("train").counts(rows[slot.name]).sum()) for slot in slots)
    num_tokens = sum(int(slot.data.lengths("train")[rows[slot.name]].sum()) for slot in slots)
    assert pack.step(slots) == {}
    pack.base.clear()
    behind = {name for name in world.names if ".1.mlp" in name or name.endswith("1.self_attn.o_proj")}
    (num_behind,) = {num_positions[name] for name in behind}
    assert num_reads <= num_behind <= 1.1 * num_reads  # some are repeated, so that shapes are few
    assert min(num_positions[name] for name in set(world.names) - behind) >= num_tokens > num_behind


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
