"""An adapter as plain LoRA, for tools that know no LoRA-XS, and the names in `adapter_model.safetensors`.

The conversion is exact, since scale * B R A = (scale * B R) A.
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import replace

from peft import PeftModel
from torch import Tensor

from loraxs_search.errors import IntegrityError
from loraxs_search.methods import _plain_lora
from loraxs_search.methods.loraxs.layer import LoraXSLayer
from loraxs_search.methods.names import ADAPTER, ROOT, R


def as_plain_lora(model: PeftModel) -> _plain_lora.PlainLora:
    """Return the same function as LoRA, whose A is A and whose B is scale * B R; layers of `pass_through` go along."""
    pairs = {name: layer.to_lora(ADAPTER) for name, layer in _plain_lora.tuner_layers(model, LoraXSLayer)}
    lora = _plain_lora.as_plain_lora(model, pairs)
    idle = model.active_peft_config.pass_through
    return replace(lora, others={**lora.others, **_identities(model, idle)}, saved=[*lora.saved, *idle])


def _identities(model: PeftModel, names: list[str]) -> dict[str, Tensor]:
    """Return the weights of head layers that were made the identity: plain PEFT would initialise them."""
    base = model.get_base_model()
    return {
        f"{ROOT}{name}.{key}": value.detach().cpu().clone()
        for name in names
        for key, value in base.get_submodule(name).state_dict().items()
    }


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
