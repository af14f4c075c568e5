"""What a base model has: its configuration, its linear layers, and its task head, how that starts and its precision."""

from __future__ import annotations

import contextlib
import copy
import re
from collections.abc import Iterable, Iterator, Sequence
from typing import Any

import torch
import transformers
from safetensors import SafetensorError
from torch import Tensor, nn
from transformers import (
    MODEL_FOR_CAUSAL_LM_MAPPING,
    MODEL_FOR_MASKED_LM_MAPPING,
    AutoConfig,
    PretrainedConfig,
    PreTrainedModel,
)
from transformers.pytorch_utils import Conv1D
from transformers.utils import logging

from loraxs_search.errors import BaseModelError, first_line
from loraxs_search.records.task import BaseModel, LinearModule, TaskModel

Shapes = dict[str, tuple[int, ...]]


@contextlib.contextmanager
def quiet() -> Iterator[None]:
    """Silence transformers' warnings and progress bars inside the block, then restore both.

    It reports each load at length; what matters of that is checked and raised here.
    """
    verbosity, bars = logging.get_verbosity(), logging.is_progress_bar_enabled()
    logging.set_verbosity_error()
    logging.disable_progress_bar()
    try:
        yield
    finally:
        logging.set_verbosity(verbosity)
        if bars:
            logging.enable_progress_bar()


@contextlib.contextmanager
def library_call(base: BaseModel) -> Iterator[None]:
    """Run a call that reads the base model's folder: quiet, and any fault is a `BaseModelError`."""
    try:
        with quiet():
            yield
    except (OSError, ValueError, RuntimeError, KeyError, SafetensorError) as error:
        reason = first_line(error)
        raise BaseModelError(
            f"{base.path} must hold a text model that transformers can load, but: {reason}",
            hint=f"get the files of {base.id} again, or use another base model",
        ) from error


# An attribute of a model, as `load_model` puts it there: its head's parameters that no linear layer has, such as
# ModernBERT's norm. Whoever loads an adapter of `head: output` has the same.
HEAD_AS_LOADED = "loraxs_head_as_loaded"


def head_names(model: PreTrainedModel) -> tuple[str, ...]:
    """Return the names of the top-level modules with weights outside the model's body, in model order.

    ("classifier",) for BERT and RoBERTa, ("pre_classifier", "classifier") for DistilBERT, ("score",) for decoders; ()
    for a language model, whose output embedding is the base's own and is never trained, and for a bare body.
    Also right on a model that PEFT has wrapped (`get_base_model()`).
    """
    if model.get_output_embeddings() is not None or model.base_model is model:
        return ()
    return tuple(
        name
        for name, module in model.named_children()
        if name != model.base_model_prefix and next(module.parameters(), None) is not None
    )


def output_head(model: PreTrainedModel) -> tuple[str, tuple[str, ...]]:
    """Split the head into its last linear layer and the linear layers before it; there must be a head.

    Returns:
        Full name of the output layer, and full names of the others: ("classifier.out_proj", ("classifier.dense",))
        for RoBERTa, ("classifier", ()) for BERT.
    """
    linears = [
        name
        for name, module in model.named_modules()
        if isinstance(module, nn.Linear) and name.split(".")[0] in head_names(model)
    ]
    return linears[-1], tuple(linears[:-1])


@torch.no_grad()
def make_identity(model: nn.Module, names: Sequence[str]) -> None:
    """Make layers the identity: a head's where only its output layer is trained, a pooler that no checkpoint has.

    They need not be stored: every load makes the same numbers, whatever was drawn before.

    Raises:
        BaseModelError: a layer is not a square linear layer.
    """
    for name in names:
        layer = model.get_submodule(name)
        if not isinstance(layer, nn.Linear) or layer.in_features != layer.out_features:
            raise BaseModelError(
                f"A head layer that is not trained must be a square linear layer, but {name} is {layer}.",
                hint="use `head: full` with this base",
            )
        layer.weight.copy_(torch.eye(layer.in_features))
        if layer.bias is not None:
            layer.bias.zero_()


def is_identity(layer: nn.Module) -> bool:
    """Return whether a layer is the identity, as `make_identity` makes it."""
    if not isinstance(layer, nn.Linear):
        return False
    weight, bias = layer.weight.detach(), layer.bias
    if weight.shape[0] != weight.shape[1] or (bias is not None and bias.any()):
        return False
    return torch.equal(weight, torch.eye(len(weight), dtype=weight.dtype, device=weight.device))


def keep_head_float32(model: PreTrainedModel) -> None:
    """Keep the head in float32 and cast its inputs, so that it trains well on a bfloat16 body.

    The cast is a forward pre-hook, a plain function without state: it survives `copy.deepcopy`, which is how PEFT
    makes each adapter's own head.
    """
    for name in head_names(model):
        head = getattr(model, name)
        head.float()
        head.register_forward_pre_hook(_cast_input)


def _cast_input(head: nn.Module, args: tuple[Any, ...]) -> tuple[Any, ...]:
    dtype = next(head.parameters()).dtype
    return tuple(arg.to(dtype) if isinstance(arg, Tensor) and arg.is_floating_point() else arg for arg in args)


def with_labels(model: PreTrainedModel, num_labels: int) -> PreTrainedModel:
    """Return the model, or one of its class without weights (on the meta device), that has this many outputs."""
    if model.config.num_labels == num_labels:
        return model
    config = copy.deepcopy(model.config)
    config.num_labels = num_labels
    with quiet(), torch.device("meta"):
        empty: PreTrainedModel = type(model)._from_config(config)
    return empty


def fresh_head(model: PreTrainedModel, seed: int) -> dict[str, Tensor]:
    """Draw a new head as the model's own initialisation does, and return it without touching the model.

    Returns:
        Full parameter name (`classifier.weight`) to float32 tensor on CPU. The same numbers for the same seed on any
        device, whatever was drawn before; torch's global generators stay as they were.
    Raises:
        BaseModelError: the model's initialisation leaves some head parameter undefined.
    """
    names = head_names(model)
    if not names:
        return {}
    with quiet(), torch.random.fork_rng(devices=[]):
        with torch.device("meta"):
            template = type(model)._from_config(copy.deepcopy(model.config), dtype=torch.float32)
        torch.default_generator.manual_seed(seed)  # only the CPU's: `torch.manual_seed` reseeds devices too
        heads = [getattr(template, name).to_empty(device="cpu") for name in names]
        with torch.no_grad():
            for tensor in (p for head in heads for p in head.parameters()):
                tensor.fill_(torch.nan)
                tensor._is_hf_initialized = False  # transformers' init functions skip tensors with this mark
            for module in (m for head in heads for m in reversed(list(head.modules()))):
                template._init_weights(module)  # children first, as transformers does: a parent may redraw them
            template._init_weights(template)  # ModernBERT redraws its classifier from here
    state = {f"{n}.{k}": v.detach() for n, head in zip(names, heads, strict=True) for k, v in head.named_parameters()}
    undefined = [name for name, value in state.items() if not value.isfinite().all()]
    if undefined:
        raise BaseModelError(
            f"{type(model).__name__} must initialise its whole head, but leaves {undefined} undefined."
        )
    return state


def loading_of(base: BaseModel, model: TaskModel) -> tuple[Any, PretrainedConfig]:
    """Return the class of transformers that loads a base for a task, and its configuration with the task's changes.

    Raises:
        BaseModelError: transformers has no such class, or the configuration cannot be read, or is of an encoder where a
            language model is asked for.
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
    loader = getattr(transformers, model.auto_class, None)
    if loader is None:
        raise BaseModelError(f"A task's model must be a class of transformers, but got {model.auto_class!r}.")
    return loader, config


def reads_from_left(config: PretrainedConfig) -> bool:
    """Return whether transformers loads a base as a language model in which no token sees a later one.

    Encoders that are also trained with masks, such as BERT, are loaded too, but are decoders only if they say so.
    """
    if type(config) not in MODEL_FOR_CAUSAL_LM_MAPPING:
        return False
    masked = type(config) in MODEL_FOR_MASKED_LM_MAPPING and not getattr(config, "is_encoder_decoder", False)
    return not masked or bool(getattr(config, "is_decoder", False))


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


def parameter_shapes(base: BaseModel, model: TaskModel) -> tuple[dict[str, Shapes], Shapes]:
    """Return full names and shapes of the head's parameters that are trained, by what of it is, and of those below it.

    Without a head there are none of the former; tied parameters are listed once.

    Raises:
        BaseModelError: the configuration cannot be read or has no model of the task's class.
    """
    empty = _without_weights(base, model)
    heads, own = head_names(empty), {name: tuple(parameter.shape) for name, parameter in empty.named_parameters()}
    whole = {name: shape for name, shape in own.items() if name.split(".")[0] in heads}
    output = f"{output_head(empty)[0]}." if heads else ""
    body = {name: shape for name, shape in own.items() if name not in whole}
    return {"full": whole, "output": {n: shape for n, shape in whole.items() if n.startswith(output)}}, body


def matrix(layer: nn.Module) -> Tensor:
    """Return a linear layer's weight as the function computes it, shape (out, in); a view."""
    weight = layer.get_parameter("weight")
    return weight.T if isinstance(layer, Conv1D) else weight


def _without_weights(base: BaseModel, model: TaskModel) -> PreTrainedModel:
    """Return the task's model with every tensor on the meta device."""
    loader, config = loading_of(base, model)
    with library_call(base), torch.device("meta"):
        empty: PreTrainedModel = loader.from_config(config)
    return empty


def repeated_layers(model: nn.Module, names: Iterable[str]) -> tuple[str, nn.ModuleList | None]:
    """Return the one list whose members hold the modules of these names, with its name; None when it is not one."""
    lists = {match[1] for name in names if (match := re.match(r"(.+?)\.\d+\.", name))}
    stacks = [(name, layers) for name in lists if isinstance(layers := model.get_submodule(name), nn.ModuleList)]
    return stacks[0] if len(stacks) == 1 else ("", None)


class WrappedLayer(nn.Module):
    """Stands where a layer was; some models ask their layers for attributes, such as what kind they are."""

    def __init__(self, layer: nn.Module) -> None:
        super().__init__()
        self.layer = layer

    def __getattr__(self, name: str) -> Any:
        try:
            return super().__getattr__(name)
        except AttributeError:
            return getattr(super().__getattr__("layer"), name)
