"""The order of rows that are written once some have left."""

from __future__ import annotations

from types import SimpleNamespace
from typing import Any

import numpy as np
import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st

from loraxs_search.engine.generation import OpenSequence, closed_up
from loraxs_search.tasks.encoded import EncodedRows, Ragged
from loraxs_search.tasks.kinds import GenerateRequest


@given(sizes=st.lists(st.integers(1, 6), min_size=1, max_size=5), data=st.data())
def test_rows_that_are_left_stand_group_by_group(sizes, data):
    groups = np.repeat(np.arange(len(sizes)) * 3, sizes)
    stays = np.array(data.draw(st.lists(st.booleans(), min_size=len(groups), max_size=len(groups))))
    order = closed_up(stays, groups)
    assert sorted(order.tolist()) == np.flatnonzero(stays).tolist()
    assert (np.diff(groups[order]) >= 0).all()


def test_few_rows_move():
    stays = np.ones(40, bool)
    stays[3] = False
    order = closed_up(stays, np.repeat(np.arange(4), 10))
    assert (order != np.arange(39)).sum() == 4  # the last of each group fills the gap before it


@pytest.mark.parametrize("stop", ["c", "bc", "abc"])
def test_a_stop_string_may_end_with_the_first_character_of_a_piece(stop: str) -> None:
    letters: Any = SimpleNamespace(decode=lambda ids, **_: "".join(map(chr, ids)))
    prompt = EncodedRows(Ragged.of([[1]], np.int32))
    row = OpenSequence(GenerateRequest(prompt, np.array([0]), 9, (stop,)), 0, letters, ())
    for letter in "xabc":
        row.add(torch.zeros(1), ord(letter), 1.0)
    assert (row.text, row.ended) == ("xabc".removesuffix(stop), True)
