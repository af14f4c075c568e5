"""The frozen model under every adapter: find it, know its layers, load it.

`locate` and `check_packable` need no torch; the other names load it on first use.
"""

from __future__ import annotations
