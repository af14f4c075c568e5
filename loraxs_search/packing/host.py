"""The trial host: one base and its factors resident on one device, shared by every trial that runs there."""

from __future__ import annotations

import tempfile
from collections.abc import Mapping
from dataclasses import dataclass
from importlib.metadata import version
from pathlib import Path

import torch
from peft import PeftModel
from transformers import PreTrainedModel

from loraxs_search.adapter import make_probe, use_factor_store
from loraxs_search.base_model import head_names, linear_modules, load_model, load_tokenizer, locate
from loraxs_search.packing.resident_factors import ResidentFactors
from loraxs_search.records import (
    BaseModel,
    BaseModelRef,
    LinearModule,
    Precision,
    Probe,
    Split,
    Task,
    TrialReport,
    TrialSpec,
)
from loraxs_search.tasks import prepare
from loraxs_search.trial import Snapshot, TrialRun, attach, choose_dtype, detach, evaluate, load_parameters

_PACKAGES = ("torch", "transformers", "peft", "loraxs-search")


@dataclass(frozen=True)
class HostInfo:
    """What a host found on its node: the base's modules, the data, the device."""

    base: BaseModel
    modules: tuple[LinearModule, ...]
    head_parameters: int
    data_fingerprint: str
    num_rows: Mapping[Split, int]
    device: str
    dtype: str
    versions: Mapping[str, str]


@dataclass(frozen=True)
class Confirmation:
    """A trained adapter as others will load it: scores in the checkpoint's own precision, files, end-to-end probe."""

    trial_id: str
    test_metrics: Mapping[str, float]
    files: Mapping[str, bytes]
    probe: Probe


class TrialHost:
    """Advances trials, one at a time, on a base that is loaded once.

    A host keeps no trial alive that it could not lose: each `advance` returns the trial's snapshot, and takes one up
    when the trial is not the one at hand. Not thread-safe: one caller at a time.

    Args:
        device: `auto` takes the first accelerator this process sees, else the CPU.
    """

    def __init__(self, base: BaseModelRef, task: Task, *, precision: Precision = "auto", device: str = "auto") -> None:
        self._device = _choose_device(device)
        self._base = locate(base)
        self._task = task
        self._data = prepare(task, load_tokenizer(self._base))
        self._exact = self._load(None)
        self._dtype = choose_dtype(precision, self._device)
        self._model = self._exact if self._dtype == self._exact.dtype else self._load(self._dtype)
        self._modules = linear_modules(self._base, task.kind, self._data.head.num_labels)
        self._factors = ResidentFactors(self._model, self._exact, [module.name for module in self._modules])
        self._active: TrialRun | None = None

    def info(self) -> HostInfo:
        """Describe base, data and device."""
        heads = [self._exact.get_submodule(name) for name in head_names(self._exact)]
        return HostInfo(
            base=self._base,
            modules=self._modules,
            head_parameters=sum(p.numel() for head in heads for p in head.parameters()),
            data_fingerprint=self._data.data_fingerprint,
            num_rows={split: self._data.num_rows(split) for split in ("train", "validation", "test")},
            device=_device_name(self._device),
            dtype=str(self._dtype).removeprefix("torch."),
            versions={name: version(name) for name in _PACKAGES},
        )

    def advance(self, spec: TrialSpec, until: int, snapshot: bytes | None) -> tuple[TrialReport, bytes]:
        """Train `spec` up to step `until` and score it; return the report and the state to keep.

        Args:
            snapshot: The trial's last state, None when it has none; a host that has the trial at hand ignores it.

        Raises:
            TrialDivergedError: the trial has no finite loss or metric; the host is ready for the next one.
        """
        try:
            run = self._take_up(spec, Snapshot.from_bytes(snapshot) if snapshot else None)
            report = run.advance(until)
        except Exception:
            self.release(spec.trial_id)
            raise
        return report, run.snapshot().to_bytes()

    def release(self, trial_id: str) -> None:
        """Forget a trial if it is the one at hand."""
        if self._active is not None and self._active.spec.trial_id == trial_id:
            self._park()

    def confirm(self, spec: TrialSpec, snapshot: bytes) -> Confirmation:
        """Score a trained adapter on the test split, as it will be loaded, and return its files.

        The base is used in the checkpoint's own precision, which is what `from_pretrained` gives by default.
        """
        self._park()
        with use_factor_store(self._factors):
            model = attach(self._exact, spec)
        try:
            load_parameters(model, Snapshot.from_bytes(snapshot))
            metrics = evaluate(model, self._data, "test", self._device)
            probe = make_probe(model, self._exact.config.vocab_size)
            return Confirmation(spec.trial_id, metrics, _adapter_files(model), probe)
        finally:
            detach(model)

    # ---- inside ------------------------------------------------------------------------------------------------------
    def _take_up(self, spec: TrialSpec, snapshot: Snapshot | None) -> TrialRun:
        run = self._active
        step = snapshot.step if snapshot else 0
        if run is not None and run.spec == spec and run.step == step:
            return run
        self._park()
        with use_factor_store(self._factors):
            model = attach(self._model, spec)
        self._active = TrialRun(spec, model, self._data, self._device, snapshot)
        return self._active

    def _park(self) -> None:
        if self._active is not None:
            detach(self._active.model)
            self._active = None

    def _load(self, dtype: torch.dtype | None) -> PreTrainedModel:
        """Load the base in `dtype`; None means the checkpoint's own, which is what others load."""
        num_labels = self._data.head.num_labels
        return load_model(self._base, self._task.kind, num_labels, dtype=dtype, device=self._device)


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
