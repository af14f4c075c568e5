"""A trial's whole state as bytes: tensors and a JSON header in one safetensors file, nothing pickled."""

from __future__ import annotations

import json
import logging
from collections.abc import Mapping
from dataclasses import dataclass

import safetensors.torch
import torch

from loraxs_search.errors import StudyError
from loraxs_search.records.codec import entry_of, from_json, to_json
from loraxs_search.records.trial import TrialReport

log = logging.getLogger(__name__)


@dataclass(frozen=True)
class Snapshot:
    """The state that a `Slot` needs to continue exactly where it stopped.

    Args:
        parameters: Trained tensors by PEFT's names, as trained (float32).
        moments: AdamW's `exp_avg` and `exp_avg_sq` of each by `<kind>/<parameter name>`; empty before the first step.
        reports: Every report so far; the last one's step is the current step.
        study: The study that the trial is of.
        frozen: `Method.frozen_cosines` of the adapter that was trained.
    """

    trial_id: str
    step: int
    parameters: Mapping[str, torch.Tensor]
    moments: Mapping[str, torch.Tensor]
    reports: tuple[TrialReport, ...]
    device_s: float
    num_tokens: int
    study: str = ""
    frozen: tuple[float, ...] = ()

    def to_bytes(self) -> bytes:
        """Serialise; equal snapshots give equal bytes."""
        tensors = {f"parameter/{k}": v for k, v in self.parameters.items()}
        tensors |= {f"moment/{k}": v for k, v in self.moments.items()}
        header = {
            "trial_id": self.trial_id,
            "step": self.step,
            "device_s": self.device_s,
            "num_tokens": self.num_tokens,
            "reports": self.reports,
        }
        header |= {name: value for name in ("study", "frozen") if (value := getattr(self, name))}
        metadata = {"trial": to_json(header)}  # one entry: safetensors writes several in random order
        contiguous = {k: v.detach().to("cpu").contiguous() for k, v in sorted(tensors.items())}
        return safetensors.torch.save(contiguous, metadata)

    @classmethod
    def from_bytes(cls, content: bytes) -> Snapshot:
        """Read back what `to_bytes` wrote.

        Raises:
            StudyError: the bytes are damaged.
        """
        try:
            tensors = safetensors.torch.load(content)
            header = entry_of(content, "trial")
            reports = from_json(tuple[TrialReport, ...], json.dumps(header.pop("reports")))
            frozen = tuple(map(float, header.pop("frozen", ())))
        except (safetensors.SafetensorError, ValueError, KeyError, TypeError) as error:
            raise StudyError(f"A snapshot must be whole, but: {error}.") from error
        parameters, moments = (
            {key.removeprefix(prefix): value for key, value in tensors.items() if key.startswith(prefix)}
            for prefix in ("parameter/", "moment/")
        )
        return cls(parameters=parameters, moments=moments, reports=reports, frozen=frozen, **header)
