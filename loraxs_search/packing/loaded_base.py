"""What a host keeps on its device for all trials: the base, the tasks' data, the factors."""

from __future__ import annotations

import contextlib
import time
from collections.abc import Iterable, Iterator, Sequence
from dataclasses import replace
from functools import cached_property
from pathlib import Path
from typing import Any, TypeVar, cast

import numpy as np
import torch
from peft import PeftModel
from torch import Tensor
from transformers import PreTrainedModel

from loraxs_search import versions
from loraxs_search.base_model.attention import use_padded_attention
from loraxs_search.base_model.files import weight_bytes
from loraxs_search.base_model.head import fold_outputs, head_names
from loraxs_search.base_model.layers import head_shapes, linear_modules, matrix
from loraxs_search.base_model.load import bare_body, load_model, with_setup
from loraxs_search.base_model.locate import locate
from loraxs_search.base_model.pooling import resolved_pooling, trained_pooling
from loraxs_search.base_model.tokenizer import load_tokenizer
from loraxs_search.engine.base import base_of
from loraxs_search.engine.kv_cache import check_continuation
from loraxs_search.engine.planning import PassExecutor, workers_for
from loraxs_search.engine.pruning import LastLayerPruning
from loraxs_search.factors.compute import Factors
from loraxs_search.factors.store import FactorStore
from loraxs_search.home import factor_path
from loraxs_search.methods import method_of
from loraxs_search.methods.verification import body_fingerprint, make_reference_logits
from loraxs_search.packing.capacity import check_fits, choose_dtype
from loraxs_search.packing.slot import AdaptableLayers
from loraxs_search.records.base import BaseModelRef
from loraxs_search.records.codec import to_json
from loraxs_search.records.host import Answers, Confirmation, HostInfo, LinearProbe
from loraxs_search.records.literals import Basis, Precision, Split
from loraxs_search.records.promotion import Baseline
from loraxs_search.records.task import Task, TaskModel
from loraxs_search.records.trial import TrialSpec
from loraxs_search.tasks.baselines import BaselineInputs, measure_baselines
from loraxs_search.tasks.kinds import RequestGenerator, kind_of
from loraxs_search.tasks.prepared import PreparedTask, locate_for, prepare, served
from loraxs_search.torch_threads import side_by_side
from loraxs_search.trial.evaluate import as_answers, ask, sample_answers
from loraxs_search.trial.linear_probe import fit_linear_probe
from loraxs_search.trial.run import attach, detach, load_parameters
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

    def __init__(self, base: BaseModelRef, task: Task, *, precision: Precision = "auto", device: str = "auto") -> None:
        self.device = _choose_device(device)
        self._device_name = _device_name(self.device)  # now: another thread of a process may have its own setting
        self._ref, self.base = base, with_setup(locate_for(task, base))
        self.task = self.with_pooling(task)
        self._prepared: dict[str, PreparedTask] = {}
        self._exact: dict[TaskModel, tuple[PreTrainedModel, int]] = {}
        self._pruned: dict[PreTrainedModel, LastLayerPruning] = {}
        self.dtype = choose_dtype(precision, self.device)
        check_fits(self.base, self.dtype, self.device)
        self.exact, _ = self._exact_for(task)
        self.model = self.exact if self.dtype == self.exact.dtype else self._load(task, self.dtype, self.device)
        if self.data.kind.model.num_outputs is None:
            check_continuation(self.exact)
        self.modules = linear_modules(self.base, self.data.kind.model)
        self.factors = LoadedFactors(self.model, self.exact, [module.name for module in self.modules])
        self._bare_body = bare_body(self.model)  # now, before any trial puts its adapter on

    @property
    def data(self) -> PreparedTask:
        """The first task's data."""
        return self.prepared()

    def prepared(self, task: Task | None = None, *, anew: bool = False) -> PreparedTask:
        """Return a task's data, the first task's for None.

        Args:
            anew: Read them again; the same rows are the same object.
        Raises:
            TaskDataError: the data do not fit the declaration.
        """
        task = self.with_pooling(task or self.task)
        key = to_json(task)
        known = self._prepared.get(key)
        if known is None or anew:
            fresh = prepare(task, load_tokenizer(self.base), has_bias=self._has_bias(task))
            if known is None or (fresh.data_fingerprint, fresh.slices) != (known.data_fingerprint, known.slices):
                self._prepared[key] = fresh
        return self._prepared[key]

    def with_pooling(self, task: Task) -> Task:
        """Return a task with `auto` resolved on this base."""
        return replace(task, pooling=resolved_pooling(task.pooling, self.base))

    def _has_bias(self, task: Task) -> bool:
        """Whether the output layer of a task's head has a bias; it is asked for where answers are standardised."""
        if not task.standardized:
            return False
        return any(name.endswith(".bias") for name in head_shapes(self.base, kind_of(task).model, "output"))

    def base_changed(self) -> bool:
        """Whether the base on disk, its weights, tokenizer or configuration, differs from what was loaded."""
        found = with_setup(locate(self._ref))
        return (found.weight_digest, found.setup) != (self.base.weight_digest, self.base.setup)

    def info(self, task: Task | None = None, *, anew: bool = False) -> HostInfo:
        """Describe base, data and device; see `prepared`."""
        data = self.prepared(task, anew=anew)
        note = trained_pooling(self.base)[1] if (task or data.task).pooling == "auto" else ""
        warnings = (*data.report.warnings, *filter(None, [note]))
        return HostInfo(
            base=self.base,
            modules=self.modules,
            head_parameters=self._exact_for(data.task)[1],
            data_fingerprint=data.data_fingerprint,
            data=replace(data.report, warnings=warnings),
            test_fingerprint=data.test_fingerprint,
            num_rows=data.num_scored,
            device=self._device_name,
            dtype=str(self.dtype).removeprefix("torch."),
            versions=versions.installed(versions.TRAINING),
            base_bytes=weight_bytes(Path(self.base.path)),
            pooling=data.task.pooling,
        )

    def decompose(self, names: Sequence[str], rank: int, basis: Basis) -> None:
        """Get the factors of these layers ahead of their use; quick when they are on disk."""
        weights = [matrix(self.model.get_submodule(name)) for name in names]
        self.factors.prepare(weights, rank=rank, basis=basis)

    def confirm(self, spec: TrialSpec, snapshot: Snapshot, task: Task | None = None) -> Confirmation:
        """Return a trained adapter's files, and reference logits that show whether they were loaded correctly.

        The base is used in the checkpoint's own precision, which is what `from_pretrained` gives by default; no other
        trial may be on it.
        """
        factors, fingerprint = self._factor_files(spec), self._body_fingerprint  # before weights change
        method = method_of(spec.hyperparameters)
        with self._trained(spec, snapshot, task) as (model, exact, data):
            fold_outputs(base_of(model), data.kind.outputs)
            reference = make_reference_logits(model, exact.config.vocab_size)
            serving = served(data.kind, data.tokenizer, getattr(exact, "generation_config", None))
            ends = serving.ends if serving else ()
            return Confirmation(spec.trial_id, method.files(model, fingerprint), reference, factors, ends)

    def answer(self, spec: TrialSpec, snapshot: Snapshot, rows: range, task: Task | None = None) -> Answers:
        """Return a trained adapter's answers to these test rows, as it will be loaded; see `confirm`.

        The topmost layer is pruned to what the head reads.
        """
        indices = np.arange(rows.start, rows.stop)
        with self._trained(spec, snapshot, (task or self.task).for_candidates) as (model, exact, data):
            scores = self._ask(model, exact, data, data.kind.score(data, "test", indices))
            shown = () if rows.start else self._ask(model, exact, data, sample_answers(data))
            return replace(as_answers(data, "test", indices, scores), samples=tuple(shown))

    def answer_without_adapter(self, split: Split, rows: range, shots: int, task: Task | None = None) -> Answers:
        """Return the answers of the base without an adapter to rows of a split; no trial may be on it."""
        data, indices = self.prepared((task or self.task).for_candidates), np.arange(rows.start, rows.stop, rows.step)
        exact, _ = self._exact_for(data.task)
        started = time.perf_counter()
        scores = self._ask(exact, exact, data, data.kind.base_alone(data, split, indices, shots))
        return replace(as_answers(data, split, indices, scores), seconds=time.perf_counter() - started)

    def baselines(self, data: PreparedTask) -> tuple[Baseline, ...]:
        """Return what simple models reach on a task's rows; any thread may ask, also while trials train."""
        return measure_baselines(BaselineInputs(data, self._bare_body, self.device))

    def linear_probe(self, task: Task | None = None) -> LinearProbe:
        """Return the output layer that heads of a task may start from; no trial may be on the base."""
        return fit_linear_probe(self.prepared(task), self.model)

    def factor_file(self, key: str) -> bytes:
        """Return a factor file of this node."""
        return factor_path(key, self.factors.root).read_bytes()

    @cached_property
    def _body_fingerprint(self) -> tuple[float, ...]:
        """Of the one body that the models of all tasks share."""
        return body_fingerprint(self.exact)

    def _ask(
        self,
        model: PeftModel | PreTrainedModel,
        exact: PreTrainedModel,
        data: PreparedTask,
        asking: RequestGenerator[ResultT],
    ) -> ResultT:
        """Return what a kind makes of its requests; of the topmost layer only what is read is computed.

        Args:
            model: `exact`, with an adapter on it or none.
        """
        count, threads = workers_for(self.device)
        if exact not in self._pruned:
            self._pruned[exact] = LastLayerPruning(exact, AdaptableLayers(exact, self.modules).layers)
        with self._pruned[exact].placed(), side_by_side(count, threads) as pool:
            return ask(model, data, asking, PassExecutor(count, pool=pool))

    @contextlib.contextmanager
    def _trained(
        self, spec: TrialSpec, snapshot: Snapshot, task: Task | None
    ) -> Iterator[tuple[PeftModel | PreTrainedModel, PreTrainedModel, PreparedTask]]:
        """Put a trained adapter on the base in the checkpoint's own precision, and take it off again."""
        data = self.prepared(task)
        exact, _ = self._exact_for(data.task)
        model = attach(exact, spec, self.factors)
        try:
            load_parameters(model, snapshot, method_of(spec.hyperparameters).frozen_cosines(model))
            yield model, exact, data
        finally:
            detach(model, spec)

    def _factor_files(self, spec: TrialSpec) -> dict[str, str]:
        """Return key and checksum of every factor file that a trial needs."""
        hyper = spec.hyperparameters
        weights = {name: matrix(self.exact.get_submodule(name)) for name in hyper.target_modules}
        sizes = {name: (weight.shape[0], weight.shape[1]) for name, weight in weights.items()}
        requests = method_of(hyper).factors(hyper, sizes)
        return dict(
            self.factors.identify(
                weights[request.module], rank=request.rank, basis=request.basis, driver=request.driver
            )
            for request in requests
        )

    def _exact_for(self, task: Task) -> tuple[PreTrainedModel, int]:
        """Return the base in the checkpoint's precision with a task's head, and the parameters of that head.

        All share one body: an adapter is confirmed on the very weights it was trained on.
        """
        key = self.prepared(task).kind.model
        assert key.body == self.data.kind.model.body  # others have a host of their own
        if key not in self._exact:
            # Only the head of a further task belongs on the device, where two bodies may not fit.
            model = self._load(task, None, torch.device("cpu") if self._exact else self.device)
            if self._exact and model.base_model is not model:
                setattr(model, model.base_model_prefix, self.exact.base_model)
            cast("torch.nn.Module", model).to(self.device)
            # Counted before any trial puts its own head beside it.
            heads = [model.get_submodule(name) for name in head_names(model)]
            self._exact[key] = model, sum(p.numel() for head in heads for p in head.parameters())
        return self._exact[key]

    def _load(self, task: Task, dtype: torch.dtype | None, device: torch.device) -> PreTrainedModel:
        """Load the base in `dtype`; None means the checkpoint's own, which is what others load."""
        model = load_model(self.base, self.prepared(task).kind.model, dtype=dtype, device=device)
        use_padded_attention(model)
        return model


def _choose_device(device: str) -> torch.device:
    if device != "auto":
        return torch.device(device)
    return torch.device("cuda" if torch.cuda.is_available() else "cpu")


def _device_name(device: torch.device) -> str:
    if device.type == "cuda":
        return torch.cuda.get_device_name(device)
    return f"cpu, {torch.get_num_threads()} threads"
