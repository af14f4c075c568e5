"""Training is plain PEFT: a loop of one row at a time, in transformers and torch alone, ends where trials end.

Neither the lone trial nor the pack computes anything here that is compared: the loop has the base as transformers loads
it, PEFT's own layers, torch's losses and torch's optimizer. A trial gives its start, and the rows of each step.
"""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

import numpy as np
import pytest
import torch
from peft import get_peft_model
from support.bases import families
from support.trials import DecoderWorld, distance, train
from torch.nn.functional import cross_entropy
from transformers import AutoModelForCausalLM, AutoModelForSequenceClassification

from loraxs_search.methods.loraxs import LoraXSConfig, use_factor_store
from loraxs_search.records.trial import TrialSpec
from loraxs_search.tasks.encoded import TrainingBatches
from loraxs_search.tasks.prepared import PreparedTask
from loraxs_search.trial.snapshot import Snapshot

NUM_STEPS = 8
TOLERANCE = 2e-5
MAX_STEPS = 10


class Plain:
    """A trial's model in transformers and PEFT, and the loop that trains it."""

    def __init__(self, world: Any, spec: TrialSpec, data: PreparedTask, start: Snapshot) -> None:
        hyper = spec.hyperparameters
        is_decoder = isinstance(world, DecoderWorld)
        auto = AutoModelForCausalLM if is_decoder else AutoModelForSequenceClassification
        config = LoraXSConfig(
            r=hyper.rank,
            scale=hyper.scale,
            sigma=hyper.sigma,
            basis=hyper.basis,
            target_modules=list(hyper.target_modules),
            task_type="CAUSAL_LM" if is_decoder else "SEQ_CLS",
        )
        base = auto.from_pretrained(world.base.path, attn_implementation="eager")
        with use_factor_store(world.factors):
            self.model = get_peft_model(base, config).eval()
        self.data, self.hyper = data, hyper
        self.trained = {name: p for name, p in self.model.named_parameters() if p.requires_grad}
        assert self.trained.keys() == start.parameters.keys()
        with torch.no_grad():
            for name, parameter in self.trained.items():
                parameter.copy_(start.parameters[name])

    def losses(self, split: Any, row: int) -> torch.Tensor:
        """Return what is learnt of one row, alone and without padding: a loss for each read."""
        encoded = self.data.encoded(split)
        ids = torch.from_numpy(encoded.ids.row(row).astype(np.int64))[None]
        logits = self.model(input_ids=ids, attention_mask=torch.ones_like(ids)).logits[0]
        targets = torch.tensor(encoded.targets.row(row))  # type: ignore[union-attr]
        if encoded.positions is not None:
            logits = logits[torch.from_numpy(encoded.positions.row(row).astype(np.int64))]
        return cross_entropy(logits.view(len(targets), -1), targets, reduction="none")

    def train(self, num_steps: int) -> list[float]:
        hyper = self.hyper
        adapter = [p for name, p in self.trained.items() if "loraxs_R" in name]
        head = [p for name, p in self.trained.items() if "loraxs_R" not in name]
        groups = [{"params": adapter, "lr": hyper.learning_rate}, {"params": head, "lr": hyper.head_learning_rate}]
        self.optimizer = torch.optim.AdamW(
            [group for group in groups if group["params"]],
            betas=(hyper.adam_beta1, hyper.adam_beta2),
            weight_decay=hyper.weight_decay,
            foreach=False,
        )
        scheduler = torch.optim.lr_scheduler.LambdaLR(self.optimizer, hyper.lr_factor)
        batches = TrainingBatches(self.data.lengths("train"), hyper.batch_size, hyper.seed)
        means = []
        for step in range(num_steps):
            rows = batches.at(step)
            losses = torch.cat([self.losses("train", row) for row in rows.tolist()])
            losses.mean().backward()
            if hyper.max_grad_norm:
                torch.nn.utils.clip_grad_norm_(self.trained.values(), hyper.max_grad_norm)
            self.optimizer.step()
            self.optimizer.zero_grad()
            scheduler.step()
            means.append(float(losses.mean().detach()))
        return means

    @torch.no_grad()
    def validation_loss(self) -> float:
        return float(
            torch.cat([self.losses("validation", row) for row in range(self.data.num_rows("validation"))]).mean()
        )

    def state(self, like: Snapshot) -> Snapshot:
        moments = {
            f"{key}/{name}": self.optimizer.state[parameter][key]
            for name, parameter in self.trained.items()
            for key in ("exp_avg", "exp_avg_sq")
        }
        parameters = {name: parameter.detach() for name, parameter in self.trained.items()}
        return Snapshot(like.trial_id, like.step, parameters, moments, (), 0.0, 0)


def unlike(world: Any) -> list[dict[str, Any]]:
    """What trials may differ in within a pack."""
    half = tuple(world.names[: len(world.names) // 2])
    return [
        {},
        {"rank": 8, "scale": 2.0, "target_modules": half, "weight_decay": 0.1, "lr_schedule": "cosine"},
        {"rank": 2, "sigma": "sqrt", "batch_size": 5, "max_grad_norm": 0.0, "adam_beta1": 0.8, "warmup_ratio": 0.2},
        {"rank": 6, "basis": "bottom", "sigma": "output", "lr_schedule": "constant", "max_grad_norm": 0.05},
    ]


def check(world: Any, tasks: Sequence[PreparedTask]) -> None:
    specs = [world.spec(str(i), max_steps=MAX_STEPS, **own) for i, own in enumerate(unlike(world))]
    data = [tasks[i % len(tasks)] for i in range(len(specs))]
    pack = world.pack(num_workers=2)
    slots = [pack.join(spec, own) for spec, own in zip(specs, data, strict=True)]
    starts = [slot.snapshot() for slot in slots]
    train(pack, slots, NUM_STEPS)
    metrics = pack.evaluate(slots, "validation")
    packed = [slot.snapshot() for slot in slots]
    reports = [slot.report(metrics[slot.name]) for slot in slots]  # type: ignore[arg-type]
    pack.base.clear()
    for spec, own, start, snapshot, report in zip(specs, data, starts, packed, reports, strict=True):
        plain = Plain(world, spec, own, start)
        means = plain.train(NUM_STEPS)
        expected = plain.state(snapshot)
        alone = world.lone(spec, own, NUM_STEPS) if isinstance(world, DecoderWorld) else world.lone(spec, NUM_STEPS)
        assert distance(snapshot, expected) < TOLERANCE, spec
        assert distance(alone, expected) < TOLERANCE, spec
        assert report.train_loss == pytest.approx(np.mean(means), rel=1e-5)
        assert report.metrics["loss"] == pytest.approx(plain.validation_loss(), rel=1e-5)
        assert alone.reports[-1].metrics["loss"] == pytest.approx(plain.validation_loss(), rel=1e-5)


@pytest.mark.parametrize("family", families(["bert", "gpt2"]))
def test_classifiers_train_as_in_plain_peft(make_world, family):
    world = make_world(family)
    check(world, [world.data])


@pytest.mark.parametrize("family", families(["llama", "gemma2"]))
def test_decoders_train_as_in_plain_peft(tmp_path, family):
    world = DecoderWorld(tmp_path, family)
    check(world, world.tasks)
