"""Methods: what is trained on a frozen base. Reading this package needs no torch.

_base.py    the contract
_peft.py    a method whose adapter PEFT builds: what is left to say is its config
lora_xs.py  LoRA-XS; its PEFT tuner is `loraxs/`, in PEFT's own file shape
lora.py     plain LoRA, with PEFT's own tuner
peft_methods.py: VeRA, IA3, TinyLoRA and Uni-LoRA, with PEFT's own tuners
full.py, head_only.py: baselines, to compare adapters with
loading.py  from an adapter folder to a model; export/: to other folders

A distribution adds a method by an entry point of the group `loraxs_search.methods`: its name to its class.
"""

from __future__ import annotations

from loraxs_search.errors import UsageError
from loraxs_search.methods._base import (
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
from loraxs_search.methods._names import FILES, NATIVE, Shapes, head_parameter
from loraxs_search.methods._parameters import ParameterSpec
from loraxs_search.methods._peft import PeftMethod
from loraxs_search.methods.full import Full
from loraxs_search.methods.head_only import HeadOnly
from loraxs_search.methods.lora import Lora
from loraxs_search.methods.lora_xs import LoraXS
from loraxs_search.methods.peft_methods import IA3, TinyLoRA, UniLoRA, VeRA
from loraxs_search.plugins import EntryPoints

__all__ = [
    "FILES",
    "METHODS",
    "NATIVE",
    "FactorRequest",
    "FactorSet",
    "HeadPlan",
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
    "get_method",
    "head_parameter",
    "words_of",
]

_OWN: tuple[type[Method], ...] = (LoraXS, Lora, VeRA, IA3, TinyLoRA, UniLoRA, Full, HeadOnly)
METHODS: EntryPoints[type[Method]] = EntryPoints(
    "method", "loraxs_search.methods", {entry.name: entry for entry in _OWN}
)


def get_method(name: str) -> Method:
    """Return the method of a name.

    Raises:
        UsageError: nothing has this name, or the distribution's class cannot be imported.
    """
    return METHODS.get(name)()


def words_of(name: str) -> type[Method]:
    """Return the class whose `symbol` and `description` speak of a method; the contract's where it is gone."""
    try:
        return type(get_method(name))
    except UsageError:
        return Method
