"""What a host keeps on its device for every trial: the base, the task's data, the factors."""

from __future__ import annotations

import tempfile
from importlib.metadata import version
from pathlib import Path

import torch
from peft import PeftModel
from transformers import PreTrainedModel

from loraxs_search.adapter import make_probe, use_factor_store
from loraxs_search.base_model import head_names, linear_modules, load_model, load_tokenizer, locate
from loraxs_search.packing.resident_factors import ResidentFactors
from loraxs_search.records import BaseModelRef, Confirmation, HostInfo, Precision, Task, TrialSpec
from loraxs_search.tasks import prepare
from loraxs_search.trial import Snapshot, attach, choose_dtype, detach, evaluate, load_parameters

_PACKAGES = ("torch", "transformers", "peft", "loraxs-search")


class Resident:
    """A base loaded once, in the precision trials run in and in the checkpoint's own; one model when they agree.

    Args:
        device: `auto` takes the first accelerator this process sees, else the CPU.
    """

    def __init__(self, base: BaseModelRef, task: Task, *, precision: Precision = "auto", device: str = "auto") -> None:
        self.device = _choose_device(device)
        self.base = locate(base)
        self.task = task
        self.data = prepare(task, load_tokenizer(self.base))
        self.exact = self._load(None)
        # Counted before any trial puts its own head beside it.
        heads = [self.exact.get_submodule(name) for name in head_names(self.exact)]
        self._head_parameters = sum(p.numel() for head in heads for p in head.parameters())
        self.dtype = choose_dtype(precision, self.device)
        self.model = self.exact if self.dtype == self.exact.dtype else self._load(self.dtype)
        self.modules = linear_modules(self.base, task.kind, self.data.head.num_labels)
        self.factors = ResidentFactors(self.model, self.exact, [module.name for module in self.modules])

    def info(self) -> HostInfo:
        """Describe base, data and device."""
        return HostInfo(
            base=self.base,
            modules=self.modules,
            head_parameters=self._head_parameters,
            data_fingerprint=self.data.data_fingerprint,
            num_rows={split: self.data.num_rows(split) for split in ("train", "validation", "test")},
            device=_device_name(self.device),
            dtype=str(self.dtype).removeprefix("torch."),
            versions={name: version(name) for name in _PACKAGES},
        )

    def confirm(self, spec: TrialSpec, snapshot: bytes, *, score: bool = True) -> Confirmation:
        """Return a trained adapter's files and, with `score`, its metrics on the test split, as it will be loaded.

        The base is used in the checkpoint's own precision, which is what `from_pretrained` gives by default; no other
        trial may be on it.
        """
        with use_factor_store(self.factors):
            model = attach(self.exact, spec)
        try:
            load_parameters(model, Snapshot.from_bytes(snapshot))
            metrics = evaluate(model, self.data, "test", self.device) if score else {}
            probe = make_probe(model, self.exact.config.vocab_size)
            return Confirmation(spec.trial_id, metrics, _adapter_files(model), probe)
        finally:
            detach(model)

    def _load(self, dtype: torch.dtype | None) -> PreTrainedModel:
        """Load the base in `dtype`; None means the checkpoint's own, which is what others load."""
        num_labels = self.data.head.num_labels
        return load_model(self.base, self.task.kind, num_labels, dtype=dtype, device=self.device)


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
