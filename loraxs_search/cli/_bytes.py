"""Sizes as people read them."""

from __future__ import annotations

_UNITS = ("B", "KB", "MB", "GB", "TB")


def shown_bytes(num_bytes: int) -> str:
    """Return a size with three digits and a unit: `31.0 KB`."""
    size, unit = float(num_bytes), 0
    while size >= 999.5 and unit < len(_UNITS) - 1:
        size, unit = size / 1000, unit + 1
    return f"{num_bytes} B" if unit == 0 else f"{size:.3g} {_UNITS[unit]}"
