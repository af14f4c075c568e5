"""LoRA-XS as a PEFT method: importing this package makes `LORAXS` known to PEFT."""

from __future__ import annotations

from loraxs_search.adapter._body import body_fingerprint, check_body
from loraxs_search.adapter._export import export_lora
from loraxs_search.adapter._factor_source import current_factor_store, use_factor_store
from loraxs_search.adapter._frozen_pair import checked_factors
from loraxs_search.adapter._probe import compare_probe
from loraxs_search.adapter._register import register
from loraxs_search.adapter._settings import Family, ModuleSettings, initial_r, module_settings
from loraxs_search.adapter.config import LoraXSConfig
from loraxs_search.adapter.exporting import converted
from loraxs_search.adapter.layer import LoraXSLayer, LoraXSLinear
from loraxs_search.adapter.loading import check_probe, load_adapter_folder, make_probe, verified_manifest
from loraxs_search.adapter.model import LoraXSModel

__all__ = [
    "Family",
    "LoraXSConfig",
    "LoraXSLayer",
    "LoraXSLinear",
    "LoraXSModel",
    "ModuleSettings",
    "body_fingerprint",
    "check_body",
    "check_probe",
    "checked_factors",
    "compare_probe",
    "converted",
    "current_factor_store",
    "export_lora",
    "initial_r",
    "load_adapter_folder",
    "make_probe",
    "module_settings",
    "register",
    "use_factor_store",
    "verified_manifest",
]

register(LoraXSConfig, LoraXSModel)
