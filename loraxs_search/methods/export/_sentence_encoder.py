"""A head on a pool as modules of sentence-transformers, whose encoder then gives a text's logits."""

from __future__ import annotations

import json
from itertools import pairwise
from pathlib import Path
from typing import TYPE_CHECKING

from loraxs_search.errors import UsageError
from loraxs_search.home import write_atomic
from loraxs_search.methods.export._base import LoadedAdapter
from loraxs_search.tasks.asking import between_texts

if TYPE_CHECKING:
    from torch import Tensor, nn
    from transformers import PreTrainedModel

_ACTIVATIONS = (
    "torch.nn.modules.linear.Identity",
    *(f"torch.nn.modules.activation.{n}" for n in ("Tanh", "ReLU", "GELU")),
)
_FLAGS = {"cls": "cls_token", "mean": "mean_tokens", "last": "lasttoken"}


def write_pooled_head(model: PreTrainedModel, adapter: LoadedAdapter, folder: Path) -> None:
    """Make a folder that holds a body, or an adapter of one, a sentence encoder: pool and head follow the body.

    Args:
        model: The base with the trained head in place, without PEFT.
    Raises:
        UsageError: the head is not linear layers with one of a few functions between them.
    """
    import safetensors.torch

    from loraxs_search.base_model.reading import pooling_of

    task, (layers, activation), pooling = adapter.manifest.task, _linear_head(model), pooling_of(model)
    pool = {"word_embedding_dimension": layers[0].in_features}
    modules = ["", "1_Pooling", *(f"{number}_Dense" for number in range(2, 2 + len(layers)))]
    kinds = ["Transformer", *(name.partition("_")[2] for name in modules[1:])]
    listed = [
        {"idx": number, "name": str(number), "path": path, "type": f"sentence_transformers.models.{kind}"}
        for number, (path, kind) in enumerate(zip(modules, kinds, strict=True))
    ]
    files = {
        "modules.json": listed,
        "sentence_bert_config.json": {"max_seq_length": task.max_length, "do_lower_case": False},
        "1_Pooling/config.json": pool | {f"pooling_mode_{flag}": how == pooling for how, flag in _FLAGS.items()},
    }
    for path, layer in zip(modules[2:], layers, strict=True):
        files[f"{path}/config.json"] = {
            "in_features": layer.in_features,
            "out_features": layer.out_features,
            "bias": layer.bias is not None,
            "activation_function": _ACTIVATIONS[0] if layer is layers[-1] else activation,
        }
        state = {f"linear.{name}": value.detach().float().contiguous() for name, value in layer.named_parameters()}
        write_atomic(folder / path / "model.safetensors", safetensors.torch.save(state, {"format": "pt"}))
    for name, content in files.items():
        write_atomic(folder / name, json.dumps(content, indent=2) + "\n")


def encoding_page(adapter: LoadedAdapter, notice: str = "", before: str = "") -> str:
    """Return README.md: how sentence-transformers computes logits from this folder.

    Args:
        notice: What people should know first.
        before: Lines of Python that run before the folder is loaded.
    """
    task = adapter.manifest.task
    texts = f'"{task.text}"' if task.text_pair is None else f'("{task.text}", "{task.text_pair}")'
    outputs = f"a row's logits of {json.dumps(task.labels, ensure_ascii=False)}" if task.labels else "a row's number"
    page = f"""# {task.name}

{notice}

A sentence encoder whose embeddings are what the head gives, {outputs}:

```python
{before}import sentence_transformers
model = sentence_transformers.SentenceTransformer(".")
logits = model.encode([{texts}])
```{between_texts(task)}
"""
    return page.replace("\n\n\n", "\n")


def _linear_head(model: PreTrainedModel) -> tuple[list[nn.Linear], str]:
    """Return the head's layers and the function between them, found by what it computes of made-up rows."""
    import torch
    from torch import nn

    from loraxs_search.base_model.layers import output_head
    from loraxs_search.base_model.reading import close_to, dummy_inputs

    def through(x: Tensor, activation: str) -> Tensor:
        for layer in layers[:-1]:
            x = getattr(nn, activation.rpartition(".")[2])()(layer(x))
        last: Tensor = layers[-1](x)
        return last

    output, before = output_head(model)
    layers = [layer for name in (*before, output) if isinstance(layer := model.get_submodule(name), nn.Linear)]
    if all(first.out_features == second.in_features for first, second in pairwise(layers)):
        with torch.no_grad():
            inputs = dummy_inputs(model)
            pooled, logits = model.base_model(**inputs)[0][:, 0].float(), model(**inputs).logits.float()
            for activation in _ACTIVATIONS:
                if close_to(through(pooled, activation), logits, 1e-4):
                    return layers, activation
    raise UsageError(
        f"The head of {type(model).__name__} must be linear layers with a known function between them, to be one of"
        " sentence-transformers, but it is another.",
        hint="leave --format out: native files say what the head reads; or search with `task.pooling: class`",
    )
