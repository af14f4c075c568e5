"""What lies in the state folder, whether anybody needs it, and removing what nobody does.

Each kind of thing that the product writes there and may remove is a class in `kinds.py`. What no kind names stays for
good: MLflow's store with its artifacts, the sequence numbers seen, and the spaces and rows of `init`.
"""

from __future__ import annotations

from loraxs_search.housekeeping.kinds import KINDS, Kind, Needs, StoredItem, gather_needs
from loraxs_search.housekeeping.removal import Collected, RemovedStudy, collect, remove_study

__all__ = [
    "KINDS",
    "Collected",
    "Kind",
    "Needs",
    "RemovedStudy",
    "StoredItem",
    "collect",
    "gather_needs",
    "remove_study",
]
