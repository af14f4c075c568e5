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
from loraxs_search.errors import BaseModelError
from loraxs_search.records.codec import entry_of, from_json
from loraxs_search.records.task import OutputScale
from loraxs_search.records.trial import Hyperparameters

if TYPE_CHECKING:
    from torch import Tensor
    from transformers import PreTrainedModel


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

    @classmethod
    def of(cls, digest: str) -> StartHeader:
        """Return the header of a start that is on this machine."""
        return from_json(cls, json.dumps(entry_of(existing_path(digest), START)))


def start_tensor(digest: str, name: str) -> Tensor | None:
    """Return a tensor of a start by its name in the base, float32 on the CPU; None if it has none of that name."""
    from safetensors import safe_open

    with safe_open(existing_path(digest), framework="pt") as file:
        if name not in file.keys():  # noqa: SIM118  # it is no mapping
            return None
        tensor: Tensor = file.get_tensor(name).clone().float()
        return tensor


def draw_head(
    model: PreTrainedModel,
    hyper: Hyperparameters,
    num_outputs: int | None,
    parts: tuple[str, tuple[str, ...]],
    outputs: OutputScale,
) -> tuple[dict[str, Tensor], dict[str, Tensor], tuple[str, ...]]:
    """Return a trial's head at its start: what is trained, what is fixed, and the modules that PEFT stores whole.

    Names are full ones, values float32 on the CPU. What is trained is the head of the adapter that the trial starts
    from, where that has stored just this; else the linear probe where there is one; else drawn from the seed.

    Args:
        model: The base, whatever its number of outputs; read, not changed.
        num_outputs: None if the task has no head.
        parts: What `output_head` returns of the base.
        outputs: What is taken out of the output layer of an adapter again: a stored head has it folded in.
    Raises:
        BaseModelError: with `head: output`, a layer before the output cannot be the identity, or ends like it.
    """
    import torch

    from loraxs_search.base_model.layers import HEAD_AS_LOADED, fresh_head, head_names, with_labels

    if num_outputs is None:
        return {}, {}, ()
    drawn, owners = fresh_head(with_labels(model, num_outputs), hyper.seed), head_names(model)
    fixed: dict[str, Tensor] = {}
    output, before = parts
    if hyper.head == "output":
        if ambiguous := [name for name in before if name.endswith(output)]:
            # PEFT finds modules by the end of their name: DistilBERT's `pre_classifier` would be trained too.
            raise BaseModelError(
                f"`head: output` needs an output layer whose name ends no other's, but {output} ends {ambiguous[0]}.",
                hint="use `head: full` with this base",
            )
        owners = (output,)
        fixed = {name: value for name, value in drawn.items() if not name.startswith(f"{output}.")}
        for layer in before:
            weight = fixed[f"{layer}.weight"]
            if weight.shape[0] != weight.shape[1]:
                raise BaseModelError(
                    f"A head layer that is not trained must be a square linear layer, but {layer} is"
                    f" {tuple(weight.shape)}.",
                    hint="use `head: full` with this base",
                )
            fixed[f"{layer}.weight"] = torch.eye(weight.shape[0])
            if (bias := fixed.get(f"{layer}.bias")) is not None:
                fixed[f"{layer}.bias"] = torch.zeros_like(bias)
        fixed |= getattr(model, HEAD_AS_LOADED, {})
    own = {name: value for name, value in drawn.items() if name not in fixed}

    def stored_in(digest: str | None) -> dict[str, Tensor] | None:
        """Return what an asset has in place of `own`; None if it has something else."""
        found = {} if digest is None else {name: start_tensor(digest, name) for name in own}
        kept = {name: v for name, v in found.items() if v is not None and v.shape == own[name].shape}
        return kept if kept.keys() == own.keys() else None

    digest = hyper.start_from
    started = stored_in(digest) if digest is not None and {*StartHeader.of(digest).head} == own.keys() else None
    if started is None:
        return stored_in(hyper.linear_probe) or own, fixed, owners
    for name, mean in ((f"{output}.weight", 0.0), (f"{output}.bias", outputs.mean)):
        if name in started:
            started[name] = (started[name] - mean) / outputs.spread
    return started, fixed, owners
