"""Trial hosts: the frozen base shared by many trials."""

from __future__ import annotations

from loraxs_search.packing.host import TrialHost
from loraxs_search.packing.pack import Pack
from loraxs_search.packing.packed_host import PackedHost

__all__ = ["Pack", "PackedHost", "TrialHost"]
