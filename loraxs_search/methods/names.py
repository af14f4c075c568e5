"""What methods share, read without torch: PEFT's names and the length of a file with them, and the law of ranks."""

from __future__ import annotations

import json
from collections.abc import Mapping, Sequence
from math import prod
from types import MappingProxyType
from typing import Any

from loraxs_search.errors import UsageError
from loraxs_search.records.task import LinearModule

ADAPTER = "default"  # the one adapter of a trial, and of a loaded folder
ROOT = "base_model.model."
R = "loraxs_R"  # what the LoRA-XS tuner calls R, the one tensor that it stores of each layer
NATIVE = "native"  # the form of an adapter as it was trained, which needs no export
FILES = ("adapter_config.json", "adapter_model.safetensors")
BYTES_PER_PARAMETER = 4  # adapter and head are stored in float32

Shapes = Mapping[str, tuple[int, ...]]  # of tensors, by full name in the base


def file_bytes(tensors: Shapes, others: Shapes = MappingProxyType({}), *, root: str = ROOT) -> int:
    """Return the length of a safetensors file with these float32 tensors.

    8 bytes + a JSON header, padded to 8, that names each tensor + its numbers. Tensors stand in the order of their
    names. With a small rank the header is a good part of the file.

    Args:
        others: By full name in the file.
        root: What the names of `tensors` have before them in the file.
    """
    header: dict[str, Any] = {"__metadata__": {"format": "pt"}}
    end = 0
    for name, shape in sorted([(f"{root}{name}", shape) for name, shape in tensors.items()] + [*others.items()]):
        start, end = end, end + BYTES_PER_PARAMETER * prod(shape)
        header[name] = {"dtype": "F32", "shape": list(shape), "data_offsets": [start, end]}
    length = len(json.dumps(header, separators=(",", ":")))
    return 8 + length + -length % 8 + end


# `Method.not_offered` of those that have `rank` and `scale`.
NO_ALPHA = MappingProxyType(
    {"alpha": "is not offered, since with alpha fixed a larger rank learns slower; use `scale` (= alpha / rank)."}
)


def check_ranks(rank: int, modules: Sequence[LinearModule]) -> None:
    """Hold a rank against each layer's smaller side.

    Raises:
        UsageError: it is above one of them, or below 1; the message names the layer that it fits least.
    """
    smallest = min(modules, key=lambda module: min(module.in_features, module.out_features))
    most = min(smallest.in_features, smallest.out_features)
    if not 1 <= rank <= most:
        raise UsageError(
            f"`rank` must be in 1..{most}, but got rank={rank} for {smallest.name}.",
            hint="lower the rank, or leave this module out of target_modules",
        )
