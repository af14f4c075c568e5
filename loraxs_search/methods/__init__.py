"""Methods: what is trained on a frozen base. Reading this package needs no torch.

_base.py    the contract
_peft.py    a method whose adapter PEFT builds: what is left to say is its config
lora_xs.py  LoRA-XS; its PEFT tuner is `loraxs/`, in PEFT's own file shape
lora.py     plain LoRA, with PEFT's own tuner
ia3.py, psoft.py, randlora.py, tinylora.py, unilora.py, vb_lora.py, vera.py: other tuners of PEFT's
full.py, head_only.py: yardsticks, to compare adapters with
loading.py  from an adapter folder to a model; formats.py: to other folders

A distribution adds a method by an entry point of the group `loraxs_search.methods`: its name to its class.
"""

from __future__ import annotations

from loraxs_search.methods._base import (
    Conversion,
    FactorRequest,
    FactorSet,
    HeadPlan,
    Method,
    PackedAdapter,
    PackedBase,
    PackedMethod,
    Possible,
    Sizes,
)
from loraxs_search.methods._names import FILES, Shapes, StoredTensor, head_parameter
from loraxs_search.methods._parameter_spec import ParameterSpec
from loraxs_search.methods._peft import PeftMethod
from loraxs_search.methods.full import Full
from loraxs_search.methods.head_only import HeadOnly
from loraxs_search.methods.ia3 import IA3
from loraxs_search.methods.lora import Lora
from loraxs_search.methods.lora_xs import LoraXS
from loraxs_search.methods.psoft import PSOFT
from loraxs_search.methods.randlora import RandLoRA
from loraxs_search.methods.tinylora import TinyLoRA
from loraxs_search.methods.unilora import UniLoRA
from loraxs_search.methods.vb_lora import VBLoRA
from loraxs_search.methods.vera import VeRA
from loraxs_search.plugins import Registry

__all__ = [
    "FILES",
    "METHODS",
    "Conversion",
    "FactorRequest",
    "FactorSet",
    "HeadPlan",
    "Lora",
    "LoraXS",
    "Method",
    "PackedAdapter",
    "PackedBase",
    "PackedMethod",
    "ParameterSpec",
    "PeftMethod",
    "Possible",
    "Shapes",
    "Sizes",
    "StoredTensor",
    "get_method",
    "head_parameter",
]

_OWN: tuple[type[Method], ...] = (LoraXS, Lora, VeRA, IA3, VBLoRA, TinyLoRA, PSOFT, RandLoRA, UniLoRA, Full, HeadOnly)
METHODS: Registry[type[Method]] = Registry("method", "loraxs_search.methods", {entry.name: entry for entry in _OWN})


def get_method(name: str) -> Method:
    """Return the method of a name.

    Raises:
        UsageError: nothing has this name, or the distribution's class cannot be imported.
    """
    return METHODS.get(name)()
