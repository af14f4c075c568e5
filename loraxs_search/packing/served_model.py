"""The base as the tasks of one class load it, and what passes compute of it."""

from __future__ import annotations

from collections.abc import Mapping

from torch import nn
from transformers import PreTrainedModel

from loraxs_search.base_model import HeadAlone, head_names
from loraxs_search.packing.adaptable import AdaptableLayers
from loraxs_search.packing.last_layer import LastLayerPruning
from loraxs_search.packing.read_pruning import ReadPruning


class ServedModel:
    """One of the models that share a pack's body. Made while nothing of a trial is on it.

    Args:
        adaptable: Layers and head of `model`.
    """

    def __init__(self, model: PreTrainedModel, adaptable: AdaptableLayers) -> None:
        self.model, self.adaptable = model, adaptable
        self.heads = {name: model.get_submodule(name) for name in head_names(model)}
        self.last_layer = LastLayerPruning(model, adaptable.layers if self.heads else None)
        self.reads = ReadPruning(model, None if self.heads else adaptable.layers)
        self._head_alone: HeadAlone | None = None

    @property
    def head_alone(self) -> HeadAlone:
        """What computes the head of rows whose states are computed already."""
        assert self._head_alone is not None  # `share` was called, and there is a head
        return self._head_alone

    def put(self, heads: Mapping[str, nn.Module]) -> None:
        """Compute with these modules where the head is computed alone; in the model they are put by the caller."""
        if self._head_alone is not None:
            self._head_alone.put(heads)

    def share(self) -> None:
        """Get ready for passes whose rows are read by other models too.

        Raises:
            BaseModelError: the head cannot be computed apart from the body.
        """
        if self.heads and self._head_alone is None:
            self._head_alone = HeadAlone(self.model)
