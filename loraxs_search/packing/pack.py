"""The one training loop: rounds of one optimizer step for each slot of a base, and evaluations, in shared passes.

Clipping and AdamW are for all slots at once, each with its own rates, decay and betas. An optimizer of `torch.optim`
takes one of each a call, so that a pack of n trials would be 2 n optimizers. On an accelerator, where a call costs more
than its numbers, each operation here runs over the tensors of every trial in one call; on a CPU, and for large tensors
such as a whole model's, it is the passes over memory that cost: each tensor is passed over once, and no copies are
made. Both are what torch's optimizers are made of; their names are private, and this is the one file that knows them.
"""

from __future__ import annotations

import math
import time
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass
from itertools import chain, repeat
from typing import Any

import numpy as np
import torch
from torch import Tensor

from loraxs_search.engine.layers import Indices
from loraxs_search.engine.passes import Engine, PassExecutor, Requester, RowTooLongError
from loraxs_search.errors import LoraxsError, TrialDivergedError
from loraxs_search.packing.bases import Slot, TrainedBase
from loraxs_search.records.literals import Split
from loraxs_search.records.trial import TrialSpec
from loraxs_search.tasks.encoded import Batch
from loraxs_search.tasks.kinds import ForwardRequest, PassOutputs, Request, TaskKind
from loraxs_search.tasks.prepared import PreparedTask
from loraxs_search.trial.evaluate import split_metrics
from loraxs_search.trial.snapshot import Snapshot

Rows = Mapping[str, Indices]  # of each trial, by its name


class Pack:
    """Trains and scores slots on a base that it does not own. One caller at a time.

    A slot's numbers depend only on the slot, up to the rounding of shared passes; its failure is its own.

    Args:
        max_tokens: Padded tokens of one pass; see `Engine`.
        executor: Threads for passes side by side; None computes one pass at a time in the caller's thread.
    """

    def __init__(self, base: TrainedBase, *, max_tokens: int, executor: PassExecutor | None = None) -> None:
        self.base = base
        self.engine = Engine(base, executor, max_tokens)

    def join(self, spec: TrialSpec, data: PreparedTask, snapshot: Snapshot | None = None) -> Slot:
        """Make a slot for a trial, at its start or in the state of its snapshot; see `TrainedBase.start`."""
        slot = self.base.start(spec, data)
        if snapshot is not None:
            slot.restore(snapshot)
        return slot

    def step(self, slots: Sequence[Slot]) -> dict[str, LoraxsError]:
        """Take one optimizer step of each slot; return the errors of those that could not, by the trial's name.

        A slot with an error keeps its state from before the step; leave it out of the next round.
        """
        started, errors, updates = time.perf_counter(), dict[str, LoraxsError](), list[AdamWUpdate]()
        rows = {slot.name: slot.batches.at(slot.step) for slot in slots}
        lengths = [slot.data.lengths("train")[rows[slot.name]] for slot in slots]
        tokens, longest = [int(own.sum()) for own in lengths], max(int(own.max()) for own in lengths)
        losses = None
        try:
            losses = self.engine.within_memory(longest, lambda: self._gradients(slots, rows), learns=True)
        except RowTooLongError as error:
            if len(slots) == 1:
                return {slots[0].name: error}
        if losses is None:  # each by itself, once the error has let go of what was computed
            return {name: error for slot in slots for name, error in self.step([slot]).items()}
        # The norm of each slot's whole gradient.
        grads = [p.new_zeros(()) if p.grad is None else p.grad for slot in slots for p in slot.parameters]
        each = torch.split(torch.stack(torch._foreach_norm(grads)), [len(slot.parameters) for slot in slots])
        norms = torch.stack([torch.linalg.vector_norm(of_slot) for of_slot in each])
        numbers = torch.stack([torch.stack([losses[slot.name] for slot in slots]), norms]).tolist()
        for slot, loss, norm, num_tokens in zip(slots, *numbers, tokens, strict=True):
            of = {"training loss": loss, "gradient norm": norm}
            if bad := [(what, value) for what, value in of.items() if not math.isfinite(value)]:
                errors[slot.name] = TrialDivergedError(
                    f"`{bad[0][0]}` must be finite, but got {bad[0][1]} at step {slot.step + 1}.",
                    hint="lower the learning rates or the scale in the space",
                )
            else:
                updates += _updates(slot, norm)
                slot.stepped(loss, num_tokens)
        adamw(updates)
        _share_time(slots, tokens, time.perf_counter() - started)
        return errors

    def evaluate(self, slots: Sequence[Slot], split: Split) -> dict[str, dict[str, float] | LoraxsError]:
        """Score each slot on every row of a split; return metrics and mean loss, or the error, by the trial's name."""
        started, results = time.perf_counter(), dict[str, dict[str, float] | LoraxsError]()
        requests = {s.name: s.data.kind.score(s.data, split, np.arange(s.data.num_rows(split))) for s in slots}
        scores = None
        try:
            scores = self.engine.run(self._placed(slots), requests)
        except RowTooLongError as error:
            if len(slots) == 1:
                return {slots[0].name: error}
        if scores is None:
            return {name: result for slot in slots for name, result in self.evaluate([slot], split).items()}
        for slot in slots:
            score = scores[slot.name]
            try:
                results[slot.name] = (
                    score if isinstance(score, TrialDivergedError) else split_metrics(slot.data, split, score)
                )
            except TrialDivergedError as error:
                results[slot.name] = error
        _share_time(slots, [int(slot.data.lengths(split).sum()) for slot in slots], time.perf_counter() - started)
        return results

    def answer(self, slots: Sequence[Slot], requests: Mapping[str, Request]) -> dict[str, Any]:
        """Return the results of requests by the trial's name: tensors on the CPU, rows first, or what was written.

        All slots stay in place, also those that ask for nothing.
        """
        return self.engine.compute(self._placed(slots), requests)

    # ---- inside ------------------------------------------------------------------------------------------------------
    def _placed(self, slots: Sequence[Slot]) -> dict[str, Requester]:
        """Put slots in place, and return who may ask: all of them, by name."""
        self.base.place(slots)
        return {
            slot.name: Requester(index, slot.data, slot.data.kind.model.num_outputs)
            for index, slot in enumerate(self.base.slots)
        }

    def _gradients(self, slots: Sequence[Slot], rows: Rows) -> dict[str, Tensor]:
        """Set each slot's whole gradient, and return each slot's mean loss, a scalar on the device."""
        losses = {slot.name: torch.zeros((), device=slot.parameters[0].device) for slot in slots}
        counts = {s.name: int(s.data.encoded("train").counts(rows[s.name]).sum()) for s in slots}
        requests = {slot.name: ForwardRequest("train", rows[slot.name], _Losses(slot.data.kind)) for slot in slots}
        weights = {name: 1 / count for name, count in counts.items()}
        for share, (values, *_) in self.engine.run_passes(self._placed(slots), requests, weights):
            losses[share.name] += values.sum() / counts[share.name]
        self.base.collect()
        return losses


@dataclass(frozen=True)
class _Losses:
    """Reduces rows to their losses; equal for all trials of a task."""

    kind: TaskKind

    def __call__(self, outputs: PassOutputs, batch: Batch) -> tuple[Tensor, ...]:
        return (self.kind.loss(outputs, batch),)


def _share_time(slots: Sequence[Slot], tokens: Sequence[int], seconds: float) -> None:
    for slot, share in zip(slots, tokens, strict=True):
        slot.device_s += seconds * share / max(1, sum(tokens))


# ---- the optimizer ---------------------------------------------------------------------------------------------------
_EPS = 1e-8  # torch's own
_LARGE = 1 << 19  # numbers of the mean tensor


@dataclass(frozen=True)
class AdamWUpdate:
    """A tensor in training, with what AdamW does to it. A tensor without a gradient is left as it is.

    Args:
        clip: What the gradient is multiplied with.
        step: The step to take, from 1.
    """

    parameter: Tensor
    exp_avg: Tensor
    exp_avg_sq: Tensor
    learning_rate: float
    betas: tuple[float, float]
    weight_decay: float
    clip: float
    step: int


@torch.no_grad()
def adamw(updates: Sequence[AdamWUpdate], *, foreach: bool | None = None) -> None:
    """Take the step of each tensor, as `torch.optim.AdamW` does of a gradient that was clipped.

    Args:
        foreach: Make one call for each operation, over all tensors, instead of one for each tensor; None means what is
            faster.
    """
    trained = [t for t in updates if t.parameter.grad is not None]
    if not trained:
        return
    grads = [t.parameter.grad for t in trained if t.parameter.grad is not None]
    if any(t.clip != 1.0 for t in trained):
        torch._foreach_mul_(grads, [t.clip for t in trained])
    if foreach is None:
        foreach = grads[0].device.type != "cpu" and sum(grad.numel() for grad in grads) <= _LARGE * len(grads)
    if not foreach:
        for t, grad in zip(trained, grads, strict=True):
            torch._fused_adamw_(
                [t.parameter],
                [grad],
                [t.exp_avg],
                [t.exp_avg_sq],
                [],
                [torch.tensor(float(t.step), device=grad.device)],
                lr=t.learning_rate,
                beta1=t.betas[0],
                beta2=t.betas[1],
                weight_decay=t.weight_decay,
                eps=_EPS,
                amsgrad=False,
                maximize=False,
            )
        return
    parameters, means, squares = zip(*((t.parameter, t.exp_avg, t.exp_avg_sq) for t in trained), strict=True)
    if any(t.weight_decay for t in trained):
        torch._foreach_mul_(parameters, [1 - t.learning_rate * t.weight_decay for t in trained])
    torch._foreach_mul_(means, [t.betas[0] for t in trained])
    torch._foreach_add_(means, torch._foreach_mul(grads, [1 - t.betas[0] for t in trained]))
    torch._foreach_mul_(squares, [t.betas[1] for t in trained])
    torch._foreach_addcmul_(squares, grads, grads, [1 - t.betas[1] for t in trained])
    roots = torch._foreach_sqrt(squares)
    torch._foreach_div_(roots, [math.sqrt(1 - t.betas[1] ** t.step) for t in trained])
    torch._foreach_add_(roots, _EPS)
    sizes = [-t.learning_rate / (1 - t.betas[0] ** t.step) for t in trained]
    torch._foreach_addcdiv_(parameters, means, roots, sizes)


def _updates(slot: Slot, norm: float) -> Iterator[AdamWUpdate]:
    """Yield the AdamW update of each tensor of a slot, given the norm of its whole gradient."""
    hyper = slot.spec.hyperparameters
    factor, betas = hyper.lr_factor(slot.step), (hyper.adam_beta1, hyper.adam_beta2)
    limit = hyper.max_grad_norm
    clip = min(1.0, limit / (norm + 1e-6)) if limit > 0 else 1.0  # torch's own formula
    rates = chain(repeat(hyper.learning_rate, len(slot.adapter.tensors)), repeat(hyper.head_learning_rate))
    for parameter, moments, rate in zip(slot.parameters, slot.moments, rates, strict=False):
        yield AdamWUpdate(parameter, *moments, rate * factor, betas, hyper.weight_decay, clip, slot.step + 1)
