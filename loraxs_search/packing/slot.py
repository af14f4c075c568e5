"""One trial in a pack: its adapter, head and optimizer, apart from the layers that serve it.

A slot's tensors have the names in a snapshot that they have in the lone trial's model, so that snapshots fit both.
"""

from __future__ import annotations

import re
from collections.abc import Collection, Iterable, Mapping, Sequence
from dataclasses import dataclass
from itertools import chain, repeat

import numpy as np
import numpy.typing as npt
import torch
from torch import Tensor, nn
from transformers import PreTrainedModel

from loraxs_search.base_model.head import fresh_head, head_as_loaded, head_names, output_head, with_labels
from loraxs_search.base_model.layers import repeated_layers
from loraxs_search.errors import BaseModelError, TargetModulesError, UsageError, unknown_name
from loraxs_search.methods import method_of
from loraxs_search.methods._base import PackedAdapter
from loraxs_search.methods.names import head_parameter
from loraxs_search.methods.starting import started_head
from loraxs_search.packing.adamw import AdamWUpdate, clip_factor
from loraxs_search.records.base import LinearModule
from loraxs_search.records.literals import Head
from loraxs_search.records.trial import AdapterSize, TrialReport, TrialSpec
from loraxs_search.tasks.encoded import TrainingBatches
from loraxs_search.tasks.prepared import PreparedTask
from loraxs_search.trial.run import check_distinct, mean_loss
from loraxs_search.trial.snapshot import Snapshot

_MOMENTS = ("exp_avg", "exp_avg_sq")

Moments = Sequence[tuple[Tensor, Tensor]]  # AdamW's of each tensor, in the order of `_MOMENTS`


@dataclass(frozen=True)
class _SlotStateLayout:
    """Order of a slot's tensors: the adapter's, then the head's parameters.

    Args:
        head: Full names of the head's trained parameters.
        owners: Full names of the head modules that they belong to, which are stored whole.
    """

    adapter: PackedAdapter
    head: tuple[str, ...]
    owners: tuple[str, ...]

    def named(self, tensors: Sequence[Tensor]) -> dict[str, Tensor]:
        """Return copies of tensors that are shaped like the slot's, on the CPU, by their names in a snapshot."""
        num_own = len(self.adapter.tensors)
        names = self._head_names()
        named = self.adapter.named(tensors[:num_own]) | dict(zip(names, tensors[num_own:], strict=True))
        return {name: value.detach().to("cpu", copy=True) for name, value in named.items()}

    def stacked(self, named: Mapping[str, Tensor]) -> list[Tensor]:
        """Return the tensors of `named` in the slot's order and shapes."""
        return [*self.adapter.stacked(named), *(named[name] for name in self._head_names())]

    def moments(self, moments: Moments) -> dict[str, Tensor]:
        """Return the optimizer's moments as a snapshot holds them."""
        named: dict[str, Tensor] = {}
        for key, values in zip(_MOMENTS, zip(*moments, strict=True), strict=True):
            named |= {f"{key}/{name}": value for name, value in self.named(values).items()}
        return named

    @torch.no_grad()
    def restore(self, snapshot: Snapshot, parameters: Sequence[Tensor], moments: Moments) -> None:
        """Set parameters and moments to those of a snapshot."""
        for parameter, value in zip(parameters, self.stacked(snapshot.parameters), strict=True):
            parameter.copy_(value)
        if not snapshot.moments:
            return
        for key, values in zip(_MOMENTS, zip(*moments, strict=True), strict=True):
            # The lone trial's optimizer has none of a parameter that never had a gradient.
            named = {
                name: snapshot.moments.get(f"{key}/{name}", torch.zeros_like(value))
                for name, value in snapshot.parameters.items()
            }
            for moment, value in zip(values, self.stacked(named), strict=True):
                moment.copy_(value)

    def _head_names(self) -> list[str]:
        return [head_parameter(name, self.owners) for name in self.head]


def check_target_modules(spec: TrialSpec, known: Collection[str]) -> None:
    """Refuse a trial that adapts no layer, or a layer that the base lacks.

    Raises:
        TargetModulesError: with the layers that there are.
    """
    names = spec.hyperparameters.target_modules
    if not names:
        raise TargetModulesError(f"`target_modules` must name a layer, but trial {spec.trial_id} names none.")
    if unknown := sorted(set(names) - set(known)):
        raise TargetModulesError(unknown_name("target_modules", unknown[0], known))


@dataclass(frozen=True)
class _InitialHead:
    """A trial's head as it starts; names are full parameter names, values float32 on the CPU.

    Args:
        trained: In model order.
        fixed: Parameters that stay as they are and are not stored.
        owners: The modules that PEFT stores whole, by full name.
    """

    trained: Mapping[str, Tensor]
    fixed: Mapping[str, Tensor]
    owners: tuple[str, ...]


class AdaptableLayers:
    """The layers that may be adapted and the head of a base.

    Args:
        model: The base, with nothing of a trial on it.
        modules: The linear layers that may be adapted.
    """

    def __init__(self, model: PreTrainedModel, modules: Iterable[LinearModule]) -> None:
        self.device = next(model.parameters()).device
        self.modules = {module.name: module for module in modules}
        self.sizes = {name: (m.out_features, m.in_features) for name, m in self.modules.items()}  # (out, in)
        self.model = model
        self._heads = head_names(model)
        self.output, self._idle = output_head(model) if self._heads else ("", ())
        self._stack = repeated_layers(model, self.sizes)

    @property
    def layers(self) -> nn.ModuleList | None:
        """The layers that the base repeats, None when it has more than one list of them or none."""
        layers = self.model.get_submodule(self._stack) if self._stack else None
        return layers if isinstance(layers, nn.ModuleList) else None

    def lowest(self, modules: Iterable[str]) -> int:
        """Return the index of the lowest repeated layer that has one of these modules; 0 where one is in none."""
        inside = re.compile(rf"{re.escape(self._stack)}\.(\d+)\.")
        matches = [inside.match(name) for name in modules]
        return min((int(match[1]) if match else 0 for match in matches), default=0)

    def draw_head(self, which: Head, num_outputs: int | None, seed: int) -> _InitialHead:
        """Draw the head that the lone trial starts with, for any number of outputs; an empty one for None.

        Raises:
            BaseModelError: with `head: output`, a layer before the output cannot be the identity, or ends like it.
        """
        if num_outputs is None:
            return _InitialHead({}, {}, ())
        drawn = fresh_head(with_labels(self.model, num_outputs), seed)
        if which == "full" or not self._idle:
            return _InitialHead(drawn, {}, self._heads)
        check_distinct(self.output, self._idle)  # as where the adapter is written at the end
        trained = {name: value for name, value in drawn.items() if name.startswith(f"{self.output}.")}
        fixed = {name: value for name, value in drawn.items() if name not in trained}
        return _InitialHead(trained, fixed | self._identities(fixed) | head_as_loaded(self.model), (self.output,))

    def _identities(self, fixed: Mapping[str, Tensor]) -> dict[str, Tensor]:
        """Return the parameters that make the layers before the output pass their input on."""
        identities = {}
        for layer in self._idle:
            weight = fixed[f"{layer}.weight"]
            if weight.shape[0] != weight.shape[1]:
                raise BaseModelError(
                    f"A head layer that is not trained must be a square linear layer, but {layer} is"
                    f" {tuple(weight.shape)}.",
                    hint="use `head: full` with this base",
                )
            identities[f"{layer}.weight"] = torch.eye(weight.shape[0])
            if (bias := fixed.get(f"{layer}.bias")) is not None:
                identities[f"{layer}.bias"] = torch.zeros_like(bias)
        return identities


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
        self._layout = _SlotStateLayout(self.adapter, tuple(self.head), head.owners)
        self._moments = [(torch.zeros_like(p), torch.zeros_like(p)) for p in self.parameters]
        self.size = self._measure(adaptable)
        self.step, self.device_s, self.num_tokens = 0, 0.0, 0
        self._reports: tuple[TrialReport, ...] = ()
        self._retrained = 0
        self._losses: list[float] = []
        if snapshot is not None:
            if snapshot.parameters:  # none if a state was lost: it starts anew
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

    def next_rows(self) -> npt.NDArray[np.int64]:
        """Return the row indices of the next step's batch, as the lone trial draws them."""
        return self._batches.at(self.step)

    def next_update(self, norm: float) -> list[AdamWUpdate]:
        """Return the AdamW update of each tensor, given the norm of the whole gradient."""
        hyper = self.spec.hyperparameters
        factor = hyper.lr_factor(self.step)
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

    def report(self, metrics: Mapping[str, float], scoring_s: float = 0.0) -> TrialReport:
        """Make and keep the report of these scores, which took so long, at the current step."""
        report = TrialReport(
            trial_id=self.spec.trial_id,
            step=self.step,
            metrics=metrics,
            train_loss=mean_loss(self._losses),
            device_s=self.device_s,
            num_tokens=self.num_tokens,
            size=self.size,
            retrained_steps=self._retrained,
            scoring_s=scoring_s,
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
        method = method_of(hyper)
        modules = [adaptable.modules[name] for name in self.adapter.modules]
        head = {name: tuple(value.shape) for name, value in self.head.items()}
        identity = {name: tuple(value.shape) for name, value in self.fixed_head.items()}
        return method.size(method.params(hyper), modules, head, identity)


def _adapter(spec: TrialSpec, adaptable: AdaptableLayers) -> PackedAdapter:
    """Make a trial's adapter on its layers, in model order."""
    check_target_modules(spec, adaptable.sizes)
    wanted = set(spec.hyperparameters.target_modules)
    method = method_of(spec.hyperparameters)
    if method.packed is None or not method.can_pack(method.params(spec.hyperparameters)):
        raise UsageError(
            f"Trials that share passes must be of a method that can, but {spec.trial_id} of {method.name} cannot.",
            hint="search one study at a time: its trials then take turns",
        )
    sizes = {name: size for name, size in adaptable.sizes.items() if name in wanted}
    return method.packed.adapter(spec.hyperparameters, sizes, adaptable.device)
