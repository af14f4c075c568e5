"""Whether a device's memory holds a base, asked before any of it is loaded.

A base is held once where trials run in the checkpoint's own precision, as bfloat16 checkpoints do by default wherever
bfloat16 is fast. Otherwise it is held twice, and neither can be made from the other when it is asked for. Confirmation
and scores of candidates take the checkpoint's numbers, and so do factors, at any time: a trial that joins with a new
rank or basis is decomposed from them, since rounded weights have other singular vectors. Trials, and yardsticks in
another thread beside them, take those that they run in. Casting the one body to and fro would be exact from bfloat16
to float32 alone, and would pull the weights from under whoever computes.
"""

from __future__ import annotations

import json
from pathlib import Path

import torch

from loraxs_search.base_model import numbers_by_dtype, weight_bytes
from loraxs_search.errors import BaseModelError
from loraxs_search.memory import free_bytes
from loraxs_search.records import BaseModel

_DTYPES = {"F64": torch.float64, "F32": torch.float32, "F16": torch.float16, "BF16": torch.bfloat16}


def check_fits(base: BaseModel, dtype: torch.dtype, device: torch.device) -> None:
    """Refuse a base that the free memory of its device cannot hold.

    Args:
        dtype: Precision that trials run in.
    Raises:
        BaseModelError: it needs more than is free; the hint says what would fit.
    """
    free, needed = free_bytes(device), needed_bytes(base, dtype)
    if needed <= free:
        return
    own = _checkpoint_dtype(base)
    twice = own is not None and own != dtype
    copies = f" as {_name(own)} and, for trials, as {_name(dtype)}" if twice else ""
    raise BaseModelError(
        f"A base must fit into the memory of its device, but {base.id} takes {_gib(needed)}{copies}, and"
        f" {_gib(free)} of {device} are free.",
        hint=_remedy(base, free),
    )


def needed_bytes(base: BaseModel, dtype: torch.dtype) -> int:
    """Return the memory of a base's weights: in the checkpoint's own precision, and in `dtype` if that is another one.

    Counted from what its files say of themselves; files that are no safetensors count as long as they are.
    """
    own = _checkpoint_dtype(base)
    if own is None:
        return weight_bytes(Path(base.path))
    return _num_floats(base) * (own.itemsize + (dtype.itemsize if dtype != own else 0))


def _remedy(base: BaseModel, free: int) -> str:
    other = "use a device with more memory, or a smaller base"
    options = {f"set `search.precision` to {_name(d)}": needed_bytes(base, d) for d in (torch.bfloat16, torch.float32)}
    if _checkpoint_dtype(base) not in (None, torch.bfloat16):
        options["use a copy of the base that is saved as bfloat16"] = _num_floats(base) * torch.bfloat16.itemsize
    fitting = [(needed, what) for what, needed in options.items() if needed <= free]
    return "; or ".join([*(f"{what}, which takes {_gib(needed)}" for needed, what in fitting), other])


def _checkpoint_dtype(base: BaseModel) -> torch.dtype | None:
    """Return the precision that `from_pretrained` gives by default: the configuration's, else that of most numbers.

    None where the files do not say what is in them.
    """
    numbers = _floats(base)
    if not numbers:
        return None
    config = json.loads((Path(base.path) / "config.json").read_text())
    declared = getattr(torch, str(config.get("dtype", config.get("torch_dtype"))), None)
    return declared if declared in _DTYPES.values() else max(numbers, key=lambda dtype: numbers[dtype])


def _floats(base: BaseModel) -> dict[torch.dtype, int]:
    numbers = numbers_by_dtype(Path(base.path))
    return {_DTYPES[name]: count for name, count in numbers.items() if name in _DTYPES}


def _num_floats(base: BaseModel) -> int:
    return sum(_floats(base).values())


def _name(dtype: torch.dtype | None) -> str:
    return str(dtype).removeprefix("torch.")


def _gib(num_bytes: int) -> str:
    return f"{num_bytes / 2**30:.2f} GiB"
