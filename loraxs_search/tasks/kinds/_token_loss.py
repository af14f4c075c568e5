"""Losses of learnt tokens from hidden states, with logits of a few reads at a time.

Imports torch: kinds import this module inside their methods. Letters: M reads, V tokens of the vocabulary, n rows,
C reads of a chunk.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator
from typing import Any, cast

import torch
from torch import Tensor

from loraxs_search.tasks.encoded import Batch
from loraxs_search.tasks.kinds._base import PassOutputs

# Memory of one chunk's logits, were they all float32; on a CPU they are in blocks of a core's cache.
CHUNK_BYTES = 64 << 20
_CPU_BLOCK_BYTES = 2 << 20


def token_losses(outputs: PassOutputs, batch: Batch) -> tuple[Tensor, Tensor]:
    """Return each read's loss -log p(target), (M,), and whether its target is the likeliest token, bool (M,).

    Logits exist for one chunk of reads at a time, forward and backward: the gradient of each loss with respect to its
    own hidden state is made with the loss and kept, which takes as much memory as the states. The base's output
    embedding is frozen and gets no gradient.

    Args:
        outputs: Hidden states of a base without a head, and their projection.
        batch: The rows that `outputs` are of, with targets.
    Returns:
        Losses in float32, attached to the graph; the second tensor is not.
    """
    assert outputs.project is not None  # with a head there is nothing to project
    with_gradients = torch.is_grad_enabled() and outputs.read.requires_grad
    return _losses(outputs.read, batch.targets, outputs.project, with_gradients)


class _Losses(torch.autograd.Function):
    """Gradients are made in the forward pass, chunk by chunk."""

    @staticmethod
    def forward(
        ctx: Any, states: Tensor, targets: Tensor, project: Callable[[Tensor], Tensor], with_gradients: bool
    ) -> tuple[Tensor, Tensor]:
        empty = project(states[:0])  # (0, V)
        losses = states.new_empty(len(states), dtype=empty.dtype)
        is_likeliest = states.new_empty(len(states), dtype=torch.bool)
        gradients = torch.empty_like(states) if with_gradients else None
        for part in _chunks(len(states), _power_of_two(CHUNK_BYTES // (4 * empty.shape[-1]))):
            of_states = None if gradients is None else gradients[part]
            losses[part], is_likeliest[part] = _chunk(states[part].detach(), targets[part], project, of_states)
        if gradients is not None:
            ctx.save_for_backward(gradients)
        ctx.mark_non_differentiable(is_likeliest)
        return losses, is_likeliest

    @staticmethod
    def backward(ctx: Any, *grads: Tensor) -> tuple[Tensor | None, ...]:
        (gradients,) = ctx.saved_tensors
        return (gradients * grads[0][:, None]).to(gradients.dtype), None, None, None


def _chunk(
    states: Tensor, targets: Tensor, project: Callable[[Tensor], Tensor], gradients: Tensor | None
) -> tuple[Tensor, Tensor]:
    """Return losses and whether they are of the likeliest token, (C,); write d loss / d state, (C, width)."""
    learns = gradients is not None
    # A base's own projection has two steps, so that logits in float32 need never exist for many reads at once: `embed`
    # gives the output embedding's numbers, (C, V), in the precision of the body, `finish` the logits that they mean.
    parts: Any = project if hasattr(project, "embed") else None
    with torch.set_grad_enabled(learns):
        states = states.requires_grad_(learns)
        embedded = parts.embed(states) if parts is not None else project(states)  # (C, V)
    raw = embedded.detach()
    size = _power_of_two(_CPU_BLOCK_BYTES // (4 * raw.shape[1])) if raw.device.type == "cpu" else len(raw)
    losses, is_likeliest = list[Tensor](), list[Tensor]()
    for part in _chunks(len(raw), size):
        with torch.set_grad_enabled(learns):
            leaf = raw[part].detach().requires_grad_(learns)
            # Not the same tensor, which is written over.
            logits = parts.finish(leaf) if parts is not None else leaf * 1
        is_likeliest.append(logits.detach().argmax(-1) == targets[part])
        log_p, target = torch.log_softmax(logits.detach(), 1), targets[part][:, None]
        losses.append(-log_p.gather(1, target)[:, 0])
        if learns:  # for memory, gradients take the place of the embedding: softmax, less 1 at the target
            of_logits = log_p.exp_().scatter_add_(1, target, -torch.ones_like(target, dtype=log_p.dtype))
            raw[part].copy_(torch.autograd.grad(logits, leaf, of_logits)[0])
    if gradients is not None:
        gradients.copy_(torch.autograd.grad(embedded, states, raw)[0])
    return torch.cat(losses), torch.cat(is_likeliest)


def _power_of_two(number: int) -> int:
    """Return the largest one that is not above `number`, at least 1."""
    return 1 << max(1, number).bit_length() - 1


_losses = cast("Callable[..., tuple[Tensor, Tensor]]", _Losses.apply)


def _chunks(num_reads: int, size: int) -> Iterator[slice]:
    return (slice(start, start + size) for start in range(0, num_reads, size))
