"""What a trial may train of a base, read before any packed layer is put on it."""

from __future__ import annotations

import re
from collections.abc import Iterable, Mapping
from dataclasses import dataclass

import torch
from torch import Tensor, nn
from transformers import PreTrainedModel

from loraxs_search.base_model import fresh_head, head_names, output_head, repeated_layers, with_labels
from loraxs_search.errors import BaseModelError
from loraxs_search.records import Head, LinearModule


@dataclass(frozen=True)
class InitialHead:
    """A trial's head as it starts; names are full parameter names, values float32 on the CPU.

    Args:
        trained: In model order.
        fixed: Parameters that stay as they are and are not stored.
        owners: The modules that PEFT stores whole, by full name.
    """

    trained: Mapping[str, Tensor]
    fixed: Mapping[str, Tensor]
    owners: tuple[str, ...]


class AdaptableLayers:
    """The layers that may be adapted and the head of a base.

    Args:
        model: The base, with nothing of a trial on it.
        modules: The linear layers that may be adapted.
    """

    def __init__(self, model: PreTrainedModel, modules: Iterable[LinearModule]) -> None:
        self.device = next(model.parameters()).device
        self.modules = {module.name: module for module in modules}
        self.sizes = {name: (m.out_features, m.in_features) for name, m in self.modules.items()}  # (out, in)
        self.model = model
        self._heads = head_names(model)
        self.output, self._idle = output_head(model) if self._heads else ("", ())
        self._stack = repeated_layers(model, self.sizes)

    @property
    def layers(self) -> nn.ModuleList | None:
        """The layers that the base repeats, None when it has more than one list of them or none."""
        layers = self.model.get_submodule(self._stack) if self._stack else None
        return layers if isinstance(layers, nn.ModuleList) else None

    def lowest(self, modules: Iterable[str]) -> int:
        """Return the index of the lowest repeated layer that has one of these modules; 0 where one is in none."""
        inside = re.compile(rf"{re.escape(self._stack)}\.(\d+)\.")
        matches = [inside.match(name) for name in modules]
        return min((int(match[1]) if match else 0 for match in matches), default=0)

    def draw_head(self, which: Head, num_outputs: int | None, seed: int) -> InitialHead:
        """Draw the head that the lone trial starts with, for any number of outputs; an empty one for None.

        Raises:
            BaseModelError: with `head: output`, a layer before the output cannot be the identity.
        """
        if num_outputs is None:
            return InitialHead({}, {}, ())
        drawn = fresh_head(with_labels(self.model, num_outputs), seed)
        if which == "full" or not self._idle:
            return InitialHead(drawn, {}, self._heads)
        trained = {name: value for name, value in drawn.items() if name.startswith(f"{self.output}.")}
        fixed = {name: value for name, value in drawn.items() if name not in trained}
        return InitialHead(trained, fixed | self._identities(fixed), (self.output,))

    def _identities(self, fixed: Mapping[str, Tensor]) -> dict[str, Tensor]:
        """Return the parameters that make the layers before the output pass their input on."""
        identities = {}
        for layer in self._idle:
            weight = fixed[f"{layer}.weight"]
            if weight.shape[0] != weight.shape[1]:
                raise BaseModelError(
                    f"A head layer that is not trained must be a square linear layer, but {layer} is"
                    f" {tuple(weight.shape)}.",
                    hint="use `head: full` with this base",
                )
            identities[f"{layer}.weight"] = torch.eye(weight.shape[0])
            if (bias := fixed.get(f"{layer}.bias")) is not None:
                identities[f"{layer}.bias"] = torch.zeros_like(bias)
        return identities
