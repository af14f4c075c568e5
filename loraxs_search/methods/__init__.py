"""Methods: what is trained on a frozen base. Reading this package needs no torch.

_base.py    the contract
_peft.py    a method whose adapter PEFT builds: what is left to say is its config
lora_xs.py  LoRA-XS; its PEFT tuner is `loraxs/`, in PEFT's own file shape
lora.py     plain LoRA, with PEFT's own tuner
peft_methods.py: what a space's `peft_methods` names; baselines, to compare adapters with
loading.py  from an adapter folder to a model; export/: to other folders

A distribution adds a method by an entry point of the group `loraxs_search.methods`: its name to its class.
"""

from __future__ import annotations

from loraxs_search.methods._base import Method
from loraxs_search.methods.lora import Lora
from loraxs_search.methods.lora_xs import LoraXS
from loraxs_search.methods.peft_methods import ConfiguredPeft, Full, HeadOnly
from loraxs_search.plugins import EntryPoints
from loraxs_search.records.trial import Hyperparameters, PeftSettings

METHODS: EntryPoints[type[Method]] = EntryPoints("method", "loraxs_search.methods", LoraXS, Lora, Full, HeadOnly)


def get_method(name: str, peft: PeftSettings | None = None) -> Method:
    """Return the method of a name.

    Args:
        peft: What the name stands for where a space's `peft_methods` gives it.
    Raises:
        UsageError: nothing has this name, or the distribution's class cannot be imported.
    """
    return METHODS.get(name)() if peft is None else ConfiguredPeft(name, peft)


def method_of(hyper: Hyperparameters) -> Method:
    """Return the method that a trial trains; see `get_method`."""
    return get_method(hyper.method, hyper.peft)
