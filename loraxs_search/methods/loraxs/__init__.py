"""LoRA-XS as a PEFT method: importing this package makes `LORAXS` known to PEFT."""

from __future__ import annotations

from loraxs_search.methods.loraxs._body import body_fingerprint, check_body
from loraxs_search.methods.loraxs._factor_source import current_factor_store, use_factor_store
from loraxs_search.methods.loraxs._frozen_pair import checked_factors
from loraxs_search.methods.loraxs._reference_logits import compare_reference_logits
from loraxs_search.methods.loraxs._register import register
from loraxs_search.methods.loraxs._settings import FactorKey, ModuleSettings, initial_r, module_settings
from loraxs_search.methods.loraxs._to_lora import export_lora
from loraxs_search.methods.loraxs.config import LoraXSConfig
from loraxs_search.methods.loraxs.formats import converted
from loraxs_search.methods.loraxs.layer import LoraXSLayer, LoraXSLinear
from loraxs_search.methods.loraxs.loading import (
    check_reference_logits,
    load_adapter_folder,
    make_reference_logits,
    verified_manifest,
)
from loraxs_search.methods.loraxs.model import LoraXSModel

__all__ = [
    "FactorKey",
    "LoraXSConfig",
    "LoraXSLayer",
    "LoraXSLinear",
    "LoraXSModel",
    "ModuleSettings",
    "body_fingerprint",
    "check_body",
    "check_reference_logits",
    "checked_factors",
    "compare_reference_logits",
    "converted",
    "current_factor_store",
    "export_lora",
    "initial_r",
    "load_adapter_folder",
    "make_reference_logits",
    "module_settings",
    "register",
    "use_factor_store",
    "verified_manifest",
]

register(LoraXSConfig, LoraXSModel)
