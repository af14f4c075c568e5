"""What a host keeps on its device for all trials: the base, the tasks' data, the factors."""

from __future__ import annotations

import contextlib
from collections.abc import Iterable, Iterator
from dataclasses import replace
from typing import Any, TypeVar, cast

import torch
from peft import PeftModel
from torch import Tensor
from transformers import PreTrainedModel

from loraxs_search.base_model.attention import use_padded_attention
from loraxs_search.base_model.layers import head_names, linear_modules, parameter_shapes, repeated_layers
from loraxs_search.base_model.load import load_model
from loraxs_search.base_model.locate import locate
from loraxs_search.base_model.reading import resolved_pooling
from loraxs_search.base_model.tokenizer import load_tokenizer, with_setup
from loraxs_search.engine.generation import Decoding
from loraxs_search.engine.layers import base_of
from loraxs_search.engine.passes import PassExecutor, ask, workers_for
from loraxs_search.engine.pruning import LastLayerPruning
from loraxs_search.factors.compute import Factors
from loraxs_search.factors.store import FactorStore
from loraxs_search.machine import side_by_side
from loraxs_search.methods import method_of
from loraxs_search.packing.capacity import check_fits, choose_dtype
from loraxs_search.records.base import BaseModelRef
from loraxs_search.records.codec import to_json
from loraxs_search.records.literals import Precision
from loraxs_search.records.task import Task, TaskModel
from loraxs_search.records.trial import TrialSpec
from loraxs_search.tasks.kinds import RequestGenerator, kind_of
from loraxs_search.tasks.prepared import PreparedTask, prepare
from loraxs_search.trial.attach import attach, check_frozen, detach, trained_parameters
from loraxs_search.trial.snapshot import Snapshot


class LoadedFactors(FactorStore):
    """A factor store that decomposes the checkpoint's weight when it is asked for the loaded one's.

    Rounding a weight to bfloat16 rotates nearly equal singular vectors, and an R trained in that basis would mean
    another model to those who load the checkpoint unrounded.

    Args:
        loaded: The base that trials run on.
        exact: The same base in the checkpoint's own precision.
        modules: Names of the linear layers, the same in both.
    """

    def __init__(self, loaded: PreTrainedModel, exact: PreTrainedModel, modules: Iterable[str]) -> None:
        super().__init__()
        self._exact: dict[int, Tensor] = {}
        for name in modules:
            weight = loaded.get_submodule(name).get_parameter("weight")
            self._exact[weight.data_ptr()] = exact.get_submodule(name).get_parameter("weight").detach()

    def checkpoint_weight(self, weight: Tensor) -> Tensor:
        return self._exact.get(weight.data_ptr(), weight)

    def get(self, weight: Tensor, **request: Any) -> Factors:
        exact = self.checkpoint_weight(weight)
        transposed = weight.shape != exact.shape or weight.stride() != exact.stride()
        return super().get(exact.T if transposed else exact, **request)


ResultT = TypeVar("ResultT")


class LoadedBase:
    """A base loaded once, in the precision trials run in and in the checkpoint's own; one model when they agree.

    Not thread-safe for a task that is new.

    Args:
        task: The first task; others are prepared when they are asked for.
        device: `auto` takes the first accelerator this process sees, else the CPU.
    """

    def __init__(self, ref: BaseModelRef, task: Task, *, precision: Precision = "auto", device: str = "auto") -> None:
        if device == "auto":
            device = "cuda" if torch.cuda.is_available() else "cpu"
        self.device = torch.device(device)
        self.base = with_setup(locate(ref))
        self.task = self.with_pooling(task)
        self._prepared: dict[str, PreparedTask] = {}
        self._exact: dict[TaskModel, PreTrainedModel] = {}
        self._pruned: dict[PreTrainedModel, LastLayerPruning] = {}
        self.head_parameters: dict[TaskModel, int] = {}
        self.dtype = choose_dtype(precision, self.device)
        check_fits(self.base, self.dtype, self.device)
        self.exact, model = self.exact_for(task), self.prepared().kind.model
        self.model = self.exact if self.dtype == self.exact.dtype else self._load(model, self.dtype, self.device)
        if model.num_outputs is None:
            Decoding.check(self.exact)
        self.modules = linear_modules(self.base, model)
        self.factors = LoadedFactors(self.model, self.exact, [module.name for module in self.modules])

    def prepared(self, task: Task | None = None) -> PreparedTask:
        """Return a task's data, the first task's for None; they are read once.

        Raises:
            TaskDataError: the data do not fit the declaration.
        """
        task = self.with_pooling(task or self.task)
        key = to_json(task)
        if key not in self._prepared:
            shapes = parameter_shapes(self.base, kind_of(task).model)[0]["output"] if task.standardized else ()
            has_bias = any(name.endswith(".bias") for name in shapes)
            self._prepared[key] = prepare(task, load_tokenizer(self.base), has_bias=has_bias)
        return self._prepared[key]

    def with_pooling(self, task: Task) -> Task:
        """Return a task with `auto` resolved on this base."""
        return replace(task, pooling=resolved_pooling(task.pooling, self.base)[0])

    def is_first(self, task: Task | None) -> bool:
        """Whether a task is the one it began with, whatever its reports score on however many validation rows."""
        reported = {n: getattr(self.task, n) for n in ("validation_rows", "report_metric", "report_direction")}
        return task is None or replace(self.with_pooling(task), **reported) == self.task

    def exact_for(self, task: Task) -> PreTrainedModel:
        """Return the base in the checkpoint's precision with a task's head.

        All share one body: an adapter is confirmed on the very weights it was trained on.
        """
        key = self.prepared(task).kind.model
        assert key.body == self.prepared().kind.model.body  # others have a host of their own
        if key not in self._exact:
            # Only the head of a further task belongs on the device, where two bodies may not fit.
            model = self._load(key, None, torch.device("cpu") if self._exact else self.device)
            if self._exact and model.base_model is not model:
                setattr(model, model.base_model_prefix, self.exact.base_model)
            cast("torch.nn.Module", model).to(self.device)
            self._exact[key] = model
            # Counted before any trial puts its own head beside it.
            heads = [model.get_submodule(name) for name in head_names(model)]
            self.head_parameters[key] = sum(p.numel() for head in heads for p in head.parameters())
        return self._exact[key]

    @contextlib.contextmanager
    def trained(
        self, spec: TrialSpec, snapshot: Snapshot, task: Task | None
    ) -> Iterator[tuple[PeftModel | PreTrainedModel, PreparedTask]]:
        """Put a trained adapter on the base in the checkpoint's own precision, and take it off again."""
        data = self.prepared(task)
        model = attach(self.exact_for(data.task), spec, self.factors)
        try:
            check_frozen(snapshot, method_of(spec.hyperparameters).frozen_cosines(model))
            with torch.no_grad():
                for name, parameter in trained_parameters(model).items():
                    parameter.copy_(snapshot.parameters[name])
            yield model, data
        finally:
            detach(model, spec)

    def ask(self, model: PeftModel | PreTrainedModel, data: PreparedTask, asking: RequestGenerator[ResultT]) -> ResultT:
        """Return what a kind makes of its requests; of the topmost layer only what is read is computed.

        Args:
            model: The base in the checkpoint's precision, with an adapter on it or none.
        """
        exact, (count, threads) = base_of(model), workers_for(self.device)
        if exact not in self._pruned:
            _, layers = repeated_layers(exact, [module.name for module in self.modules])
            self._pruned[exact] = LastLayerPruning(exact, layers if head_names(exact) else None)
        with self._pruned[exact].placed(), side_by_side(count, threads) as pool:
            return ask(model, data, asking, PassExecutor(count, pool=pool))

    def _load(self, model: TaskModel, dtype: torch.dtype | None, device: torch.device) -> PreTrainedModel:
        """Load the base in `dtype`; None means the checkpoint's own, which is what others load."""
        loaded = load_model(self.base, model, dtype=dtype, device=device)
        use_padded_attention(loaded)
        return loaded
