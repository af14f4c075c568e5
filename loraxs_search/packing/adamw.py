"""Clipping and AdamW for all slots at once: each operation runs over the tensors of every trial in one call.

An optimizer of `torch.optim` takes one learning rate, decay and pair of betas a call, so that a pack of n trials would
be 2 n calls of some ten kernels each. What those optimizers are made of, torch's foreach operations, takes a number for
each tensor; their names are private, and this is the one file that knows them.
"""

from __future__ import annotations

import math
from collections.abc import Iterator, Sequence
from dataclasses import dataclass

import torch
from torch import Tensor

_EPS = 1e-8  # torch's own


@dataclass(frozen=True)
class Trained:
    """A tensor in training, with what AdamW does to it. A tensor without a gradient is left as it is.

    Args:
        clip: What the gradient is multiplied with.
        step: The step to take, from 1.
    """

    parameter: Tensor
    exp_avg: Tensor
    exp_avg_sq: Tensor
    learning_rate: float
    betas: tuple[float, float]
    weight_decay: float
    clip: float
    step: int


def gradient_norms(slots: Sequence[Sequence[Tensor]]) -> Tensor:
    """Return the norm of each slot's whole gradient, shape (slots,), on the device; 0 where there is none."""
    grads = [[p.grad for p in parameters if p.grad is not None] for parameters in slots]
    each: Iterator[Tensor] = iter(torch._foreach_norm([grad for found in grads for grad in found]))
    norms = [
        torch.stack([next(each) for _ in found] or [parameters[0].new_zeros(())])
        for found, parameters in zip(grads, slots, strict=True)
    ]
    return torch.stack([torch.linalg.vector_norm(found) for found in norms])


def clip_factor(norm: float, limit: float) -> float:
    """Return what a gradient of this norm is multiplied with; a limit of 0 means no clip."""
    return min(1.0, limit / (norm + 1e-6)) if limit > 0 else 1.0  # torch's own formula


@torch.no_grad()
def adamw(tensors: Sequence[Trained]) -> None:
    """Take the step of each tensor, as `torch.optim.AdamW` does of a gradient that was clipped."""
    pairs = [(t, t.parameter.grad) for t in tensors if t.parameter.grad is not None]
    if not pairs:
        return
    trained, grads = [t for t, _ in pairs], [grad for _, grad in pairs]
    parameters, means, squares = zip(*((t.parameter, t.exp_avg, t.exp_avg_sq) for t in trained), strict=True)
    if any(t.clip != 1.0 for t in trained):
        torch._foreach_mul_(grads, [t.clip for t in trained])
    if any(t.weight_decay for t in trained):
        torch._foreach_mul_(parameters, [1 - t.learning_rate * t.weight_decay for t in trained])
    torch._foreach_mul_(means, [t.betas[0] for t in trained])
    new = torch._foreach_mul(grads, [1 - t.betas[0] for t in trained])
    torch._foreach_add_(means, new)
    torch._foreach_mul_(squares, [t.betas[1] for t in trained])
    torch._foreach_addcmul_(squares, grads, grads, [1 - t.betas[1] for t in trained])
    roots = torch._foreach_sqrt(squares)
    torch._foreach_div_(roots, [math.sqrt(1 - t.betas[1] ** t.step) for t in trained])
    torch._foreach_add_(roots, _EPS)
    sizes = [-t.learning_rate / (1 - t.betas[0] ** t.step) for t in trained]
    torch._foreach_addcdiv_(parameters, means, roots, sizes)
