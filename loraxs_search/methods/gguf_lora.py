"""A plain LoRA adapter as a GGUF file, for llama.cpp and what is built on it.

Its names and its order of rows are those of llama.cpp's own converters (`conversion/`, `convert_lora_to_gguf.py`).
"""

from __future__ import annotations

import re
from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from torch import Tensor
from transformers import PretrainedConfig

from loraxs_search.errors import UsageError, one_of
from loraxs_search.home import disk_faults
from loraxs_search.methods._plain_lora import Pair, padded
from loraxs_search.records import Manifest
from loraxs_search.tasks import kind_of

FILE = "adapter.gguf"


@dataclass(frozen=True)
class _Architecture:
    """What llama.cpp makes of an architecture.

    Args:
        name: Its own name for it.
        interleaves: Whether each head's rows of query and key are put in another order, since its rotary positions turn
            neighbouring rows where transformers turns row i and row i + head / 2.
    """

    name: str
    interleaves: bool = False


# By transformers' `model_type`. Mixtures of experts are left out: there, several layers are one tensor.
_ARCHITECTURES = {
    "llama": _Architecture("llama", interleaves=True),
    "mistral": _Architecture("llama", interleaves=True),
    "smollm3": _Architecture("smollm3", interleaves=True),
    "qwen2": _Architecture("qwen2"),
    "qwen3": _Architecture("qwen3"),
    "gemma": _Architecture("gemma"),
    "gemma2": _Architecture("gemma2"),
    "gemma3_text": _Architecture("gemma3"),
}


def check_headless(manifest: Manifest) -> None:
    """Refuse an adapter with a trained head: llama.cpp has no place for it.

    Raises:
        UsageError: it has one.
    """
    if kind_of(manifest.task).model.num_outputs is not None:
        raise UsageError(
            f"`--format gguf` must be of an adapter without a head, but {manifest.task.name} is of kind"
            f" {manifest.task.kind}, which trains one.",
            hint="use --format lora or merged with transformers",
        )


def write_gguf_lora(pairs: Mapping[str, Pair], config: PretrainedConfig, path: Path, *, base: str) -> None:
    """Write the update B A of each layer, in float32; `adapter.lora.alpha` is the rank, so that nothing scales it.

    Args:
        pairs: Full name of each adapted layer of a base without a head to its factors; zeros fill up smaller ranks.
        config: The base's.
        base: Its name, for people.
    Raises:
        UsageError: llama.cpp's names for this architecture, or for one of the layers, are not known.
        HomeError: the file cannot be written.
    """
    import gguf

    architecture = _architecture(config)
    names = _tensor_names(list(pairs), config, architecture)
    rank = max(a.shape[0] for a, _ in pairs.values())  # llama.cpp divides its one alpha by each tensor's rank
    with disk_faults(path):
        writer = gguf.GGUFWriter(path, architecture.name)
        writer.add_type(gguf.GGUFType.ADAPTER)
        writer.add_string(gguf.Keys.Adapter.TYPE, "lora")
        writer.add_float32(gguf.Keys.Adapter.LORA_ALPHA, float(rank))
        writer.add_base_model_count(1)
        writer.add_base_model_name(0, base)
        for module, pair in pairs.items():
            a, b = padded(*pair, rank, module)
            rows = _interleaved(b, num_heads) if (num_heads := _heads(module, config, architecture)) else b
            for side, tensor in (("a", a), ("b", rows)):
                writer.add_tensor(f"{names[module]}.weight.lora_{side}", tensor.float().contiguous().cpu().numpy())
        writer.write_header_to_file()
        writer.write_kv_data_to_file()
        writer.write_tensors_to_file()
        writer.close()


def _architecture(config: PretrainedConfig) -> _Architecture:
    if config.model_type not in _ARCHITECTURES:
        raise UsageError(
            "`--format gguf` must be of a base whose layers' names in llama.cpp are known, those of type "
            f"{one_of(_ARCHITECTURES, config.model_type)}, but got {config.model_type!r}.",
            hint="use --format lora or merged, and llama.cpp's own converters",
        )
    return _ARCHITECTURES[config.model_type]


def _tensor_names(modules: list[str], config: PretrainedConfig, architecture: _Architecture) -> dict[str, str]:
    """Return llama.cpp's name of each layer, such as `blk.3.attn_q`.

    Raises:
        UsageError: it has none for some layer.
    """
    import gguf

    arch = next(key for key, name in gguf.MODEL_ARCH_NAMES.items() if name == architecture.name)
    known: Any = gguf.get_tensor_name_map(arch, config.num_hidden_layers)
    names = {module: known.get_name(module) for module in modules}
    if unknown := [module for module, name in names.items() if name is None]:
        raise UsageError(
            f"`--format gguf` must adapt layers that llama.cpp has, but of {config.model_type} it has no {unknown[0]}.",
            hint="use --format lora or merged",
        )
    return names


def _heads(module: str, config: PretrainedConfig, architecture: _Architecture) -> int:
    """Return the number of heads whose rows are put in another order; 0 where a layer's rows stay."""
    if not architecture.interleaves:
        return 0
    part = re.sub(r".*\.", "", module)
    heads: int = {"q_proj": config.num_attention_heads, "k_proj": config.num_key_value_heads}.get(part, 0)
    return heads


def _interleaved(b: Tensor, num_heads: int) -> Tensor:
    """Return rows in llama.cpp's order: of each head the first of both halves, then the second of both, and so on."""
    halves = b.reshape(num_heads, 2, -1, b.shape[-1])  # (heads, 2, half a head, r)
    return halves.transpose(1, 2).reshape(b.shape)
