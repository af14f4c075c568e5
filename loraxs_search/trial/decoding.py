"""A decoder that computes rows part by part, with the keys and values of what it has computed already.

Letters: n rows, S tokens of each so far with padding, T further ones, D the width of hidden states.
"""

from __future__ import annotations

import copy
import inspect
from collections.abc import Sequence
from typing import Any, cast

import numpy as np
import numpy.typing as npt
import torch
from peft import PeftModel
from torch import Tensor, nn
from transformers import PreTrainedModel

from loraxs_search.base_model import projection
from loraxs_search.trial.growing_cache import GrowingLayer, forked, growing_cache, joined, keeps_every_key


def base_of(model: nn.Module) -> PreTrainedModel:
    """Return the base that a model is, or that carries its adapters."""
    return cast("PreTrainedModel", model.get_base_model() if isinstance(model, PeftModel) else model)


class Decoding:
    """Rows on their way through a decoder. For one thread; the model's adapters must know the rows at each call.

    Padding may stand on the left of the first tokens, and on the right of the last: what a row gives depends on its
    real tokens alone, which stand side by side. It may stand between them too where `allows_gaps` says so.

    Args:
        model: A base without a head, with or without adapters on it.
    """

    def __init__(self, model: nn.Module) -> None:
        base = base_of(model)
        self._body: nn.Module = base.base_model
        self.project = projection(base)
        self._cache = growing_cache(base)
        self._mask_nS: Tensor | None = None
        # A window counts padding as tokens, and a layer with a state of its own reads it.
        self.allows_gaps = keeps_every_key(base)
        self.can_be_joined = all(isinstance(layer, GrowingLayer) for layer in self._cache.layers)

    @torch.inference_mode()
    def compute(self, ids_nT: Tensor, mask_nT: Tensor) -> Tensor:
        """Compute further tokens of each row; return their last hidden states, (n, T, D).

        Args:
            ids_nT: Token ids, int64.
            mask_nT: 1 at tokens, 0 at padding, int64.
        """
        seen = self._mask_nS
        first_n1 = 0 if seen is None else seen.sum(1, keepdim=True)
        self._mask_nS = mask_nT if seen is None else torch.cat([seen, mask_nT], 1)
        outputs = self._body(
            input_ids=ids_nT,
            attention_mask=self._mask_nS,
            position_ids=(first_n1 + mask_nT.cumsum(1) - 1).clamp(min=0),
            use_cache=True,
            **{_cache_argument(self._body): self._cache},
        )
        states: Tensor = outputs[0]
        return states

    @torch.inference_mode()
    def select(self, rows: Tensor) -> None:
        """Go on with these rows, in this order; one may stand there twice.

        Args:
            rows: Which of the n rows, int64, on their device.
        """
        assert self._mask_nS is not None  # something was computed
        self._cache.batch_select_indices(rows)
        self._mask_nS = self._mask_nS[rows]

    def follow(self, tokens_n: npt.NDArray[np.int64]) -> Tensor:
        """Compute one more token of each row; return its last hidden states, (n, D)."""
        assert self._mask_nS is not None  # there are prompts
        ids_n1 = torch.from_numpy(tokens_n[:, None]).to(self._mask_nS.device)
        return self.compute(ids_n1, torch.ones_like(ids_n1))[:, -1]

    @classmethod
    @torch.inference_mode()
    def joined(cls, parts: Sequence[Decoding], rows: Sequence[Tensor]) -> Decoding:
        """Return the rows of all parts as one; all end in the same column. The parts are used up.

        Args:
            rows: Which row each row of a part becomes, (n,) int64, for each part.
        """
        if len(parts) == 1 and bool((rows[0][1:] > rows[0][:-1]).all()):
            return parts[0]
        first, masks = parts[0], [part._mask_nS for part in parts]
        widest = max(mask.shape[1] for mask in masks if mask is not None)
        mask_nS = rows[0].new_zeros(sum(map(len, rows)), widest)
        for own, mask in zip(rows, masks, strict=True):
            assert mask is not None  # something was computed
            mask_nS[own, widest - mask.shape[1] :] = mask
        first._cache, first._mask_nS = joined([part._cache for part in parts], rows), mask_nS
        return first

    @torch.inference_mode()
    def forked(self, rows: Tensor) -> Decoding:
        """Return these rows, in this order, to go on by themselves; any thread may, and others meanwhile.

        Args:
            rows: As for `select`.
        """
        assert self._mask_nS is not None  # something was computed
        other = copy.copy(self)
        other._cache, other._mask_nS = forked(self._cache, rows), self._mask_nS[rows]
        return other


_ARGUMENTS: dict[type[nn.Module], str] = {}


def _cache_argument(body: nn.Module) -> str:
    """Return what a body calls its cache: transformers 5.24 renamed the argument."""
    if type(body) not in _ARGUMENTS:
        names: Any = inspect.signature(body.forward).parameters
        _ARGUMENTS[type(body)] = "cache" if "cache" in names else "past_key_values"
    return _ARGUMENTS[type(body)]
