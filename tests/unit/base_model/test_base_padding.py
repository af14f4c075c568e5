"""Batches of several tasks as one."""

from __future__ import annotations

import torch

from loraxs_search.base_model import joined


def test_segments_that_one_batch_lacks_are_zero_in_its_rows() -> None:
    segmented = {"input_ids": torch.tensor([[5, 6]]), "token_type_ids": torch.tensor([[0, 1]])}
    plain = {"input_ids": torch.tensor([[7, 8, 9]])}
    for parts, types in (([segmented, plain], [[0, 1, 0], [0, 0, 0]]), ([plain, segmented], [[0, 0, 0], [0, 1, 0]])):
        inputs = joined(parts, 3, 2, "right")
        assert inputs["token_type_ids"].tolist() == types
    assert inputs["input_ids"].tolist() == [[7, 8, 9], [5, 6, 2]]
