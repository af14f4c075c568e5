"""The names of `adapter_model.safetensors`: R of each module, and the head."""

from __future__ import annotations

from collections.abc import Mapping

from torch import Tensor

from loraxs_search.errors import IntegrityError
from loraxs_search.methods._names import ROOT, R


def split_tensors(tensors: Mapping[str, Tensor]) -> tuple[dict[str, Tensor], dict[str, Tensor]]:
    """Tell R by module from head parameters by full name, PEFT's names taken off.

    Raises:
        IntegrityError: a name is not one that PEFT writes for LoRA-XS.
    """
    r, head = {}, {}
    for key, value in tensors.items():
        name = key.removeprefix(ROOT)
        if name == key:
            raise IntegrityError(f"Tensors of an adapter must be named {ROOT}..., but got {key!r}.")
        module, _, last = name.rpartition(".")
        if last == R:
            r[module] = value
        else:
            head[name] = value
    return r, head
