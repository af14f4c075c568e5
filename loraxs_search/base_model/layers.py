"""Which linear layers a base model has, known from its configuration alone."""

from __future__ import annotations

from math import prod

import torch
from torch import Tensor, nn
from transformers import AutoConfig, AutoModelForSequenceClassification, PretrainedConfig, PreTrainedModel
from transformers.pytorch_utils import Conv1D

from loraxs_search.base_model._library import library_call
from loraxs_search.base_model.head import head_names, output_head
from loraxs_search.records import BaseModel, Head, LinearModule, TaskKind


def task_config(base: BaseModel, kind: TaskKind, num_labels: int) -> PretrainedConfig:
    """Return the model's configuration with the task's head: one output and squared error for regression."""
    problem = "regression" if kind == "regression" else "single_label_classification"
    outputs = 1 if kind == "regression" else num_labels
    with library_call(base):
        return AutoConfig.from_pretrained(base.path, num_labels=outputs, problem_type=problem)


def linear_modules(base: BaseModel, kind: TaskKind, num_labels: int) -> tuple[LinearModule, ...]:
    """List the linear layers of the transformer blocks, in model order.

    A layer counts when its path has a number in it (`encoder.layer.3.attention...`) and is not part of the head.
    GPT-2's `Conv1D` keeps its weight as (in, out): sizes here are always those of the function it computes.

    Raises:
        BaseModelError: the configuration cannot be read or has no sequence classification model.
    """
    model = _without_weights(base, kind, num_labels)
    heads = set(head_names(model))
    return tuple(
        LinearModule(name, *_sizes(module))
        for name, module in model.named_modules()
        if isinstance(module, (nn.Linear, Conv1D)) and name.split(".")[0] not in heads and _in_block(name)
    )


def head_size(base: BaseModel, kind: TaskKind, num_labels: int) -> int:
    """Return the number of parameters of the task's whole head.

    Raises:
        BaseModelError: the configuration cannot be read or has no sequence classification model.
    """
    return sum(prod(shape) for shape in head_shapes(base, kind, num_labels).values())


def head_shapes(base: BaseModel, kind: TaskKind, num_labels: int, head: Head = "full") -> dict[str, tuple[int, ...]]:
    """Return the full name and shape of every parameter of the task's head that is trained.

    Raises:
        BaseModelError: the configuration cannot be read or has no sequence classification model.
    """
    model = _without_weights(base, kind, num_labels)
    trained = head_names(model) if head == "full" else output_head(model)[:1]
    return {
        f"{name}.{own}": tuple(parameter.shape)
        for name in trained
        for own, parameter in model.get_submodule(name).named_parameters()
    }


def matrix(layer: nn.Module) -> Tensor:
    """Return a linear layer's weight as the function computes it, shape (out, in); a view."""
    weight = layer.get_parameter("weight")
    return weight.T if isinstance(layer, Conv1D) else weight


def _without_weights(base: BaseModel, kind: TaskKind, num_labels: int) -> PreTrainedModel:
    """Return the task model with every tensor on the meta device."""
    config = task_config(base, kind, num_labels)
    with library_call(base), torch.device("meta"):
        return AutoModelForSequenceClassification.from_config(config)


def _in_block(name: str) -> bool:
    return any(part.isdigit() for part in name.split("."))


def _sizes(module: nn.Module) -> tuple[int, int]:
    """Return (in_features, out_features)."""
    out_features, in_features = matrix(module).shape
    return in_features, out_features
