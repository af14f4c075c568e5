"""The registry: which adapter is a task's champion, why, and how to get it."""

from __future__ import annotations

from loraxs_search.registry.card import model_card
from loraxs_search.registry.manifest import folder_digest, seal, verify
from loraxs_search.registry.promotion import decide
from loraxs_search.registry.pull import pull
from loraxs_search.registry.store import RegisteredAdapter, Registry

__all__ = ["RegisteredAdapter", "Registry", "decide", "folder_digest", "model_card", "pull", "seal", "verify"]
