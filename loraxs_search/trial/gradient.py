"""The gradient of the loss with respect to whole weights, on a few rows: what `basis: gradient` is made of.

The gradients of a 7B base would take 28 GB in float32. So they are summed for some layers at a time, as many as the
memory holds, on the CPU; each such group takes one forward and backward over the rows. On the device there is one
layer's gradient at a time.
"""

from __future__ import annotations

import logging
from collections.abc import Callable, Iterator, Mapping, Sequence
from contextlib import contextmanager

import torch
from torch import Tensor, nn
from transformers import PreTrainedModel
from transformers.pytorch_utils import Conv1D

from loraxs_search.factors import Factors, gradient_factors
from loraxs_search.memory import available_bytes
from loraxs_search.records import Estimate
from loraxs_search.tasks import PreparedTask, TrainingBatches
from loraxs_search.trial.forward import forward_batch
from loraxs_search.trial.run import start_head

_logger = logging.getLogger(__name__)
_BATCH_ROWS = 16
_MEMORY_SHARE = 4  # the gradients of a group take at most one part in this many of what is free
_BYTES = 4


def estimate_factors(
    model: PreTrainedModel,
    data: PreparedTask,
    names: Sequence[str],
    estimate: Estimate,
    *,
    max_bytes: int | None = None,
) -> dict[str, Factors]:
    """Return the factors of the first step of full fine-tuning, for each of these layers.

    The loss is a trial's own, over all rows at once; dropout is off, as in trials. The head is at its start, drawn from
    the estimate's seed. The base is left as it was, but for its head.

    Args:
        model: The base as its task loads it, with nothing of a trial on it.
        names: Full names of linear layers.
        max_bytes: What the gradients may take of the memory at once; None means a part of what is free.
    Raises:
        BaseModelError: a gradient is not finite.
    """
    start_head(model, estimate.head, estimate.seed)
    budget = max_bytes or available_bytes() // _MEMORY_SHARE
    layers = {name: model.get_submodule(name) for name in names}
    groups = list(_groups(layers, budget))
    if len(groups) > 1:
        _logger.info("the gradients of %d layers are estimated in %d parts", len(layers), len(groups))
    factors: dict[str, Factors] = {}
    for group in groups:
        gradients = _summed(model, data, group, estimate)
        for name in group:  # each is freed before the next is decomposed
            factors[name] = gradient_factors(gradients.pop(name), rank=estimate.rank)
    return factors


def _groups(layers: Mapping[str, nn.Module], budget: int) -> Iterator[dict[str, nn.Module]]:
    """Yield neighbouring layers whose gradients fit the budget together, one layer at least."""
    group: dict[str, nn.Module] = {}
    size = 0
    for name, layer in layers.items():
        own = _BYTES * layer.get_parameter("weight").numel()
        if group and size + own > budget:
            yield group
            group, size = {}, 0
        group[name], size = layer, size + own
    if group:
        yield group


def _summed(
    model: PreTrainedModel, data: PreparedTask, layers: Mapping[str, nn.Module], estimate: Estimate
) -> dict[str, Tensor]:
    """Return the gradients (out, in) of the loss summed over the rows, float32 on the CPU."""
    device = next(model.parameters()).device
    lengths = data.lengths("train")
    num_rows = min(estimate.num_rows, len(lengths))
    batches = TrainingBatches(lengths, min(_BATCH_ROWS, num_rows), estimate.seed)
    with _summing(layers) as gradients, torch.enable_grad():
        left, step = num_rows, 0
        while left:
            rows = batches.at(step)[:left]
            batch = data.collate("train", rows).to(device)
            loss = data.kind.loss(forward_batch(model, batch), batch).sum()
            loss.backward()  # type: ignore[no-untyped-call]
            left, step = left - len(rows), step + 1
    return {name: own.T if isinstance(layers[name], Conv1D) else own for name, own in gradients.items()}


@contextmanager
def _summing(layers: Mapping[str, nn.Module]) -> Iterator[dict[str, Tensor]]:
    """Add up the gradients of these layers' weights while the block runs, and free each at once."""
    weights = {name: layer.get_parameter("weight") for name, layer in layers.items()}
    sums = {name: torch.zeros(weight.shape, dtype=torch.float32) for name, weight in weights.items()}
    were_trained = {name: weight.requires_grad for name, weight in weights.items()}
    handles = []
    try:
        for name, weight in weights.items():
            weight.requires_grad_(True)
            handles.append(weight.register_post_accumulate_grad_hook(_adding_to(sums[name])))  # type: ignore[no-untyped-call]
        yield sums
    finally:
        for handle in handles:
            handle.remove()
        for name, weight in weights.items():
            weight.requires_grad_(were_trained[name])
            weight.grad = None


def _adding_to(total: Tensor) -> Callable[[Tensor], None]:
    def hook(weight: Tensor) -> None:
        assert weight.grad is not None
        total.add_(weight.grad.to("cpu", torch.float32))
        weight.grad = None

    return hook
