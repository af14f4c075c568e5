"""Trial hosts: the frozen base shared by many trials."""

from __future__ import annotations

from loraxs_search.packing.host import Confirmation, HostInfo, TrialHost

__all__ = ["Confirmation", "HostInfo", "TrialHost"]
