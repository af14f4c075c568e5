"""One trial in a pack: its adapter, head and optimizer, apart from the layers that serve it."""

from __future__ import annotations

from collections.abc import Mapping
from itertools import chain, repeat

import numpy as np
import numpy.typing as npt
import torch
from torch import Tensor

from loraxs_search.errors import UsageError
from loraxs_search.methods import PackedAdapter, get_method
from loraxs_search.methods.starting import started_head
from loraxs_search.packing._checks import check_target_modules
from loraxs_search.packing.adamw import AdamWUpdate, clip_factor
from loraxs_search.packing.adaptable import AdaptableLayers
from loraxs_search.packing.slot_state import SlotStateLayout
from loraxs_search.records import AdapterSize, TrialReport, TrialSpec
from loraxs_search.tasks import PreparedTask, TrainingBatches
from loraxs_search.trial import Snapshot, check_step, lr_factor, make_report


class Slot:
    """What `TrialRun` keeps in a PEFT model, held apart from one: adapter, head, AdamW's moments, reports.

    Args:
        adaptable: Layers and head of the base.
        snapshot: State to continue from; None starts at step 0.
    """

    def __init__(
        self,
        spec: TrialSpec,
        data: PreparedTask,
        adaptable: AdaptableLayers,
        snapshot: Snapshot | None = None,
    ) -> None:
        self.spec, self.data = spec, data
        self.adapter = _adapter(spec, adaptable)
        hyper = spec.hyperparameters
        self._batches = TrainingBatches(data.lengths("train"), hyper.batch_size, hyper.seed)
        device = adaptable.device
        head = adaptable.draw_head(hyper.head, data.kind.model.num_outputs, hyper.seed)
        started = started_head(hyper, head.trained, adaptable.output, data.kind.outputs)
        self.head = {name: value.to(device).requires_grad_() for name, value in started.items()}
        self.fixed_head = {name: value.to(device) for name, value in head.fixed.items()}
        self._layout = SlotStateLayout(self.adapter, tuple(self.head), head.owners)
        self._moments = [(torch.zeros_like(p), torch.zeros_like(p)) for p in self.parameters]
        self.size = self._measure(adaptable)
        self.step, self.device_s, self.num_tokens = 0, 0.0, 0
        self._reports: tuple[TrialReport, ...] = ()
        self._retrained = 0
        self._losses: list[float] = []
        if snapshot is not None:
            if snapshot.parameters:  # none where a state was lost: it starts anew
                self._layout.restore(snapshot, self.parameters, self._moments)
            self._retrained = snapshot.retrained_steps
            self.step, self._reports = snapshot.step, snapshot.reports
            self.device_s, self.num_tokens = snapshot.device_s, snapshot.num_tokens

    @property
    def name(self) -> str:
        """The trial's name, unique among the slots of a host."""
        return self.spec.name

    @property
    def parameters(self) -> list[Tensor]:
        """All trained tensors: the adapter's, then the head's."""
        return [*self.adapter.tensors, *self.head.values()]

    @property
    def num_bytes(self) -> int:
        """Memory of the trained tensors, their gradients and optimizer state."""
        gradients = [p.grad for p in self.parameters if p.grad is not None]
        return sum(tensor.nbytes for tensor in [*self.parameters, *gradients, *chain.from_iterable(self._moments)])

    def next_rows(self) -> npt.NDArray[np.int64]:
        """Return the row indices of the next step's batch, as the lone trial draws them."""
        return self._batches.at(self.step)

    def check(self, loss: float, norm: float) -> None:
        """Refuse a step whose loss or gradient is not finite, as the lone trial does; changes nothing.

        Raises:
            TrialDivergedError: the loss or the norm is not finite; the message has it.
        """
        check_step(loss, norm, self.step + 1)

    def next_update(self, norm: float) -> list[AdamWUpdate]:
        """Return the AdamW update of each tensor, given the norm of the whole gradient."""
        hyper = self.spec.hyperparameters
        factor = lr_factor(self.step, hyper.max_steps, hyper.warmup_ratio, hyper.lr_schedule)
        rates = chain(repeat(hyper.learning_rate, len(self.adapter.tensors)), repeat(hyper.head_learning_rate))
        betas, clip = (hyper.adam_beta1, hyper.adam_beta2), clip_factor(norm, hyper.max_grad_norm)
        return [
            AdamWUpdate(parameter, *moments, rate * factor, betas, hyper.weight_decay, clip, self.step + 1)
            for parameter, moments, rate in zip(self.parameters, self._moments, rates, strict=False)
        ]

    def stepped(self, loss: float, num_tokens: int) -> None:
        """Record that the step was taken."""
        if not self._reports or self.step >= self._reports[-1].step:
            self._losses.append(loss)
        self.step += 1
        self.num_tokens += num_tokens

    def report(self, metrics: Mapping[str, float]) -> TrialReport:
        """Make and keep the report of these scores at the current step."""
        report = make_report(
            self.spec,
            metrics,
            self._losses,
            step=self.step,
            device_s=self.device_s,
            num_tokens=self.num_tokens,
            size=self.size,
            retrained_steps=self._retrained,
        )
        self._losses.clear()
        self._reports = (*self._reports, report)
        return report

    def snapshot(self) -> Snapshot:
        """Return the whole state as the lone trial would; tensors are copies on the CPU."""
        return Snapshot(
            trial_id=self.spec.trial_id,
            step=self.step,
            parameters=self._layout.named(self.parameters),
            moments=self._layout.moments(self._moments) if self.step else {},
            reports=self._reports,
            device_s=self.device_s,
            num_tokens=self.num_tokens,
            study=self.spec.study,
            retrained_steps=self._retrained,
        )

    def _measure(self, adaptable: AdaptableLayers) -> AdapterSize:
        hyper = self.spec.hyperparameters
        method = get_method(hyper.method)
        modules = [adaptable.modules[name] for name in self.adapter.modules]
        head = {name: tuple(value.shape) for name, value in self.head.items()}
        identity = {name: tuple(value.shape) for name, value in self.fixed_head.items()}
        return method.size(method.params(hyper), modules, head, identity)


def _adapter(spec: TrialSpec, adaptable: AdaptableLayers) -> PackedAdapter:
    """Make a trial's adapter on its layers, in model order."""
    check_target_modules(spec, adaptable.sizes)
    wanted = set(spec.hyperparameters.target_modules)
    method = get_method(spec.hyperparameters.method)
    if method.packed is None or not method.can_pack(method.params(spec.hyperparameters)):
        raise UsageError(
            f"Trials that share passes must be of a method that can, but {spec.trial_id} of {method.name} cannot.",
            hint="search one study at a time: its trials take turns then, each alone",
        )
    sizes = {name: size for name, size in adaptable.sizes.items() if name in wanted}
    return method.packed.adapter(spec.hyperparameters, sizes, adaptable.device)
