"""Models of several classes on one body: what tasks with a head and without one read of the same base."""

from __future__ import annotations

import threading
from collections.abc import Iterator, Mapping
from contextlib import contextmanager
from typing import Any

import torch
from torch import Tensor, nn
from transformers import PreTrainedModel
from transformers.utils.generic import ModelOutput

from loraxs_search.base_model.head import head_names, without_weights
from loraxs_search.base_model.probing import close_to, dummy_inputs, rounding
from loraxs_search.errors import BaseModelError

_OF_HEADS = ("architectures", "id2label", "label2id", "num_labels", "problem_type")  # fields that no body reads
_NUM_ROWS = 3


def share_body(first: PreTrainedModel, other: PreTrainedModel) -> None:
    """Give `other` the very body of `first`, so that what is put on one is on both; its own body is dropped.

    Both are as they were loaded, from the same files and in the same precision.

    Raises:
        BaseModelError: their classes build, name or configure the body in different ways.
    """
    if differs := _difference(first, other):
        names = f"{type(other).__name__} and {type(first).__name__}"
        raise BaseModelError(
            f"Tasks that share a host must load one and the same body, but {names} {differs}.",
            hint="search such tasks one after the other",
        )
    setattr(other, other.base_model_prefix, first.base_model)
    other.tie_weights()  # an output embedding that is the input embedding is the shared body's from now on


class HeadAlone:
    """A model without its body: what its own class makes of states that the body has computed already.

    Passes may run in several threads.

    Args:
        model: A base with a head, as it was loaded.

    Raises:
        BaseModelError: made-up rows show that its outputs are others than with the body.
    """

    def __init__(self, model: PreTrainedModel) -> None:
        self._given = _GivenOutputs()
        self._model: nn.Module = without_weights(model).eval()
        setattr(self._model, model.base_model_prefix, self._given)
        self.put({name: model.get_submodule(name) for name in head_names(model)})
        if not self._is_like(model):
            raise BaseModelError(
                "Tasks that share a host must read the same body, but"
                f" {type(model).__name__} makes more of its rows than of the states that leave its body.",
                hint="search tasks with a head and without one after the other",
            )

    def put(self, heads: Mapping[str, nn.Module]) -> None:
        """Compute with these modules, by the names of the model's heads."""
        for name, module in heads.items():
            setattr(self._model, name, module)

    def __call__(self, inputs: Mapping[str, Tensor], outputs: ModelOutput) -> Tensor:
        """Return the head's outputs for rows, (n, outputs).

        Args:
            inputs: What the model takes, (n, T).
            outputs: What the body has made of them.
        """
        with self._given.computed(outputs):
            logits: Tensor = self._model(**inputs).logits
            return logits

    @torch.no_grad()
    def _is_like(self, model: PreTrainedModel) -> bool:
        try:
            inputs = dummy_inputs(model, _NUM_ROWS)
            expected = model(**inputs).logits[1:]
            part = {name: value[1:] for name, value in inputs.items()}
            actual = self(part, rows_of(model.base_model(**inputs), 1, _NUM_ROWS))
        except Exception:  # noqa: BLE001  # whatever a foreign base does: its head is not computed alone
            return False
        return close_to(actual, expected, rounding(model))


def rows_of(outputs: ModelOutput, start: int, stop: int) -> ModelOutput:
    """Return what a body has made of some of its rows: of every tensor these rows."""
    return type(outputs)(
        **{name: value[start:stop] if isinstance(value, Tensor) else value for name, value in outputs.items()}
    )


class _GivenOutputs(nn.Module):
    """Stands where a body was."""

    def __init__(self) -> None:
        super().__init__()
        self._state = threading.local()

    @contextmanager
    def computed(self, outputs: ModelOutput) -> Iterator[None]:
        """Set what the body has made of the rows of this thread's pass."""
        self._state.outputs = outputs
        try:
            yield
        finally:
            del self._state.outputs

    def forward(self, *_: Any, **__: Any) -> ModelOutput:
        outputs: ModelOutput = self._state.outputs
        return outputs


def _difference(first: PreTrainedModel, other: PreTrainedModel) -> str:
    """Describe how the bodies of two models differ; empty where they do not."""
    bare = [m.base_model is m for m in (first, other)]
    if any(bare) or first.base_model_prefix != other.base_model_prefix:
        return "are not built around a body of the same name"
    if type(first.base_model) is not type(other.base_model):
        return f"have the bodies {type(other.base_model).__name__} and {type(first.base_model).__name__}"
    shapes = [{name: tuple(value.shape) for name, value in m.base_model.state_dict().items()} for m in (other, first)]
    if names := sorted(dict(set(shapes[0].items()) ^ set(shapes[1].items()))):
        return f"have different weights, such as {names[0]}"
    configs = [m.config.to_dict() for m in (other, first)]
    keys = sorted({*configs[0], *configs[1]} - set(_OF_HEADS))
    if keys := [key for key in keys if configs[0].get(key) != configs[1].get(key)]:
        return f"are configured with different {', '.join(keys)}"
    return ""
