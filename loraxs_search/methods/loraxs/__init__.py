"""LoRA-XS as a PEFT method: importing this package makes `LORAXS` known to PEFT."""

from __future__ import annotations

from loraxs_search.methods.loraxs._settings import (
    FactorKey,
    ModuleSettings,
    check_start_on,
    checked_factors,
    current_factor_store,
    module_settings,
    use_factor_store,
)
from loraxs_search.methods.loraxs.config import LoraXSConfig, register
from loraxs_search.methods.loraxs.convert import as_plain_lora, split_tensors
from loraxs_search.methods.loraxs.layer import LoraXSLayer
from loraxs_search.methods.loraxs.model import LoraXSModel

__all__ = [
    "FactorKey",
    "LoraXSConfig",
    "LoraXSLayer",
    "LoraXSModel",
    "ModuleSettings",
    "as_plain_lora",
    "check_start_on",
    "checked_factors",
    "current_factor_store",
    "module_settings",
    "register",
    "split_tensors",
    "use_factor_store",
]

register(LoraXSConfig, LoraXSModel)
