"""Which linear layers a base model has, known from its configuration."""

from __future__ import annotations

import re
from collections.abc import Iterable
from typing import Any

import torch
import transformers
from torch import Tensor, nn
from transformers import (
    MODEL_FOR_CAUSAL_LM_MAPPING,
    MODEL_FOR_MASKED_LM_MAPPING,
    AutoConfig,
    PretrainedConfig,
    PreTrainedModel,
)
from transformers.pytorch_utils import Conv1D

from loraxs_search.base_model.head import head_names, output_head
from loraxs_search.base_model.library import library_call
from loraxs_search.errors import BaseModelError
from loraxs_search.records.base import BaseModel, LinearModule
from loraxs_search.records.literals import Head
from loraxs_search.records.task import TaskModel


def task_config(base: BaseModel, model: TaskModel) -> PretrainedConfig:
    """Return the base's configuration with the task's changes.

    Raises:
        BaseModelError: it cannot be read, or is of an encoder where a language model is asked for.
    """
    with library_call(base):
        config: PretrainedConfig = AutoConfig.from_pretrained(base.path, **dict(model.config))
    if model.auto_class == "AutoModelForCausalLM" and not reads_from_left(config):
        raise BaseModelError(
            f"A task whose base answers by itself must have a decoder, but {base.id} is an encoder"
            f" ({config.model_type}): each of its tokens sees those that follow.",
            hint="choose a decoder such as HuggingFaceTB/SmolLM2-135M-Instruct, or a task of the kind"
            " sequence-classification or regression",
        )
    return config


def reads_from_left(config: PretrainedConfig) -> bool:
    """Return whether transformers loads a base as a language model in which no token sees a later one.

    Encoders that are also trained with masks, such as BERT, are loaded too, but are decoders only if they say so.
    """
    if type(config) not in MODEL_FOR_CAUSAL_LM_MAPPING:
        return False
    masked = type(config) in MODEL_FOR_MASKED_LM_MAPPING and not getattr(config, "is_encoder_decoder", False)
    return not masked or bool(getattr(config, "is_decoder", False))


def auto_class(model: TaskModel) -> Any:
    """Return the class of transformers that loads a base for a task.

    Raises:
        BaseModelError: transformers has none of this name.
    """
    loader = getattr(transformers, model.auto_class, None)
    if loader is None:
        raise BaseModelError(f"A task's model must be a class of transformers, but got {model.auto_class!r}.")
    return loader


def linear_modules(base: BaseModel, model: TaskModel) -> tuple[LinearModule, ...]:
    """List the linear layers of the transformer blocks, in model order.

    A layer counts when its path has a number in it (`encoder.layer.3.attention...`) and is not part of the head.
    GPT-2's `Conv1D` keeps its weight as (in, out): sizes here are always those of the function it computes.

    Raises:
        BaseModelError: the configuration cannot be read or has no model of the task's class.
    """
    empty = _without_weights(base, model)
    heads = set(head_names(empty))
    return tuple(
        LinearModule(name, in_features=matrix(module).shape[1], out_features=matrix(module).shape[0])
        for name, module in empty.named_modules()
        if isinstance(module, (nn.Linear, Conv1D)) and name.split(".")[0] not in heads
        if any(part.isdigit() for part in name.split("."))
    )


def head_shapes(base: BaseModel, model: TaskModel, head: Head = "full") -> dict[str, tuple[int, ...]]:
    """Return the full name and shape of every parameter of the task's head that is trained; none without a head.

    Raises:
        BaseModelError: the configuration cannot be read or has no model of the task's class.
    """
    empty = _without_weights(base, model)
    names = head_names(empty)
    trained = output_head(empty)[:1] if names and head == "output" else names
    return {
        f"{name}.{own}": tuple(parameter.shape)
        for name in trained
        for own, parameter in empty.get_submodule(name).named_parameters()
    }


def body_shapes(base: BaseModel, model: TaskModel) -> dict[str, tuple[int, ...]]:
    """Return the full name and shape of every parameter below the task's head; tied ones once.

    Raises:
        BaseModelError: the configuration cannot be read or has no model of the task's class.
    """
    empty = _without_weights(base, model)
    heads = set(head_names(empty))
    return {
        name: tuple(parameter.shape) for name, parameter in empty.named_parameters() if name.split(".")[0] not in heads
    }


def matrix(layer: nn.Module) -> Tensor:
    """Return a linear layer's weight as the function computes it, shape (out, in); a view."""
    weight = layer.get_parameter("weight")
    return weight.T if isinstance(layer, Conv1D) else weight


def _without_weights(base: BaseModel, model: TaskModel) -> PreTrainedModel:
    """Return the task's model with every tensor on the meta device."""
    config = task_config(base, model)
    with library_call(base), torch.device("meta"):
        empty: PreTrainedModel = auto_class(model).from_config(config)
    return empty


def repeated_layers(model: nn.Module, names: Iterable[str]) -> tuple[str, nn.ModuleList | None]:
    """Return the one list whose members hold the modules of these names, with its name; None when it is not one."""
    lists = {match[1] for name in names if (match := re.match(r"(.+?)\.\d+\.", name))}
    stacks = [(name, layers) for name in lists if isinstance(layers := model.get_submodule(name), nn.ModuleList)]
    return stacks[0] if len(stacks) == 1 else ("", None)
