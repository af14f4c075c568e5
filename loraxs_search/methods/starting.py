"""What a trial starts from: a registered adapter, and a linear probe for its head; each is an asset of its study.

The file has the adapter's tensors, by their names in the base, and a header with what they presume. Read without torch,
but for the functions that return tensors.
"""

from __future__ import annotations

import json
from collections.abc import Mapping
from dataclasses import dataclass
from typing import TYPE_CHECKING

from loraxs_search.assets import START, existing_path
from loraxs_search.records.codec import from_json
from loraxs_search.records.task import OutputScale
from loraxs_search.records.trial import Hyperparameters
from loraxs_search.safetensors_header import entry_of

if TYPE_CHECKING:
    from torch import Tensor


@dataclass(frozen=True)
class StartHeader:
    """What the tensors of a start presume.

    Args:
        hyperparameters: Of the adapter.
        fingerprints: Of its factors, by module; empty where its method has none.
        head: Names of the head's tensors; empty where a trial draws its own.
    """

    hyperparameters: Hyperparameters
    fingerprints: Mapping[str, tuple[float, ...]]
    head: tuple[str, ...] = ()


def start_header(digest: str) -> StartHeader:
    """Return the header of a start that is on this machine."""
    return from_json(StartHeader, json.dumps(entry_of(existing_path(digest), START)))


def start_tensor(digest: str, name: str) -> Tensor | None:
    """Return a tensor of a start by its name in the base, float32 on the CPU; None if it has none of that name."""
    from safetensors import safe_open

    with safe_open(existing_path(digest), framework="pt") as file:
        if name not in file.keys():  # noqa: SIM118  # it is no mapping
            return None
        tensor: Tensor = file.get_tensor(name).clone().float()
        return tensor


def started_head(
    hyper: Hyperparameters, drawn: Mapping[str, Tensor], output: str, outputs: OutputScale
) -> dict[str, Tensor]:
    """Return a trial's head at its start: the adapter's, where the trial trains just what that has stored, else the
    linear probe where there is one.

    Args:
        drawn: What the trial would start from, by full name in the base.
        output: The head's output layer, from which `outputs` is taken out again: a stored head has it folded in.
    """
    own, digest = dict(drawn), hyper.start_from
    if digest is None or set(start_header(digest).head) != own.keys() or (stored := _stored(digest, own)) is None:
        probe = None if hyper.linear_probe is None else _stored(hyper.linear_probe, own)
        return own if probe is None else probe
    for name, mean in ((f"{output}.weight", 0.0), (f"{output}.bias", outputs.mean)):
        if name in stored:
            stored[name] = (stored[name] - mean) / outputs.spread
    return stored


def _stored(digest: str, own: Mapping[str, Tensor]) -> dict[str, Tensor] | None:
    """Return the tensors of an asset in place of these; None if it has others."""
    stored = {name: start_tensor(digest, name) for name in own}
    if any(value is None or value.shape != own[name].shape for name, value in stored.items()):
        return None
    return {name: value for name, value in stored.items() if value is not None}
