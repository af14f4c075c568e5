"""One trial: an adapter on a shared frozen base, trained step by step, reported, paused and resumed."""

from __future__ import annotations

import logging
import math
import time
from collections.abc import Callable, Iterator, Sequence
from typing import Any, cast

import numpy as np
import numpy.typing as npt
import torch
from peft import PeftModel
from torch import Tensor, nn
from transformers import PreTrainedModel

from loraxs_search.base_model.head import (
    head_as_loaded,
    head_names,
    init_head,
    make_identity,
    missing_poolers,
    output_head,
    peft_task_type,
)
from loraxs_search.base_model.layers import repeated_layers
from loraxs_search.base_model.pooling import pooling_of
from loraxs_search.engine.out_of_memory import MEMORY_ERRORS, GradientCheckpointing, is_out_of_memory, row_too_long
from loraxs_search.engine.passes import forward
from loraxs_search.errors import BaseModelError, FactorMismatchError, TrialDivergedError
from loraxs_search.factors.store import FactorStore
from loraxs_search.factors.verify import agrees
from loraxs_search.methods import method_of
from loraxs_search.methods._base import HeadPlan
from loraxs_search.methods.starting import started_head
from loraxs_search.records.literals import Head
from loraxs_search.records.task import OutputScale
from loraxs_search.records.trial import Hyperparameters, TrialReport, TrialSpec
from loraxs_search.tasks.encoded import TrainingBatches
from loraxs_search.tasks.prepared import PreparedTask
from loraxs_search.trial.evaluate import evaluate
from loraxs_search.trial.snapshot import Snapshot

log = logging.getLogger(__name__)
Indices = npt.NDArray[np.int64]
_FROZEN_ATOL = 1e-3  # the longest vector with the other sign moves a sum by some 0.1 (384 dimensions), rounding by 1e-6


class _BatchGradient:
    """Computes gradients of a model's trained parameters.

    Where memory runs out, a batch is computed in twice as many passes, from then on; and where one row is too much, the
    layers are computed again in backward.
    """

    def __init__(
        self, model: PeftModel | PreTrainedModel, parameters: Sequence[Tensor], data: PreparedTask, device: torch.device
    ) -> None:
        self._model, self._parameters, self._data, self._device = model, parameters, data, device
        self._checkpointing = GradientCheckpointing(_layers(model))
        self._num_passes = 1

    def compute(self, rows: Indices) -> tuple[float, int]:
        """Add the gradient of the mean loss of train rows; return that loss, and the rows' real tokens.

        Raises:
            UsageError: memory does not hold one row.
        """
        while True:
            try:
                with self._checkpointing.placed():
                    return self._sum(rows)
            except MEMORY_ERRORS as error:
                if not is_out_of_memory(error):
                    raise
                for parameter in self._parameters:
                    parameter.grad = None
                if not self._save_memory(len(rows)):
                    raise row_too_long(int(self._data.lengths("train")[rows].max())) from error
            torch.cuda.empty_cache()

    # ---- inside ------------------------------------------------------------------------------------------------------
    def _sum(self, rows: Indices) -> tuple[float, int]:
        count = int(self._data.encoded("train").counts(rows).sum())
        loss, num_tokens = 0.0, 0
        for part in self._passes(rows):
            batch = self._data.collate("train", part).to(self._device)
            own = self._data.kind.loss(forward(self._model, batch.inputs, batch.reads), batch).sum() / count
            own.backward()  # type: ignore[no-untyped-call]
            loss, num_tokens = loss + float(own.detach()), num_tokens + batch.num_tokens
        return loss, num_tokens

    def _passes(self, rows: Indices) -> Iterator[Indices]:
        if self._num_passes == 1:
            yield rows
            return
        by_length = rows[np.argsort(self._data.lengths("train")[rows], kind="stable")]
        yield from np.array_split(by_length, min(self._num_passes, len(rows)))

    def _save_memory(self, num_rows: int) -> bool:
        """Do what makes the next try need less memory; return False where there is nothing left to do."""
        if self._num_passes < num_rows:
            self._num_passes *= 2
            log.warning("Memory ran out; a batch takes %d passes from now on.", min(self._num_passes, num_rows))
            return True
        if self._checkpointing.turn_on():
            self._num_passes = 1  # a row takes much less now
            log.warning("Memory ran out with one row; layers are computed again in backward from now on.")
            return True
        return False


def _layers(model: PeftModel | PreTrainedModel) -> nn.ModuleList | None:
    """Return the layers that the base repeats; None if it has several lists of them or none."""
    base = cast("PreTrainedModel", model.get_base_model() if isinstance(model, PeftModel) else model)
    name = repeated_layers(base, (name for name, _ in base.named_modules()))
    return cast("nn.ModuleList", base.get_submodule(name)) if name else None


def mean_loss(losses: Sequence[float]) -> float:
    """Return the mean loss of the training steps since the report before; 0 where there was none."""
    return sum(losses) / max(1, len(losses))


def check_step(loss: float, norm: float, step: int) -> None:
    """Refuse a step whose loss or gradient is not finite.

    Args:
        norm: Norm of the whole gradient, before it is clipped.
        step: From 1.
    Raises:
        TrialDivergedError: the loss or the norm is not finite; the message has it.
    """
    for what, value in (("training loss", loss), ("gradient norm", norm)):
        if not math.isfinite(value):
            raise TrialDivergedError(
                f"`{what}` must be finite, but got {value} at step {step}.",
                hint="lower the learning rates or the scale in the space",
            )


def attach(
    model: PreTrainedModel, spec: TrialSpec, factors: FactorStore | None = None, outputs: OutputScale | None = None
) -> PeftModel | PreTrainedModel:
    """Put a fresh adapter and head on `model`; every number drawn depends only on the trial's seed.

    Args:
        factors: The store that factors come from; None means the one in use.
        outputs: What the outputs mean in training, for a head that starts from another adapter's.
    """
    hyper = spec.hyperparameters
    trained, idle = _start_head(model, hyper.head, hyper.seed)
    if idle:
        check_distinct(trained[0], idle)
    _continue_head(model, hyper, trained, outputs or OutputScale())
    # With a task type PEFT would train the whole head by itself.
    task_type = None if idle else peft_task_type(model)
    plan = HeadPlan(trained, (*idle, *missing_poolers(model)), task_type, pooling_of(model))
    adapted = method_of(hyper).attach(model, hyper, plan, factors)
    adapted.eval()  # dropout off: a result must not depend on who shares the device
    return adapted


def _start_head(model: PreTrainedModel, head: Head, seed: int) -> tuple[tuple[str, ...], tuple[str, ...]]:
    """Draw the head of a base; return the modules of it that are trained, and the layers that are made the identity."""
    init_head(model, seed)
    trained: tuple[str, ...] = head_names(model)
    idle: tuple[str, ...] = ()
    if trained and head == "output":
        output, idle = output_head(model)
        trained = (output,)
        with torch.no_grad():
            for name, value in head_as_loaded(model).items():
                model.get_parameter(name).copy_(value)
    make_identity(model, idle)
    return trained, idle


@torch.no_grad()
def _continue_head(
    model: PreTrainedModel, hyper: Hyperparameters, trained: Sequence[str], outputs: OutputScale
) -> None:
    """Start the head from that of another adapter, where the trial starts from one that has the same."""
    own = {f"{top}.{name}": p for top in trained for name, p in model.get_submodule(top).named_parameters()}
    output = output_head(model)[0] if own else ""
    for name, value in started_head(hyper, own, output, outputs).items():
        own[name].copy_(value)


def check_distinct(output: str, idle: Sequence[str]) -> None:
    """Refuse an output layer whose name ends that of a layer before it.

    PEFT finds modules by the end of their name: DistilBERT's `pre_classifier` would be trained as `classifier`.

    Raises:
        BaseModelError: with both names.
    """
    if ambiguous := [name for name in idle if name.endswith(output)]:
        raise BaseModelError(
            f"`head: output` needs an output layer whose name ends no other's, but {output} ends {ambiguous[0]}.",
            hint="use `head: full` with this base",
        )


def detach(model: PeftModel | PreTrainedModel, spec: TrialSpec) -> PreTrainedModel:
    """Take the adapter off and return the base, frozen as before."""
    return method_of(spec.hyperparameters).detach(model)


class TrialRun:
    """Trains one trial on a base it does not own.

    The state is adapter, head and AdamW's moments; data order, schedule and seeds are functions of (seed, step). So a
    run resumed from a snapshot continues bit for bit on the same device with the same number of threads.

    Args:
        model: The base with this trial's adapter, from `attach`.
        data: The prepared task.
        snapshot: State to continue from; None starts at step 0.
    """

    def __init__(
        self,
        spec: TrialSpec,
        model: PeftModel | PreTrainedModel,
        data: PreparedTask,
        device: torch.device,
        snapshot: Snapshot | None = None,
    ) -> None:
        self.spec, self.model, self.data = spec, model, data
        self._device = device
        hyper = spec.hyperparameters
        self._method = method_of(hyper)
        self._batches = TrainingBatches(data.lengths("train"), hyper.batch_size, hyper.seed)
        self._parameters = {n: p for n, p in model.named_parameters() if p.requires_grad}
        self._gradient = _BatchGradient(model, list(self._parameters.values()), data, device)
        self._optimizer = self._make_optimizer()
        self.step, self._device_s, self._num_tokens = 0, 0.0, 0
        self._reports: tuple[TrialReport, ...] = ()
        self._retrained = 0
        self._size, self._frozen = self._method.measure(model), self._method.frozen_cosines(model)
        if snapshot is not None:
            self._load(snapshot)

    @property
    def done(self) -> bool:
        return self.step >= self.spec.hyperparameters.max_steps

    def advance(self, until: int, before_step: Callable[[], None] = lambda: None) -> TrialReport:
        """Train up to step `until` (at most `max_steps`), score the validation split, and return the report.

        Args:
            before_step: Called ahead of each step; what it raises ends the training there.
        Raises:
            TrialDivergedError: the loss, its gradient or a metric is not finite.
        """
        started, first = time.perf_counter(), self.step
        losses = self.train(until, before_step)
        since = max(0, self._reports[-1].step - first) if self._reports else 0
        trained = time.perf_counter()
        metrics = evaluate(self.model, self.data, "validation")
        self._device_s += time.perf_counter() - started
        report = TrialReport(
            trial_id=self.spec.trial_id,
            step=self.step,
            metrics=metrics,
            train_loss=mean_loss(losses[since:]),
            device_s=self._device_s,
            num_tokens=self._num_tokens,
            size=self._size,
            retrained_steps=self._retrained,
            scoring_s=time.perf_counter() - trained,
        )
        self._reports = (*self._reports, report)
        return report

    def train(self, until: int, before_step: Callable[[], None] = lambda: None) -> list[float]:
        """Train up to step `until` (at most `max_steps`) without scoring, and return the loss of each step.

        Raises:
            TrialDivergedError: the loss or its gradient is not finite.
        """
        losses = list[float]()
        for _ in range(self.step, min(until, self.spec.hyperparameters.max_steps)):
            before_step()
            losses.append(self._train_step())
        return losses

    def snapshot(self) -> Snapshot:
        """Return the whole state; tensors are copies on the CPU."""
        moments = {}
        for name, parameter in self._parameters.items():
            for key, value in self._optimizer.state.get(parameter, {}).items():
                if key != "step":  # the same for every tensor and equal to `self.step`
                    moments[f"{key}/{name}"] = value.detach().to("cpu", copy=True)
        parameters = {n: p.detach().to("cpu", copy=True) for n, p in self._parameters.items()}
        return Snapshot(
            trial_id=self.spec.trial_id,
            step=self.step,
            parameters=parameters,
            moments=moments,
            reports=self._reports,
            device_s=self._device_s,
            num_tokens=self._num_tokens,
            study=self.spec.study,
            retrained_steps=self._retrained,
            frozen=self._frozen,
        )

    # ---- inside ------------------------------------------------------------------------------------------------------
    def _make_optimizer(self) -> torch.optim.AdamW:
        hyper = self.spec.hyperparameters
        rates = {True: hyper.learning_rate, False: hyper.head_learning_rate}
        owned = {name: self._method.is_adapter(name, self.model) for name in self._parameters}
        groups = [
            {"params": [p for n, p in self._parameters.items() if owned[n] is adapter], "lr": lr, "base_lr": lr}
            for adapter, lr in rates.items()
        ]
        betas = (hyper.adam_beta1, hyper.adam_beta2)
        return torch.optim.AdamW(groups, betas=betas, weight_decay=hyper.weight_decay, fused=True)

    def _train_step(self) -> float:
        hyper = self.spec.hyperparameters
        value, num_tokens = self._gradient.compute(self._batches.at(self.step))
        norm = torch.nn.utils.clip_grad_norm_(self._parameters.values(), hyper.max_grad_norm or math.inf)
        check_step(value, float(norm), self.step + 1)
        factor = hyper.lr_factor(self.step)
        for group in self._optimizer.param_groups:
            group["lr"] = group["base_lr"] * factor
        self._optimizer.step()
        self._optimizer.zero_grad(set_to_none=True)
        self.step += 1
        self._num_tokens += num_tokens
        return value

    @torch.no_grad()
    def _load(self, snapshot: Snapshot) -> None:
        if snapshot.parameters:  # none if a state was lost: it starts anew
            load_parameters(self.model, snapshot, self._frozen)
        for name, parameter in self._parameters.items() if snapshot.moments else ():
            if f"exp_avg/{name}" not in snapshot.moments:  # nothing of the loss has reached it
                continue
            state: dict[str, Any] = {"step": torch.tensor(float(snapshot.step), device=parameter.device)}
            for key in ("exp_avg", "exp_avg_sq"):
                state[key] = snapshot.moments[f"{key}/{name}"].to(parameter.device, copy=True)
            self._optimizer.state[parameter] = state
        self.step, self._reports = snapshot.step, snapshot.reports
        self._device_s, self._num_tokens = snapshot.device_s, snapshot.num_tokens
        self._retrained = snapshot.retrained_steps


@torch.no_grad()
def load_parameters(model: PeftModel | PreTrainedModel, snapshot: Snapshot, frozen: Sequence[float]) -> None:
    """Set the trained tensors of `model` to those of `snapshot`.

    Args:
        frozen: `Method.frozen_cosines` of the model.
    Raises:
        FactorMismatchError: they were trained beside other frozen ones than this machine's.
    """
    if snapshot.frozen and not agrees(snapshot.frozen, frozen, tolerance=_FROZEN_ATOL):
        raise FactorMismatchError(
            f"The frozen matrices of trial {snapshot.trial_id} must be those that it began with, but this machine's"
            " decomposition of the base gives others.",
            hint="search with TinyLoRA on machines with one kind of processor and one version of torch",
        )
    for name, parameter in model.named_parameters():
        if parameter.requires_grad:
            parameter.copy_(snapshot.parameters[name])
