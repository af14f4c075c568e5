"""LoRA-XS as a PEFT method: importing this package makes `LORAXS` known to PEFT."""

from __future__ import annotations

from peft.mapping import PEFT_TYPE_TO_TUNER_MAPPING
from peft.utils import register_peft_method

from loraxs_search.factors.compute import FactorKey
from loraxs_search.methods.loraxs.config import LORAXS, PREFIX, LoraXSConfig, ModuleSettings
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
    "use_factor_store",
]

if LORAXS not in PEFT_TYPE_TO_TUNER_MAPPING:
    register_peft_method(name=LORAXS.lower(), config_cls=LoraXSConfig, model_cls=LoraXSModel, prefix=PREFIX)
