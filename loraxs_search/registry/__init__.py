"""The registry: which adapter is a task's champion, why, and how to get it."""

from __future__ import annotations

from loraxs_search.registry._versions import RegisteredAdapter
from loraxs_search.registry.card import model_card, resealed
from loraxs_search.registry.factor_sets import factors_at, install_factors
from loraxs_search.registry.finalist import choose, key, trial_of
from loraxs_search.registry.manifest import sealed, verify
from loraxs_search.registry.pages import TaskSummary
from loraxs_search.registry.pull import adapter_folder, pull
from loraxs_search.registry.store import BASE_ALONE, Beside, Registry, Rescored

__all__ = [
    "BASE_ALONE",
    "Beside",
    "RegisteredAdapter",
    "Registry",
    "Rescored",
    "TaskSummary",
    "adapter_folder",
    "choose",
    "factors_at",
    "install_factors",
    "key",
    "model_card",
    "pull",
    "resealed",
    "sealed",
    "trial_of",
    "verify",
]
