"""Frozen factors A and B of a base weight: computed once, stored on disk by content, identified by fingerprint."""

from __future__ import annotations

from loraxs_search.factors._compute import (
    Driver,
    Factors,
    compute_factors,
    default_factor_rank,
    gaussian_factors,
    resolve_driver,
)
from loraxs_search.factors._store import FactorStore
from loraxs_search.factors._verify import agrees, check_fingerprint, fingerprint, fingerprint_of_all

__all__ = [
    "Driver",
    "FactorStore",
    "Factors",
    "agrees",
    "check_fingerprint",
    "compute_factors",
    "default_factor_rank",
    "fingerprint",
    "fingerprint_of_all",
    "gaussian_factors",
    "resolve_driver",
]
