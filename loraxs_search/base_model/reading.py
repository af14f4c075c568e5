"""What tasks read of a base: the outputs of its head, or its last hidden states and their logits."""

from __future__ import annotations

from collections.abc import Mapping

import torch
from torch import Tensor
from transformers import PreTrainedModel

from loraxs_search.base_model.head import head_names
from loraxs_search.base_model.probing import close_to, dummy_inputs, rounding
from loraxs_search.errors import BaseModelError


def readable(model: PreTrainedModel, inputs: Mapping[str, Tensor]) -> Tensor:
    """Return all that a task may read of rows: the head's outputs; without a head, the hidden states of real tokens.

    Returns:
        Shape (n, outputs), or (n, T, width) with zeros at padding.
    """
    if head_names(model):
        logits: Tensor = model(**inputs).logits
        return logits
    return last_states(model, inputs) * inputs["attention_mask"].unsqueeze(-1)


def last_states(model: PreTrainedModel, inputs: Mapping[str, Tensor]) -> Tensor:
    """Return what leaves the body, shape (n, T, width)."""
    states: Tensor = model.base_model(**inputs)[0]
    return states


class Projection:
    """Turns hidden states (..., width) into the base's own logits (..., vocabulary), float32, in one step or two.

    Some bases scale logits by a number of their configuration, or cap them by one.
    """

    def __init__(self, model: PreTrainedModel) -> None:
        self._embedding = model.get_output_embeddings()
        config = model.config.get_text_config()
        self._factor = float(getattr(config, "logit_scale", None) or 1.0)  # Cohere
        self._factor /= float(getattr(config, "logits_scaling", None) or 1.0)  # Granite
        self._cap = getattr(config, "final_logit_softcapping", None)  # Gemma

    def __call__(self, states: Tensor) -> Tensor:
        return self.finish(self.embed(states))

    def embed(self, states: Tensor) -> Tensor:
        """Return the output embedding's own numbers, in the precision of the body."""
        embedded: Tensor = self._embedding(states)
        return embedded

    def finish(self, embedded: Tensor) -> Tensor:
        """Return the logits that they mean, float32."""
        logits = embedded.float()
        if self._factor != 1.0:
            logits = logits * self._factor
        return torch.tanh(logits / self._cap) * self._cap if self._cap else logits


def projection(model: PreTrainedModel) -> Projection:
    """Return how a base's hidden states become logits."""
    return Projection(model)


@torch.no_grad()
def check_projection(model: PreTrainedModel) -> None:
    """Refuse a base without a head whose logits are not `projection` of its last hidden states.

    Raises:
        BaseModelError: it scales, caps or shifts them in a way of its own.
    """
    inputs = dummy_inputs(model)
    real = inputs["attention_mask"].bool()
    expected, actual = model(**inputs).logits.float(), projection(model)(last_states(model, inputs))
    if not close_to(actual[real], expected[real], rounding(model)):
        raise BaseModelError(
            "Logits of a base without a head must be its output embedding's, scaled by `logit_scale` or"
            " `logits_scaling` or capped by `final_logit_softcapping` at most, but"
            f" {type(model).__name__} makes them in another way.",
            hint="use another base for this task",
        )
