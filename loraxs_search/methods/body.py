"""The fingerprint of a base's body, adapted or not: a few numbers that identify it.

R has a meaning where the adapted weights are those of the training, which the factors' fingerprints check. The model
is the one that was scored only if embeddings, norms and the other layers are the same too.
"""

from __future__ import annotations

from collections.abc import Iterator, Sequence

import torch
from torch import Tensor, nn

from loraxs_search.errors import BaseModelError
from loraxs_search.factors import agrees, fingerprint_of_all

# Rounding to bfloat16 comes first, so the same checkpoint gives the same numbers up to the order of a sum; loaded in
# float16, one number in sixteen is rounded to another neighbour, which moves them by some 1e-3.
_TOLERANCE, _FLOAT16_TOLERANCE = 1e-4, 1e-2


def body_fingerprint(model: nn.Module) -> tuple[float, ...]:
    """Return three numbers of a sample of the base's own weights below its head, whatever adapters are on it.

    Empty while weights are still on the meta device.
    """
    tensors = _tensors(model)
    return () if any(tensor.is_meta for tensor in tensors) else fingerprint_of_all(tensors)


def check_body(expected: Sequence[float], model: nn.Module) -> None:
    """Refuse a body whose fingerprint differs from the one in an adapter's config.

    Raises:
        BaseModelError: they differ; the message has both.
    """
    if not expected:  # an adapter that no search has made has none
        return
    actual, halved = body_fingerprint(model), any(tensor.dtype == torch.float16 for tensor in _tensors(model))
    if actual and not agrees(expected, actual, tolerance=_FLOAT16_TOLERANCE if halved else _TOLERANCE):
        raise BaseModelError(
            f"The base's body must have the fingerprint {list(expected)}, in which the adapter was trained, "
            f"but got {list(actual)}: its adapted layers are the same, something else below its head is not.",
            hint="load the base that the adapter was trained on, at the same revision, not quantised, and put adapters "
            "on it before it is changed (resized embeddings, merged adapters); to start a new adapter from this config "
            "instead, clear its `body_fingerprint` and `factor_fingerprints`",
        )


def _tensors(model: nn.Module) -> list[Tensor]:
    """Return the body's parameters by name; numbers of a quantised layer are codes, and it is another body anyway."""
    parameters = dict(_own(getattr(model, getattr(model, "base_model_prefix", ""), model), ""))
    return [parameters[name] for name in sorted(parameters) if parameters[name].is_floating_point()]


def _own(module: nn.Module, prefix: str) -> Iterator[tuple[str, Tensor]]:
    """Yield the parameters that `module` had before PEFT wrapped any of its layers, by the names they had then."""
    for wrapped in ("base_layer", "original_module"):
        if isinstance(inner := getattr(module, wrapped, None), nn.Module):
            yield from _own(inner, prefix)
            return
    for name, parameter in module.named_parameters(recurse=False):
        yield f"{prefix}{name}", parameter
    for name, child in module.named_children():
        yield from _own(child, f"{prefix}{name}.")
