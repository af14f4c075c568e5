"""LoRA-XS as a PEFT method: importing this package makes `LORAXS` known to PEFT."""

from __future__ import annotations

from loraxs_search.factors.compute import FactorKey
from loraxs_search.methods.loraxs.config import LoraXSConfig, ModuleSettings, module_settings, register, split_tensors
from loraxs_search.methods.loraxs.layer import LoraXSLinear, checked_factors, current_factor_store, use_factor_store
from loraxs_search.methods.loraxs.model import LoraXSModel

__all__ = [
    "FactorKey",
    "LoraXSConfig",
    "LoraXSLinear",
    "LoraXSModel",
    "ModuleSettings",
    "checked_factors",
    "current_factor_store",
    "module_settings",
    "register",
    "split_tensors",
    "use_factor_store",
]

register(LoraXSConfig, LoraXSModel)
