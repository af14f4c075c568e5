"""When two results of a base are taken for the same."""

from __future__ import annotations

import pytest
import torch
from torch import Tensor

from loraxs_search.base_model import alike

LOGITS = torch.tensor([[1.0, -2.0], [0.5, 3.0]])


def test_rounding_leaves_results_alike() -> None:
    assert alike(LOGITS, LOGITS)
    assert alike(LOGITS.bfloat16().float(), LOGITS)
    assert alike(LOGITS[:, :1], LOGITS[:, :1])
    assert not alike(LOGITS * 1.02, LOGITS)
    assert not alike(LOGITS.flip(0), LOGITS)
    assert not alike(LOGITS[:, :1], LOGITS)


@pytest.mark.parametrize(
    "logits",
    [torch.zeros(2, 2), LOGITS[:1].expand(2, 2), LOGITS[:1] + LOGITS * 1e-4, LOGITS * torch.nan, LOGITS * torch.inf],
    ids=["zero", "the same for each row", "nearly so", "no numbers", "no finite ones"],
)
def test_what_does_not_tell_rows_apart_is_alike_to_nothing(logits: Tensor) -> None:
    assert not alike(logits, logits)
