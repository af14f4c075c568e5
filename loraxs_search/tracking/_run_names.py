"""Short names of trials for people: `#12 r16 attention lr 2e-3`."""

from __future__ import annotations

import math
import re
from collections.abc import Mapping
from typing import Any

_MAX_NAME, _MAX_WORD = 48, 24
_FIRST = ("method", "rank", "target_modules", "learning_rate")  # in this order; the others follow in the study's own
_SHORT = {"rank": "r", "learning_rate": "lr ", "head_learning_rate": "head lr ", "batch_size": "batch "}
_BARE = ("method", "target_modules")  # their values say what they are


def run_name(trial_id: str, params: Mapping[str, Any]) -> str:
    """Return a trial's number and its params, as many as fit; an id that is no number stands as it is."""
    parts = [f"#{int(trial_id)}" if re.fullmatch(r"\d+", trial_id) else trial_id]
    for name in (*(name for name in _FIRST if name in params), *(name for name in params if name not in _FIRST)):
        part = _part(name, params[name])
        if len(" ".join([*parts, part])) > _MAX_NAME:
            break
        parts.append(part)
    return " ".join(parts)


def _part(name: str, value: Any) -> str:
    word = _number(value) if isinstance(value, float) else str(value)
    word = word if len(word) <= _MAX_WORD else f"{word[: _MAX_WORD - 1]}…"
    return word if name in _BARE else f"{_SHORT.get(name, f'{name} ')}{word}"


def _number(value: float) -> str:
    """Return two digits of a number, as people write it: 2e-3, 0.5, 1.7e-2."""
    if value == 0 or 0.1 <= abs(value) < 1000 or not math.isfinite(value):
        return f"{value:.3g}"
    digits, _, exponent = f"{value:.1e}".partition("e")
    return f"{digits.removesuffix('.0')}e{int(exponent)}"
