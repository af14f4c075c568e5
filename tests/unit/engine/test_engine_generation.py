"""A sequence ends where a stop string does."""

from __future__ import annotations

from types import SimpleNamespace
from typing import Any

import numpy as np
import pytest
import torch

from loraxs_search.engine.generation import OpenSequence
from loraxs_search.tasks.encoded import EncodedRows, Ragged
from loraxs_search.tasks.kinds import GenerateRequest


@pytest.mark.parametrize("stop", ["c", "bc", "abc"])
def test_a_stop_string_may_end_with_the_first_character_of_a_piece(stop: str) -> None:
    letters: Any = SimpleNamespace(decode=lambda ids, **_: "".join(map(chr, ids)))
    prompt = EncodedRows(Ragged.of([[1]], np.int32))
    row = OpenSequence(GenerateRequest(prompt, np.array([0]), 9, (stop,)), 0, letters, ())
    for letter in "xabc":
        row.add(torch.zeros(1), ord(letter), 1.0)
    assert (row.text, row.ended) == ("xabc".removesuffix(stop), True)
