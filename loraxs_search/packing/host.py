"""The host: one base and its factors on one device; all trials that wait share the next round."""

from __future__ import annotations

import contextlib
import functools
import logging
import os
import threading
import time
from collections import Counter
from collections.abc import Callable, Collection, Iterable, Iterator, Mapping, Sequence
from concurrent.futures import Future
from dataclasses import dataclass, field, replace
from pathlib import Path
from typing import Any, Concatenate, ParamSpec, TypeVar, cast

import numpy as np
import torch
from peft import PeftModel
from torch import Tensor, nn
from transformers import PreTrainedModel

from loraxs_search import versions
from loraxs_search.base_model.attention import use_padded_attention
from loraxs_search.base_model.layers import (
    head_names,
    linear_modules,
    matrix,
    output_head,
    parameter_shapes,
    repeated_layers,
)
from loraxs_search.base_model.load import bare_body, choose_dtype, load_model
from loraxs_search.base_model.locate import locate, weight_files
from loraxs_search.base_model.packable import Sharing
from loraxs_search.base_model.reading import resolved_pooling
from loraxs_search.base_model.sharing import probe_sharing
from loraxs_search.base_model.tokenizer import load_tokenizer, with_setup
from loraxs_search.engine.generation import Decoding
from loraxs_search.engine.layers import base_of
from loraxs_search.engine.passes import PassExecutor, ask, workers_for
from loraxs_search.engine.pruning import LastLayerPruning
from loraxs_search.errors import LoraxsError, TrialCancelledError
from loraxs_search.factors.compute import Factors
from loraxs_search.factors.store import FactorStore
from loraxs_search.home import factor_path
from loraxs_search.machine import side_by_side
from loraxs_search.methods import method_of
from loraxs_search.methods.loading import make_reference_logits
from loraxs_search.methods.loraxs.model import body_fingerprint
from loraxs_search.methods.stored import rounded
from loraxs_search.packing import capacity
from loraxs_search.packing.capacity import check_fits
from loraxs_search.packing.pack import Pack, PackedModel, PeftBase, Slot
from loraxs_search.records.adapter import Answers, Confirmation, HostInfo, LargestTrial, LinearProbe
from loraxs_search.records.codec import Basis, Precision, Split, to_json
from loraxs_search.records.search import Baseline
from loraxs_search.records.task import BaseModelRef, OutputScale, Task, TaskModel
from loraxs_search.records.trial import TrialReport, TrialSpec
from loraxs_search.tasks.baselines import measure_baselines
from loraxs_search.tasks.kinds import RequestGenerator, kind_of
from loraxs_search.tasks.prepared import PreparedTask, prepare, served
from loraxs_search.trial.attach import attach, check_frozen, detach
from loraxs_search.trial.evaluate import as_answers
from loraxs_search.trial.linear_probe import fit_linear_probe
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
        data, method = self.prepared(task), method_of(spec.hyperparameters)
        model = attach(self.exact_for(data.task), spec, self.factors)
        try:
            check_frozen(snapshot, method.frozen_cosines(model))
            with torch.no_grad():
                for name, parameter in model.named_parameters():
                    if parameter.requires_grad:
                        is_head, dtype = not method.is_adapter(name, model), spec.hyperparameters.stored_dtype
                        parameter.copy_(rounded(snapshot.parameters[name], dtype, is_head=is_head))
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


# Trials that are in step are scored in one evaluation, and their scheduler decides about all of them at once. A trial
# that comes soon after the others have begun joins them, and they wait for it before they are scored; one that comes
# later starts when the next of them is scored.

# The share of the steps between two reports that a trial may lag behind, and still be waited for.
_LAG = 4


@dataclass(eq=False, repr=False)
class AdvanceRequest:
    """One caller's `advance`, from its arrival to its answer; `task` is None for the host's first one.

    Args:
        is_unpacked: Whether it cannot share passes: its trial is in a pack of one, between the rounds of the others.
        may_start: Whether it may join at any time: others have been scored since it arrived.
        slot: Once it has one.
        num_steps: From the trial's step on arrival to the requested one.
    """

    spec: TrialSpec
    until: int
    snapshot: Snapshot | None
    task: Task | None = None
    is_unpacked: bool = False
    may_start: bool = False
    answer: Future[tuple[TrialReport, bytes]] = field(default_factory=Future)
    slot: Slot = field(init=False)
    num_steps: int = field(init=False)

    def __post_init__(self) -> None:
        self.until = min(self.until, self.spec.hyperparameters.max_steps)
        self.num_steps = self.until - (self.snapshot.step if self.snapshot else 0)

    @property
    def steps_left(self) -> int:
        """Steps left to the requested one; none if the trial is there or beyond."""
        return max(0, self.until - self.slot.step)


def admit(
    active: Sequence[AdvanceRequest], waiting: Sequence[AdvanceRequest], num_slots: int
) -> tuple[list[AdvanceRequest], list[AdvanceRequest]]:
    """Return the requests that join the round and those that continue waiting, both in order of arrival.

    A trial is in a pack once at most: a second caller (its first one may have died) waits for the first to be done.
    """
    inside = {request.spec.name for request in active}
    next_score = min((request.steps_left for request in active), default=None)
    admitted: list[AdvanceRequest] = []
    left: list[AdvanceRequest] = []
    for request in waiting:
        fits = len(inside) < num_slots and request.spec.name not in inside
        lag = request.num_steps - (next_score or 0)
        if fits and (next_score is None or request.may_start or lag <= request.num_steps // _LAG):
            inside.add(request.spec.name)
            admitted.append(request)
        else:
            left.append(request)
    return admitted, left


def scored_now(active: Sequence[AdvanceRequest]) -> list[AdvanceRequest]:
    """Return the requests that have reached their step; none while others are so near that they are waited for."""
    if any(0 < request.steps_left <= request.num_steps // _LAG for request in active):
        return []
    return [request for request in active if not request.steps_left]


log = logging.getLogger(__name__)
ResultT = TypeVar("ResultT")

LINGER_S = 0.05
_UNKNOWN = LargestTrial()


P = ParamSpec("P")


def _between_rounds(
    method: Callable[Concatenate[TrialHost, P], ResultT],
) -> Callable[Concatenate[TrialHost, P], ResultT]:
    """Run a method in the host's own thread, between rounds, on the base as it was loaded: no trial is on it."""

    @functools.wraps(method)
    def run(self: TrialHost, /, *args: P.args, **kwargs: P.kwargs) -> ResultT:
        return self.in_turn(functools.partial(method, self, *args, **kwargs), on_bare_base=True)

    return run


class TrialHost:
    """Holds one base and its factors on one device, and trains many trials on them at once: the contract of a host.

    Who calls: one `HostActor` in its own process, whose callers are trials and the driver. A host is built for a
    base and a first task; building it loads both.

    Threads: called from many threads at once; each call blocks until it is answered. A separate thread does all
    computation but baselines: it forms a round of every trial that waits, so trials join and leave between rounds, and
    each caller gets its answer when its own trial is where it was asked to be. Up to `slots` trials stay on the device
    between calls. A trial whose layers or method cannot share passes is a pack of one, advanced between rounds. After
    `close` only `close` is called.

    Tasks: it serves any number of tasks that load its base in the same way but for the number of outputs; None is the
    task that it began with. What cannot share passes, a method or a layer, only trials of that first task can have.
    Every call on behalf of a trial names the trial's task.

    What is kept: a host may keep trials, rows and factors between calls, and owns none of them. Each `advance` returns
    the whole state of its trial as a snapshot, and the caller's snapshot decides: where the host has the
    same trial at another step, or with other hyperparameters, it restores the caller's. So a host may die at any
    time, a call may be repeated, on another host too, and the numbers are the same: on one device, at one number of
    threads and in the same company to the last bit, otherwise within the rounding of float32.

    Raises, in any call: an error of one trial is raised to its own caller, and does not affect the next call.
    The kind of `LoraxsError` says whose fault it is:

    - BaseModelError, TaskDataError: the base or the rows are not what the node must have. The engine counts that as
      the node's fault where another host has had both.
    - BaseModelError: the trial began beside other singular vectors than this machine computes.
    - TrialDivergedError: the trial's loss, gradient, a metric or an answer is not finite.
    - TrialCancelledError: `cancel` named the trial.
    - StudyError: a snapshot cannot be read.
    - UsageError: the trial asks for what the base does not have; or it cannot share passes, and is of another task
      than the host's first one.

    Any other exception is the trial's own failure too, and is reported with its type.

    A host knows trials by `TrialSpec.name`, unique across studies. Metrics are plain floats, finite. Snapshots are
    safetensors with the trial's reports in the header (`trial.Snapshot`).

    Args:
        slots: Trials in one round; callers beyond that wait for their turn, first come, first served. None means what
            suits the device. Too many for the device's memory become fewer, with a warning.
        largest: The largest trial to come, by which slots are counted.
        device: `auto` takes the first accelerator this process sees, else the CPU.
        linger_s: How long a round waits for trials that may join it: any when there is nothing to do, otherwise those
            that have just been answered. Trials that continue together are scored together.
        gather_s: How long the very first round waits for the next of the trials that are starting.

    Raises:
        BaseModelError: several `slots` are given, and the base does not compute each row by itself.
    """

    def __init__(
        self,
        base: BaseModelRef,
        task: Task,
        *,
        slots: int | None = 1,
        largest: LargestTrial = _UNKNOWN,
        precision: Precision = "auto",
        device: str = "auto",
        linger_s: float = LINGER_S,
        gather_s: float = 0.0,
    ) -> None:
        # oneDNN forgets kernels beyond this number, and a pack uses more of them than a lone trial; read at first use.
        os.environ.setdefault("ONEDNN_PRIMITIVE_CACHE_CAPACITY", "8192")
        loaded = self._loaded = LoadedBase(base, task, precision=precision, device=device)
        # Now: another thread of a process may have its own number of threads, and no trial has put its adapter on yet.
        threads = f"cpu, {torch.get_num_threads()} threads"
        self._device_name = torch.cuda.get_device_name(loaded.device) if loaded.device.type == "cuda" else threads
        self._bare_body = bare_body(loaded.model)
        self._takes_turns = slots is None or slots == 1
        names = frozenset(module.name for module in loaded.modules)
        sharing = probe_sharing(loaded.exact, names)
        if sharing.fault and self._takes_turns:
            log.warning("Trials take turns, since of this base %s.", sharing.fault)
            sharing = Sharing("", names)
        self._unpackable = sharing.unpackable
        executor = PassExecutor(*workers_for(loaded.device))
        budget = capacity.token_budget(loaded.modules, loaded.dtype, loaded.device)
        packed = PackedModel(
            loaded.model,
            loaded.factors,
            loaded.modules,
            num_workers=executor.num_workers,
            cache_bytes=0 if slots == 1 else None,  # whose states are looked up depends on what was computed before
            sharing=sharing,
        )
        self._shared = Pack(packed, max_tokens=budget, executor=executor)
        self._unpacked = Pack(PeftBase(loaded.model, loaded.factors, names), max_tokens=budget)
        batch_tokens = largest.batch_size * float(loaded.prepared().lengths("train").mean())
        timed = functools.partial(capacity.time_pass, loaded.model)
        self._full_slots = capacity.full_slots(loaded.device, budget, executor.num_workers, batch_tokens, timed)
        if self._takes_turns and sharing.unpackable == names:
            self._full_slots = slots = 1
        head_parameters = max(loaded.head_parameters.values())
        self._num_slots = capacity.fitting_slots(
            slots or self._full_slots, loaded.modules, largest, head_parameters, executor.num_workers, loaded.device
        )
        self._linger_s, self._gather_s = linger_s, gather_s
        self._idle: dict[str, Slot] = {}  # by the trial's name, oldest use first
        self._changed = threading.Condition()
        self._arrived: list[AdvanceRequest] = []
        self._jobs: list[tuple[Callable[[], Any], bool, Future[Any]]] = []  # between rounds; whether on the bare base
        self._called = Counter[str]()  # how many callers of a trial wait for an answer
        self._cancelled: set[str] = set()
        self._steps: Mapping[str, int] = {}  # of the round's trials; replaced as a whole, so that any thread reads it
        self._closing, self._begun = False, False
        self._expected = 0
        self._worker = threading.Thread(target=self._work, name="trial-host", daemon=True)
        self._worker.start()

    # ---- what trials ask ---------------------------------------------------------------------------------------------
    def advance(
        self, spec: TrialSpec, until: int, snapshot: bytes | None, task: Task | None = None
    ) -> tuple[TrialReport, bytes]:
        """Train a trial up to a step, score the validation rows, and return the report and the state to keep.

        It trains with all others that wait; trials that are in step are scored in one evaluation, as peers.

        Args:
            until: Step to stop at; the trial's `max_steps` where that is less. A trial that is at that step already is
                scored without training.
            snapshot: The trial's last state; None starts at step 0.
        Returns:
            The report of that step; trials of the study that were scored in the same evaluation are its peers, with
            what they store. And a snapshot that holds all of the trial's reports, this one last.
        """
        state = Snapshot.from_bytes(snapshot) if snapshot else None
        request = AdvanceRequest(spec, until, state, task, self._is_unpacked(spec, task))
        with self._changed:
            self._called[spec.name] += 1
        try:
            if request.is_unpacked:

                def run() -> None:
                    active = self._placed([request])
                    while active := self._wanted(active):
                        self._steps = {spec.name: request.slot.step}
                        active = self._round(active)
                    self._steps = {}

                self.in_turn(run)
            else:
                with self._open():
                    self._arrived.append(request)
            return request.answer.result()
        finally:
            with self._changed:
                self._called[spec.name] -= 1
                if not self._called[spec.name]:
                    del self._called[spec.name]
                    self._cancelled.discard(spec.name)  # too late for this call, and not meant for the next one

    def cancel(self, names: Collection[str]) -> None:
        """End the trials of these `TrialSpec.name`s before their next step, in a pack or waiting; returns at once.

        Their callers get a TrialCancelledError. Of other names nothing is remembered: who wants to be sure asks again.
        """
        with self._changed:
            self._cancelled.update(self._called.keys() & set(names))

    def steps(self) -> Mapping[str, int]:
        """Return the steps that trials of the present round have taken, by name; returns at once.

        It is for display: a trial that waits, loads or is scored may be missing, or a step late.
        """
        return self._steps

    def close(self) -> None:
        """End the host's thread once all who wait are answered; a second call does nothing."""
        with self._changed:
            self._closing = True
            self._changed.notify_all()
        self._worker.join()

    # ---- what is asked of the bare base ------------------------------------------------------------------------------
    @_between_rounds
    def info(self, task: Task | None = None) -> HostInfo:
        """Describe base, rows and device; a task that is new to the host is read first."""
        loaded, data = self._loaded, self._loaded.prepared(task)
        loaded.exact_for(data.task)  # so that its head is counted
        _, note = resolved_pooling((task or data.task).pooling, loaded.base)
        return HostInfo(
            base=loaded.base,
            modules=loaded.modules,
            head_parameters=loaded.head_parameters[data.kind.model],
            data_fingerprint=data.data_fingerprint,
            data=replace(data.report, warnings=(*data.report.warnings, *filter(None, [note]))),
            test_fingerprint=data.test_fingerprint,
            num_rows=data.num_scored,
            device=self._device_name,
            dtype=str(loaded.dtype).removeprefix("torch."),
            versions=versions.installed(versions.TRAINING),
            base_bytes=sum(file.stat().st_size for file in weight_files(Path(loaded.base.path))),
            pooling=data.task.pooling,
            num_slots=self._num_slots,
            full_slots=self._full_slots,
            # Trials of the first task that adapt these layers take turns instead.
            unpackable=frozenset() if self._takes_turns and loaded.is_first(task) else self._unpackable,
        )

    @_between_rounds
    def decompose(self, names: Sequence[str], rank: int, basis: Basis) -> None:
        """Get the factors of these layers ahead of their use; quick when they are on disk. Changes no result."""
        weights = [matrix(self._loaded.model.get_submodule(name)) for name in names]
        self._loaded.factors.prepare(weights, rank=rank, basis=basis)

    @_between_rounds
    def confirm(self, spec: TrialSpec, snapshot: bytes, task: Task | None = None) -> Confirmation:
        """Return a trained adapter's files, and reference logits that show whether they were loaded correctly.

        The base is used in the checkpoint's own precision, which is what `from_pretrained` gives by default.
        """
        loaded, hyper, state = self._loaded, spec.hyperparameters, Snapshot.from_bytes(snapshot)
        method = method_of(hyper)
        weights = {name: matrix(loaded.exact.get_submodule(name)) for name in hyper.target_modules}
        sizes = {name: (weight.shape[0], weight.shape[1]) for name, weight in weights.items()}
        factors = dict(  # key and checksum of every factor file that the trial needs
            loaded.factors.identify(weights[module], rank=key.rank, basis=key.basis, driver=key.driver)
            for module, key in method.factors(hyper, sizes)
        )
        fingerprint = body_fingerprint(loaded.exact)  # before weights change
        with loaded.trained(spec, state, task) as (model, data):
            base = base_of(model)
            if (outputs := data.kind.outputs) != OutputScale():  # the head then answers in the task's own units
                layer = base.get_submodule(output_head(base)[0])
                assert isinstance(layer, nn.Linear)
                with torch.no_grad():
                    # Its rows' scales grow alike, and other heads are in float32.
                    layer.weight.copy_(rounded(layer.weight * outputs.spread, hyper.stored_dtype, is_head=True))
                    if layer.bias is not None:
                        layer.bias.mul_(outputs.spread).add_(outputs.mean)
            reference = make_reference_logits(model, base.config.vocab_size)
            serving = served(data.kind, data.tokenizer, getattr(base, "generation_config", None))
            ends = serving.ends if serving else ()
            return Confirmation(spec.trial_id, method.files(model, fingerprint), reference, factors, ends)

    @_between_rounds
    def answer(
        self, spec: TrialSpec, snapshot: bytes, rows: range, task: Task | None = None, split: Split = "test"
    ) -> Answers:
        """Return a trained adapter's answers to consecutive rows of a split, as it will be loaded; see `confirm`.

        They are answers whatever the task's reports are scored by.
        """
        loaded, state, indices = self._loaded, Snapshot.from_bytes(snapshot), np.arange(rows.start, rows.stop)
        with loaded.trained(spec, state, (task or loaded.task).for_candidates) as (model, data):
            scores = loaded.ask(model, data, data.kind.score(data, split, indices))
            return as_answers(data, split, indices, scores)

    @_between_rounds
    def answer_without_adapter(self, split: Split, rows: range, shots: int, task: Task | None = None) -> Answers:
        """Return the answers of the base without an adapter to consecutive rows, as it will be loaded.

        Args:
            rows: Of `split` as the task scores it, validation or test.
            shots: Worked examples in each prompt; one of those that the task's kind declares.
        """
        loaded, indices = self._loaded, np.arange(rows.start, rows.stop, rows.step)
        data = loaded.prepared((task or loaded.task).for_candidates)
        exact, started = loaded.exact_for(data.task), time.perf_counter()
        scores = loaded.ask(exact, data, data.kind.base_alone(data, split, indices, shots))
        return replace(as_answers(data, split, indices, scores), seconds=time.perf_counter() - started)

    @_between_rounds
    def linear_probe(self, task: Task | None = None) -> LinearProbe:
        """Return the output layer that heads of a task may start from, fitted on the untouched base within seconds."""
        return fit_linear_probe(self._loaded.prepared(task), self._loaded.model)

    def baselines(self, task: Task | None = None) -> tuple[Baseline, ...]:
        """Return what simple models reach on the task's rows; the caller's thread computes while trials advance."""
        data = self.in_turn(lambda: self._loaded.prepared(task))
        return measure_baselines(data, self._bare_body, self._loaded.device)

    def factor_file(self, key: str) -> bytes:
        """Return a factor file of this node, as `Confirmation.factors` names it."""
        return factor_path(key, self._loaded.factors.root).read_bytes()

    # ---- the worker's side -------------------------------------------------------------------------------------------
    def _work(self) -> None:
        torch.get_num_threads()  # fixes this thread's number: another's setting would become its own
        active: list[AdvanceRequest] = []
        while True:
            arrived: list[AdvanceRequest] = []
            jobs: list[tuple[Callable[[], Any], bool, Future[Any]]] = []
            try:
                with self._changed:
                    self._await_work(active)
                    if self._closing and not (active or self._arrived or self._jobs):
                        break
                    if active or not self._jobs:  # requests that arrive during the jobs may begin together
                        arrived, self._arrived = admit(active, self._arrived, self._num_slots)
                    jobs, self._jobs = self._jobs, []
                for run, on_bare_base, answer in jobs:
                    try:
                        if on_bare_base:
                            self._clear()
                        answer.set_result(run())
                    except Exception as error:  # noqa: BLE001  # the caller handles it
                        answer.set_exception(error)
                active = self._wanted(active + self._placed(arrived))
                if active:
                    active = self._round(active)
                self._steps = {request.spec.name: request.slot.step for request in active}
            except Exception as error:  # noqa: BLE001  # memory may end anywhere; without this thread, nobody is answered
                _refuse([*(request.answer for request in (*active, *arrived)), *(answer for *_, answer in jobs)], error)
                active = []
        self._clear()

    def _wanted(self, active: list[AdvanceRequest]) -> list[AdvanceRequest]:
        """Answer those who wait for a trial that was given up; return the requests of the round that are left."""
        with self._changed:
            unwanted = [request for request in (*active, *self._arrived) if request.spec.name in self._cancelled]
            self._arrived = [request for request in self._arrived if request not in unwanted]
            self._cancelled -= {request.spec.name for request in unwanted}
        for request in unwanted:
            request.answer.set_exception(
                TrialCancelledError(f"Trial {request.spec.name} was stopped before its next step.")
            )
        return [request for request in active if request not in unwanted]

    def _await_work(self, active: list[AdvanceRequest]) -> None:
        """Wait for work; then briefly for trials that could share it, such as those that were just answered."""
        wanted, self._expected = min(self._expected + len(active), self._num_slots), 0
        if not active:
            self._changed.wait_for(lambda: bool(self._arrived or self._jobs or self._closing))
            wanted, seen = self._num_slots, 0
            # Before the first round, as long as trials keep coming: those that begin together stay in step.
            while self._gather_s and not self._begun and seen < len(self._arrived) < self._num_slots:
                seen = len(self._arrived)
                more = lambda seen=seen: len(self._arrived) > seen or self._jobs or self._closing  # noqa: E731
                self._changed.wait_for(more, self._gather_s)
            self._begun = self._begun or (bool(self._arrived) and not self._jobs)
        if wanted > len(active):
            self._changed.wait_for(
                lambda: len(active) + len(self._arrived) >= wanted or self._jobs or self._closing, self._linger_s
            )

    def _placed(self, requests: Sequence[AdvanceRequest]) -> list[AdvanceRequest]:
        """Give requests their slots; return those that have one. The others are answered with the reason."""
        placed = list[AdvanceRequest]()
        for request in requests:
            try:
                request.slot = self._slot(request.spec, request.snapshot, request.task, request.is_unpacked)
                placed.append(request)
            except Exception as error:  # noqa: BLE001  # the caller handles it
                request.answer.set_exception(error)
        return placed

    def _slot(self, spec: TrialSpec, snapshot: Snapshot | None, task: Task | None, is_unpacked: bool) -> Slot:
        """Return the trial's slot: the one that is here at its step, or a new one in the state of its snapshot."""
        data, step = self._loaded.prepared(task), snapshot.step if snapshot else 0
        pack = self._pack(is_unpacked)
        known = {slot.name: slot for slot in pack.base.slots} if is_unpacked else self._idle
        slot = known.pop(spec.name, None)
        if slot is not None and slot.spec == spec and slot.data is data and slot.step == step:
            return slot
        return pack.join(spec, data, snapshot)

    def _pack(self, is_unpacked: bool) -> Pack:
        """Return the pack that computes a trial; nothing of the other one is on the base."""
        pack, other = (self._unpacked, self._shared) if is_unpacked else (self._shared, self._unpacked)
        other.base.clear()
        return pack

    def _clear(self) -> None:
        """Take every trial off the base."""
        self._shared.base.clear()
        self._unpacked.base.clear()

    def _round(self, active: list[AdvanceRequest]) -> list[AdvanceRequest]:
        """Train every trial by one step, score together those that have reached theirs, and return the others."""
        try:
            pack = self._pack(active[0].is_unpacked)
            training = [request for request in active if request.steps_left]
            errors = pack.step([request.slot for request in training]) if training else {}
            for request in training:
                if error := errors.get(request.spec.name):
                    request.answer.set_exception(error)
            reached = scored_now([request for request in active if not request.answer.done()])
            trained_s = [request.slot.device_s for request in reached]
            scores = pack.evaluate([request.slot for request in reached], "validation") if reached else {}
            for request, before_s in zip(reached, trained_s, strict=True):
                metrics, slot = scores[request.spec.name], request.slot
                if isinstance(metrics, LoraxsError):
                    request.answer.set_exception(metrics)
                    continue
                report = slot.report(metrics, slot.device_s - before_s)
                if not request.is_unpacked:
                    self._idle[slot.name] = slot
                    while len(self._idle) > self._num_slots:
                        self._idle.pop(next(iter(self._idle)))
                state = slot.snapshot()
                if slot.done and not method_of(slot.spec.hyperparameters).has_adapter:  # nobody asks for its weights
                    state = replace(state, parameters={}, moments={})
                metric = slot.data.task.search_metric
                peers = {  # step and score of the other trials of the same study
                    other.spec.trial_id: (other.slot.step, own[metric])
                    for other in reached
                    if other is not request and other.spec.study == request.spec.study
                    if not isinstance(own := scores[other.spec.name], LoraxsError) and metric in own
                }
                request.answer.set_result((replace(report, peers=peers), state.to_bytes()))
            if reached:
                self._expected += 0 if reached[0].is_unpacked else len(reached)
                with self._changed:
                    for waiting in self._arrived:
                        waiting.may_start = True
        except Exception as error:  # noqa: BLE001  # every waiting caller gets an answer
            _refuse([request.answer for request in active], error)
        return [request for request in active if not request.answer.done()]

    # ---- the callers' side -------------------------------------------------------------------------------------------
    def _is_unpacked(self, spec: TrialSpec, task: Task | None) -> bool:
        """Whether a trial is a pack of one: its method, or a layer that it adapts, cannot share passes.

        Only trials of the first task are ever a pack of one.
        """
        hyper = spec.hyperparameters
        takes_turns = self._takes_turns and not self._unpackable.isdisjoint(hyper.target_modules)
        return (takes_turns or not method_of(hyper).packs) and self._loaded.is_first(task)

    def in_turn(self, run: Callable[[], ResultT], *, on_bare_base: bool = False) -> ResultT:
        """Run a job in the host's own thread, between rounds; on request with every trial off the base."""
        answer: Future[ResultT] = Future()
        with self._open():
            self._jobs.append((run, on_bare_base, answer))
        return answer.result()

    @contextlib.contextmanager
    def _open(self) -> Iterator[None]:
        """Hand over work while the host takes any."""
        with self._changed:
            if self._closing:
                raise RuntimeError("The host is closed.")
            yield
            self._changed.notify_all()


def _refuse(answers: Sequence[Future[Any]], error: Exception) -> None:
    """Answer those that wait with an error."""
    for answer in answers:
        while not answer.done():
            with contextlib.suppress(MemoryError):  # there is none now, and those who wait would wait for ever
                answer.set_exception(error)
