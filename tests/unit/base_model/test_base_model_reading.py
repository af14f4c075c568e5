"""Batches of several tasks as one.

When two results of a base are taken for the same, and what rows are made up.
"""

from __future__ import annotations

import torch
from support.bases import BART, BERT, XLNET, base

from loraxs_search.base_model.reading import close_to, dummy_inputs, joined, rounding


def test_segments_that_one_batch_lacks_are_zero_in_its_rows():
    segmented = {"input_ids": torch.tensor([[5, 6]]), "token_type_ids": torch.tensor([[0, 1]])}
    plain = {"input_ids": torch.tensor([[7, 8, 9]])}
    for parts, types in (([segmented, plain], [[0, 1, 0], [0, 0, 0]]), ([plain, segmented], [[0, 0, 0], [0, 1, 0]])):
        inputs = joined(parts, 3, 2, "right")
        assert inputs["token_type_ids"].tolist() == types
    assert inputs["input_ids"].tolist() == [[7, 8, 9], [5, 6, 2]]


LOGITS = torch.tensor([[1.0, -2.0], [0.5, 3.0]])


def test_results_are_alike_up_to_rounding_where_they_tell_rows_apart():
    assert close_to(LOGITS, LOGITS)
    assert close_to(LOGITS.bfloat16().float(), LOGITS)
    assert close_to(LOGITS[:, :1], LOGITS[:, :1])
    for other in (LOGITS * 1.02, LOGITS.flip(0), LOGITS[:, :1]):
        assert not close_to(other, LOGITS)
    alike, nearly = LOGITS[:1].expand(2, 2), LOGITS[:1] + LOGITS * 1e-4
    for logits in (torch.zeros(2, 2), alike, nearly, LOGITS * torch.nan, LOGITS * torch.inf):
        assert not close_to(logits, logits)
    assert rounding(base(BERT)) < 1e-3 < rounding(base(BERT).bfloat16())


def test_rows_are_made_up_as_a_base_takes_them():
    rows = dummy_inputs(base(BERT), num_rows=3, width=16)
    assert rows["attention_mask"].tolist() == [[1] * n + [0] * (16 - n) for n in (7, 5, 4)]
    assert torch.equal(rows["input_ids"] == 0, rows["attention_mask"] == 0)
    left = dummy_inputs(base(XLNET))
    assert left["attention_mask"].tolist() == [[1] * 7, [0] * 2 + [1] * 5]
    ended = dummy_inputs(base(BART))["input_ids"]
    assert [row.tolist().index(2) for row in ended] == [6, 4]
    base(BART)(**dummy_inputs(base(BART)))
