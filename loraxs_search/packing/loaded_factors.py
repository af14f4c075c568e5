"""Factors for a base that was loaded in another precision than its checkpoint's."""

from __future__ import annotations

from collections.abc import Iterable
from typing import Any

from torch import Tensor
from transformers import PreTrainedModel

from loraxs_search.factors import Factors, FactorStore


class LoadedFactors(FactorStore):
    """A factor store that decomposes the checkpoint's weight when it is asked for the loaded one's.

    Rounding a weight to bfloat16 rotates nearly equal singular vectors, and an R trained in that basis would mean
    another model to those who load the checkpoint unrounded.

    Args:
        loaded: The base that trials run on.
        exact: The same base in the checkpoint's own precision.
        modules: Names of the linear layers, the same in both.
    """

    def __init__(self, loaded: PreTrainedModel, exact: PreTrainedModel, modules: Iterable[str]) -> None:
        super().__init__()
        self._exact: dict[int, Tensor] = {}
        for name in modules:
            weight = loaded.get_submodule(name).get_parameter("weight")
            self._exact[weight.data_ptr()] = exact.get_submodule(name).get_parameter("weight").detach()

    def checkpoint_weight(self, weight: Tensor) -> Tensor:
        return self._exact.get(weight.data_ptr(), weight)

    def get(self, weight: Tensor, **request: Any) -> Factors:
        exact = self.checkpoint_weight(weight)
        transposed = weight.shape != exact.shape or weight.stride() != exact.stride()
        return super().get(exact.T if transposed else exact, **request)
