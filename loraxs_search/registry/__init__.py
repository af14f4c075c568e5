"""The registry: which adapter is a task's champion, why, and how to get it."""

from __future__ import annotations

from typing import TYPE_CHECKING, Any

from loraxs_search.registry._versions import RegisteredAdapter
from loraxs_search.registry.card import model_card, resealed
from loraxs_search.registry.factor_sets import factors_at, install_factors
from loraxs_search.registry.finalist import FinalistChoice, choose, key, trial_of
from loraxs_search.registry.manifest import sealed, verify
from loraxs_search.registry.names import check_base, on_base
from loraxs_search.registry.pages import TaskSummary
from loraxs_search.registry.pull import adapter_folder, pull
from loraxs_search.registry.store import BASE_ALONE, Beside, Registry, Rescored

if TYPE_CHECKING:
    from loraxs_search.registry.scored_rows import ScoredRows

__all__ = [
    "BASE_ALONE",
    "Beside",
    "FinalistChoice",
    "RegisteredAdapter",
    "Registry",
    "Rescored",
    "ScoredRows",
    "TaskSummary",
    "adapter_folder",
    "check_base",
    "choose",
    "factors_at",
    "install_factors",
    "key",
    "model_card",
    "on_base",
    "pull",
    "resealed",
    "sealed",
    "trial_of",
    "verify",
]


def __getattr__(name: str) -> Any:
    if name == "ScoredRows":  # numpy, which pulling does without
        from loraxs_search.registry.scored_rows import ScoredRows

        return ScoredRows
    raise AttributeError(f"module {__name__!r} has no attribute {name!r}")
