"""LoRA-XS as a PEFT method: importing this package makes `LORAXS` known to PEFT."""

from __future__ import annotations

from loraxs_search.methods.loraxs._factor_source import current_factor_store, use_factor_store
from loraxs_search.methods.loraxs._frozen_pair import checked_factors
from loraxs_search.methods.loraxs._packed_r import PackedR
from loraxs_search.methods.loraxs._register import register
from loraxs_search.methods.loraxs._settings import FactorKey, ModuleSettings, module_settings
from loraxs_search.methods.loraxs._start import check_start_on
from loraxs_search.methods.loraxs._stored_names import split_tensors
from loraxs_search.methods.loraxs._to_lora import as_plain_lora, export_lora, lora_pairs
from loraxs_search.methods.loraxs.config import LoraXSConfig
from loraxs_search.methods.loraxs.layer import LoraXSLayer
from loraxs_search.methods.loraxs.model import LoraXSModel

__all__ = [
    "FactorKey",
    "LoraXSConfig",
    "LoraXSLayer",
    "LoraXSModel",
    "ModuleSettings",
    "PackedR",
    "as_plain_lora",
    "check_start_on",
    "checked_factors",
    "current_factor_store",
    "export_lora",
    "lora_pairs",
    "module_settings",
    "register",
    "split_tensors",
    "use_factor_store",
]

register(LoraXSConfig, LoraXSModel)
