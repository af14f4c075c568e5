"""One trial: its adapter, head and optimizer state, apart from the layers that compute it.

A slot's tensors have the same names in a snapshot whether packed or a PEFT model's: snapshots fit both.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass

import numpy as np
import numpy.typing as npt
import torch
from torch import Tensor

from loraxs_search.methods._base import PackedAdapter
from loraxs_search.records.trial import AdapterSize, TrialReport, TrialSpec
from loraxs_search.tasks.encoded import TrainingBatches
from loraxs_search.tasks.prepared import PreparedTask
from loraxs_search.trial.attach import check_frozen
from loraxs_search.trial.snapshot import Snapshot

_MOMENTS = ("exp_avg", "exp_avg_sq")


@dataclass(frozen=True)
class SlotTensors:
    """What a trial trains, as it starts: float32 leaves on the device of the base.

    Args:
        head: Trained parameters of the head by the names that the base's layers know them by.
        stored_head: Their names in a snapshot, in the same order.
        fixed_head: Parameters of the head that stay as they are and are not stored.
        size: What is stored of the trial.
        frozen: `Method.frozen_cosines` of a PEFT model.
    """

    adapter: PackedAdapter
    head: Mapping[str, Tensor]
    stored_head: tuple[str, ...]
    fixed_head: Mapping[str, Tensor]
    size: AdapterSize
    frozen: tuple[float, ...] = ()


class Slot:
    """A trial in training: what it trains, AdamW's moments, reports.

    Data order, schedule and seeds are functions of (seed, step), so a slot made from a snapshot continues bit for bit
    on the same device, with the same number of threads, in the same company.

    Args:
        snapshot: State to continue from; None starts at step 0.
    """

    def __init__(
        self, spec: TrialSpec, data: PreparedTask, tensors: SlotTensors, snapshot: Snapshot | None = None
    ) -> None:
        self.spec, self.data, self.tensors = spec, data, tensors
        self.parameters = [*tensors.adapter.tensors, *tensors.head.values()]  # the adapter's, then the head's
        self.moments = [(torch.zeros_like(p), torch.zeros_like(p)) for p in self.parameters]
        hyper = spec.hyperparameters
        self._batches = TrainingBatches(data.lengths("train"), hyper.batch_size, hyper.seed)
        self.step, self.device_s, self.num_tokens = 0, 0.0, 0
        self._reports: tuple[TrialReport, ...] = ()
        self._retrained = 0
        self._losses: list[float] = []
        if snapshot is not None:
            self._restore(snapshot)

    @property
    def name(self) -> str:
        """The trial's name, unique among the slots of a host."""
        return self.spec.name

    @property
    def done(self) -> bool:
        return self.step >= self.spec.hyperparameters.max_steps

    def next_rows(self) -> npt.NDArray[np.int64]:
        """Return the row indices of the next step's batch."""
        return self._batches.at(self.step)

    def stepped(self, loss: float, num_tokens: int) -> None:
        """Record that the step was taken."""
        if not self._reports or self.step >= self._reports[-1].step:
            self._losses.append(loss)
        self.step += 1
        self.num_tokens += num_tokens

    def report(self, metrics: Mapping[str, float], scoring_s: float = 0.0) -> TrialReport:
        """Make and keep the report of these scores, which took so long, at the current step."""
        report = TrialReport(
            trial_id=self.spec.trial_id,
            step=self.step,
            metrics=metrics,
            train_loss=sum(self._losses) / max(1, len(self._losses)),
            device_s=self.device_s,
            num_tokens=self.num_tokens,
            size=self.tensors.size,
            retrained_steps=self._retrained,
            scoring_s=scoring_s,
        )
        self._losses.clear()
        self._reports = (*self._reports, report)
        return report

    def snapshot(self) -> Snapshot:
        """Return the whole state; tensors are copies on the CPU."""
        moments = {
            f"{key}/{name}": value
            for key, values in zip(_MOMENTS, zip(*self.moments, strict=True), strict=True)
            for name, value in self._named(values).items()
        }
        return Snapshot(
            trial_id=self.spec.trial_id,
            step=self.step,
            parameters=self._named(self.parameters),
            moments=moments if self.step else {},
            reports=self._reports,
            device_s=self.device_s,
            num_tokens=self.num_tokens,
            study=self.spec.study,
            retrained_steps=self._retrained,
            frozen=self.tensors.frozen,
        )

    # ---- inside ------------------------------------------------------------------------------------------------------
    @torch.no_grad()
    def _restore(self, snapshot: Snapshot) -> None:
        self._retrained = snapshot.retrained_steps
        self.step, self._reports = snapshot.step, snapshot.reports
        self.device_s, self.num_tokens = snapshot.device_s, snapshot.num_tokens
        if not snapshot.parameters:  # the state was lost: it starts anew
            return
        check_frozen(snapshot, self.tensors.frozen)
        stored = [(self.parameters, snapshot.parameters)]
        if snapshot.moments:
            for key, values in zip(_MOMENTS, zip(*self.moments, strict=True), strict=True):
                stored.append((list(values), {name: snapshot.moments[f"{key}/{name}"] for name in snapshot.parameters}))
        for tensors, named in stored:
            own = [*self.tensors.adapter.stacked(named), *(named[name] for name in self.tensors.stored_head)]
            for tensor, value in zip(tensors, own, strict=True):
                tensor.copy_(value)

    def _named(self, tensors: Sequence[Tensor]) -> dict[str, Tensor]:
        """Return copies of tensors that are shaped like the slot's, on the CPU, by their names in a snapshot."""
        num_own = len(self.tensors.adapter.tensors)
        named = self.tensors.adapter.named(tensors[:num_own])
        named |= dict(zip(self.tensors.stored_head, tensors[num_own:], strict=True))
        return {name: value.detach().to("cpu", copy=True) for name, value in named.items()}
