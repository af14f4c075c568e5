"""Which builds of base models the tests of every change look at."""

from __future__ import annotations

from collections.abc import Iterable
from typing import Any

import pytest

USUAL = ("bert", "llama", "smollm")  # an encoder and a decoder: of the same build as what is shipped and shown


def families(names: Iterable[str]) -> list[Any]:
    """Return values of a test's parameter: one or two builds stand for all, and tests of the others are long."""
    known = list(names)
    usual = [name for name in known if name in USUAL] or known[:1]
    return [name if name in usual else pytest.param(name, marks=pytest.mark.long(part="bases")) for name in known]
