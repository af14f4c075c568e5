"""What lies in the state folder, whether anybody needs it, and removing what nobody does.

`_base.py` is the contract: each kind of thing that the product writes there is one file behind it. What no kind names
stays for good: MLflow's store with its artifacts, the sequence numbers seen, and the spaces and rows of `init`.
"""

from __future__ import annotations

from loraxs_search.housekeeping._base import Kind, StoredItem
from loraxs_search.housekeeping._kinds import KINDS
from loraxs_search.housekeeping.collect import Collected, collect
from loraxs_search.housekeeping.needs import Needs, gather_needs
from loraxs_search.housekeeping.studies import RemovedStudy, remove_study

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
