"""Which number format the frozen base is held in."""

from __future__ import annotations

from pathlib import Path

import torch

from loraxs_search.records import Precision

_CPU_BF16_FLAGS = {"avx512_bf16", "amx_bf16"}


def choose_dtype(precision: Precision, device: torch.device) -> torch.dtype:
    """Return the base's dtype: as asked, or for `auto` bfloat16 where the hardware multiplies it natively.

    Emulated bfloat16 is slower than float32 on every processor measured, so it is never chosen for a device
    without the instructions.
    """
    if precision == "float32":
        return torch.float32
    if precision == "bfloat16":
        return torch.bfloat16
    native = _cuda_has_bf16(device) if device.type == "cuda" else _cpu_has_bf16()
    return torch.bfloat16 if native else torch.float32


def _cuda_has_bf16(device: torch.device) -> bool:
    return torch.cuda.get_device_capability(device)[0] >= 8  # Ampere brought bf16 tensor cores


def _cpu_has_bf16() -> bool:
    info = Path("/proc/cpuinfo")
    if not info.exists():
        return False
    flags = next((line for line in info.read_text().splitlines() if line.startswith("flags")), "")
    return not _CPU_BF16_FLAGS.isdisjoint(flags.split())
