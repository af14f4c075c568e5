"""Factors of the first step of full fine-tuning, in place of those of the weight.

AdamW's first step moves every number of a weight by the learning rate, against the sign of its gradient. So the step is
rate * -sign(G), and the factors are those of -sign(G) = U S V^T: with A = V^T, B = U and R = rate * S, the adapter
starts at the step's best approximation of its rank.

Source: arXiv 2411.19557, sections 3.3 and 3.4, and its reference implementation.
"""

from __future__ import annotations

import json
from collections.abc import Mapping
from pathlib import Path

import torch
from safetensors import safe_open
from safetensors.torch import save
from torch import Tensor

from loraxs_search.errors import BaseModelError
from loraxs_search.factors._compute import Factors, decompose, resolve_driver

GRADIENT = "gradient"
ALGORITHM_VERSION = 1  # raise when any change moves the numbers
_NAMES = ("left", "singular_values", "right")
_ABOUT = "factor_set"


def gradient_factors(gradient: Tensor, *, rank: int) -> Factors:
    """Decompose the direction of the first step against a gradient (out, in), of any dtype, on the CPU.

    Args:
        rank: Components to keep; a smaller matrix has min(out, in).
    Raises:
        BaseModelError: the gradient is not finite.
    """
    if not torch.isfinite(gradient).all():
        raise BaseModelError(
            "A gradient must be finite to be decomposed, but got NaN or infinity in it.",
            hint="use `search.precision: float32`, or another basis",
        )
    rank = min(rank, *gradient.shape)
    driver = resolve_driver("auto", "top", *gradient.shape)
    left, values, right = decompose(-gradient.detach().to("cpu", torch.float64).sign(), rank=rank, driver=driver)
    return Factors(left, values, right, driver=driver, basis=GRADIENT)


def pack_factors(factors: Mapping[str, Factors], recipe: Mapping[str, object]) -> bytes:
    """Return factors by module as one safetensors file, the same bytes for the same factors.

    Args:
        recipe: All that they depend on, for people.
    """
    tensors = {f"{module}/{name}": getattr(own, name) for module, own in factors.items() for name in _NAMES}
    return save(tensors, {_ABOUT: json.dumps({"algorithm": ALGORITHM_VERSION, **recipe}, sort_keys=True)})


def read_set(path: Path, module: str) -> Factors:
    """Return a module's factors out of a file that `pack_factors` made.

    Raises:
        BaseModelError: they are not in it.
    """
    with safe_open(path, framework="pt") as file:
        if f"{module}/left" not in file.keys():  # noqa: SIM118  # it is no mapping
            raise BaseModelError(
                f"{path.name} must have the factors of {module}, but has none.",
                hint="launch the study again under another name",
            )
        left, values, right = (file.get_tensor(f"{module}/{name}").clone() for name in _NAMES)
    return Factors(left, values, right, driver="exact", basis=GRADIENT)
