"""What a host keeps on its device for every trial: the base, the tasks' data, the factors."""

from __future__ import annotations

import tempfile
from collections.abc import Mapping, Sequence
from functools import cached_property
from importlib.metadata import version
from pathlib import Path

import torch
from peft import PeftModel
from transformers import PreTrainedModel

from loraxs_search.adapter import body_fingerprint, make_probe, module_settings, use_factor_store
from loraxs_search.base_model import (
    head_names,
    linear_modules,
    load_model,
    load_tokenizer,
    locate,
    matrix,
    use_padded_attention,
    weight_bytes,
)
from loraxs_search.home import factor_path
from loraxs_search.packing.anatomy import Anatomy
from loraxs_search.packing.lanes import lanes_of
from loraxs_search.packing.readout import Readout
from loraxs_search.packing.resident_factors import ResidentFactors
from loraxs_search.records import (
    BaseModelRef,
    Basis,
    Confirmation,
    HostInfo,
    Precision,
    Task,
    TaskKind,
    TrialSpec,
    to_json,
)
from loraxs_search.tasks import PreparedTask, prepare
from loraxs_search.tasks.metrics import Values
from loraxs_search.torch_threads import side_by_side
from loraxs_search.trial import Snapshot, adapter_config, answer, attach, choose_dtype, detach, load_parameters

_PACKAGES = ("torch", "transformers", "peft", "loraxs-search")


class Resident:
    """A base loaded once, in the precision trials run in and in the checkpoint's own; one model when they agree.

    Not thread-safe where a task is new.

    Args:
        task: The first task; others are prepared when they are asked for.
        device: `auto` takes the first accelerator this process sees, else the CPU.
    """

    def __init__(self, base: BaseModelRef, task: Task, *, precision: Precision = "auto", device: str = "auto") -> None:
        self.device = _choose_device(device)
        self._device_name = _device_name(self.device)  # now: another thread of a process may have its own setting
        self.base = locate(base)
        self.task = task
        self._prepared: dict[str, PreparedTask] = {}
        self._exact: dict[tuple[TaskKind, int], tuple[PreTrainedModel, int]] = {}
        self._readouts: dict[PreTrainedModel, Readout] = {}
        self.data = self.prepared(task)
        self.exact, _ = self._exact_for(task)
        self.dtype = choose_dtype(precision, self.device)
        self.model = self.exact if self.dtype == self.exact.dtype else self._load(task, self.dtype)
        self.modules = linear_modules(self.base, task.kind, self.data.head.num_labels)
        self.factors = ResidentFactors(self.model, self.exact, [module.name for module in self.modules])

    def prepared(self, task: Task | None = None) -> PreparedTask:
        """Return a task's data, the first task's for None.

        Raises:
            TaskDataError: the data do not fit the declaration.
        """
        task = task or self.task
        key = to_json(task)
        if key not in self._prepared:
            self._prepared[key] = prepare(task, load_tokenizer(self.base))
        return self._prepared[key]

    def info(self, task: Task | None = None) -> HostInfo:
        """Describe base, data and device."""
        data = self.prepared(task)
        return HostInfo(
            base=self.base,
            modules=self.modules,
            head_parameters=self._exact_for(data.task)[1],
            data_fingerprint=data.data_fingerprint,
            num_rows={split: data.num_rows(split) for split in ("train", "validation", "test")},
            device=self._device_name,
            dtype=str(self.dtype).removeprefix("torch."),
            versions={name: version(name) for name in _PACKAGES},
            base_bytes=weight_bytes(Path(self.base.path)),
            data=data.report,
        )

    def decompose(self, names: Sequence[str], rank: int, basis: Basis) -> None:
        """Get the factors of these layers ahead of their use; quick when they are on disk."""
        weights = {name: matrix(self.model.get_submodule(name)) for name in names}
        self.factors.prepare(weights, rank=rank, basis=basis)

    def confirm(
        self, spec: TrialSpec, snapshot: bytes, task: Task | None = None, *, score: bool = True
    ) -> Confirmation:
        """Return a trained adapter's files and, with `score`, its metrics on the test split, as it will be loaded.

        The base is used in the checkpoint's own precision, which is what `from_pretrained` gives by default; no other
        trial may be on it.
        """
        data = self.prepared(task)
        exact, _ = self._exact_for(data.task)
        factors = self._factor_files(spec) if score else {}
        with use_factor_store(self.factors):
            model = attach(exact, spec)
        try:
            load_parameters(model, Snapshot.from_bytes(snapshot))
            model.active_peft_config.body_fingerprint = list(self._body_fingerprint)
            metrics, predictions = self._answer(model, exact, data) if score else ({}, None)
            return Confirmation(
                spec.trial_id,
                metrics,
                files=_adapter_files(model),
                probe=make_probe(model, exact.config.vocab_size),
                predictions=() if predictions is None else tuple(predictions.tolist()),
                labels=() if predictions is None else tuple(data.labels("test").tolist()),
                factors=factors,
            )
        finally:
            detach(model)

    def factor_file(self, key: str) -> bytes:
        """Return a factor file as it lies on this node."""
        return factor_path(key, self.factors.root).read_bytes()

    @cached_property
    def _body_fingerprint(self) -> tuple[float, ...]:
        """Of the one body that the models of all tasks share."""
        return body_fingerprint(self.exact)

    def _answer(
        self, model: PeftModel, exact: PreTrainedModel, data: PreparedTask
    ) -> tuple[Mapping[str, float], Values]:
        """Return metrics and answers on the test split; of the topmost layer, what no head looks at is left out."""
        if exact not in self._readouts:
            self._readouts[exact] = Readout(exact, Anatomy(exact, self.modules).layers)
        count, threads = lanes_of(self.device)
        with self._readouts[exact].placed(), side_by_side(count, threads) as pool:
            return answer(model, data, "test", self.device, pool if count > 1 else None)

    def _factor_files(self, spec: TrialSpec) -> dict[str, str]:
        """Return key and checksum of every factor file that a trial stands on."""
        found = {}
        config = adapter_config(spec.hyperparameters)
        for name in spec.hyperparameters.target_modules:
            weight = matrix(self.exact.get_submodule(name))
            its = module_settings(config, name, *weight.shape)
            key, checksum = self.factors.identify(weight, rank=its.factor_rank, basis=its.basis, driver=its.driver)
            found[key] = checksum
        return found

    def _exact_for(self, task: Task) -> tuple[PreTrainedModel, int]:
        """Return the base in the checkpoint's precision with a task's head, and the parameters of that head.

        All share one body: an adapter is confirmed on the very weights it was trained on.
        """
        key = (task.kind, self.prepared(task).head.num_labels)
        if key not in self._exact:
            model = self._load(task, None)
            if self._exact:
                model.base_model.load_state_dict(self.exact.base_model.state_dict(keep_vars=True), assign=True)
            # Counted before any trial puts its own head beside it.
            heads = [model.get_submodule(name) for name in head_names(model)]
            self._exact[key] = model, sum(p.numel() for head in heads for p in head.parameters())
        return self._exact[key]

    def _load(self, task: Task, dtype: torch.dtype | None) -> PreTrainedModel:
        """Load the base in `dtype`; None means the checkpoint's own, which is what others load."""
        num_labels = self.prepared(task).head.num_labels
        model = load_model(self.base, task.kind, num_labels, dtype=dtype, device=self.device)
        if self.device.type == "cpu":
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


def _adapter_files(model: PeftModel) -> dict[str, bytes]:
    with tempfile.TemporaryDirectory() as folder:
        model.save_pretrained(folder)
        keep = ("adapter_config.json", "adapter_model.safetensors")
        return {name: (Path(folder) / name).read_bytes() for name in keep}
