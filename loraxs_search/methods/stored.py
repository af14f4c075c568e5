"""What is stored of an adapter: its numbers in fewer bits, and the layout of its file.

A trial trains in float32. Whatever is scored, confirmed or written has first been rounded to the trial's
`stored_dtype`, so a score is that of the numbers which are stored. `int8` has one scale for each matrix of the adapter,
and one for each row of a head's matrix; biases stay as they are. A scale has 16 significant bits: its products with
codes are exact in float32, and rounding what was rounded changes nothing. In `float16` a head stays in float32: what
answers in the units of a regression may be larger or smaller than a float16 can be.

LoRA-XS's file has R of all modules, sorted by name, in one tensor (modules, r, r): 36 names would be a third of the
bytes. A tensor of codes has its scales beside it, under its own name and `_scale`.
"""

from __future__ import annotations

from collections.abc import Iterable, Mapping

import torch
from torch import Tensor

from loraxs_search.errors import IntegrityError
from loraxs_search.methods._base import ROOT, SCALE, R
from loraxs_search.records.codec import StoredDtype

_MOST = 127  # codes are symmetric: -127 to 127
_OF_ADAPTERS = (f"{ROOT}{R}", ".lora_A.weight", ".lora_B.weight")  # the names of others are a head's


def rounded(value: Tensor, dtype: StoredDtype, *, is_head: bool) -> Tensor:
    """Return float32 numbers as they will be read again.

    Args:
        value: Of an adapter, (..., rows, columns) or a vector, or a parameter of a head, (rows, ...).
    """
    numbers, scales = _narrowed(value, dtype, is_head=is_head)
    return numbers.float() if scales is None else numbers * scales


def _narrowed(value: Tensor, dtype: StoredDtype, *, is_head: bool) -> tuple[Tensor, Tensor | None]:
    """Return numbers in `dtype` or float32, and for int8 the float32 scales that broadcast with them."""
    if dtype == "float32" or (is_head and (dtype == "float16" or value.dim() < 2)):
        return value, None
    if dtype == "float16":
        return value.half(), None
    axes = tuple(range(1, value.dim())) if is_head else (-1,) if value.dim() < 2 else (-2, -1)
    largest = value.abs().amax(axes, keepdim=True).float()
    mantissa, exponent = torch.frexp(largest / _MOST)
    scales = torch.ldexp((mantissa * 2**16).round() / 2**16, exponent)
    codes = (value / scales.where(scales > 0, 1)).round().clamp(-_MOST, _MOST)
    return codes.to(torch.int8), scales


def compact(tensors: Mapping[str, Tensor], dtype: StoredDtype) -> dict[str, Tensor]:
    """Return an adapter's tensors as its file has them: R of all layers in one, numbers in few bits.

    Args:
        tensors: As PEFT names them in a file, float32.
    """
    own = sorted((name for name in tensors if name.endswith(f".{R}")), key=lambda name: name.removesuffix(f".{R}"))
    found = {name: value for name, value in tensors.items() if name not in own}
    if own:
        found[f"{ROOT}{R}"] = torch.stack([tensors[name] for name in own])
    made = dict[str, Tensor]()
    for name, value in found.items():
        numbers, scales = _narrowed(value, dtype, is_head=not name.endswith(_OF_ADAPTERS))
        made[name] = numbers.contiguous()
        if scales is not None:
            made[f"{name}{SCALE}"] = scales.flatten()
    return made


def expanded(tensors: Mapping[str, Tensor], modules: Iterable[str]) -> dict[str, Tensor]:
    """Return the tensors of a file as PEFT names them, float32.

    Args:
        tensors: Of LoRA-XS's file; what has PEFT's names already, and is no code, is returned as it is.
        modules: Full names of the adapted modules.
    Raises:
        IntegrityError: the file has other numbers of modules or scales, or scales that are none.
    """
    read = dict[str, Tensor]()
    for name, value in tensors.items():
        if name.endswith(SCALE) and name.removesuffix(SCALE) in tensors:
            continue
        scales = tensors.get(f"{name}{SCALE}")
        if scales is None and value.dtype != torch.int8:
            read[name] = value.float() if value.dtype == torch.float16 else value
            continue
        if value.dtype != torch.int8 or scales is None or scales.shape != value.shape[:1]:
            got = "none" if scales is None else f"{tuple(scales.shape)} beside {value.dtype}"
            raise IntegrityError(f"{name} must be int8 with scales of shape {tuple(value.shape[:1])}, but got {got}.")
        if scales.dtype != torch.float32 or not (scales >= 0).all() or not scales.isfinite().all():
            raise IntegrityError(f"The scales of {name} must be float32, finite and not negative.")
        read[name] = value * scales.view(-1, *[1] * (value.dim() - 1))
    stack, names = read.pop(f"{ROOT}{R}", None), sorted(modules)
    if stack is None:
        return read
    if len(stack) != len(names):
        raise IntegrityError(f"An adapter of {len(names)} modules must have as many R, but its file has {len(stack)}.")
    return {**{f"{ROOT}{name}.{R}": own for name, own in zip(names, stack, strict=True)}, **read}
