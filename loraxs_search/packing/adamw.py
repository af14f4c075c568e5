"""Clipping and AdamW for all slots at once, each with its own rates, decay and betas.

An optimizer of `torch.optim` takes one of each a call, so that a pack of n trials would be 2 n optimizers. On an
accelerator, where a call costs more than its numbers, each operation here runs over the tensors of every trial in one
call; on a CPU, and for large tensors such as a whole model's, it is the passes over memory that cost: each tensor is
passed over once, and no copies are made. Both are what torch's
optimizers are made of; their names are private, and this is the one file that knows them.
"""

from __future__ import annotations

import math
from collections.abc import Sequence
from dataclasses import dataclass

import torch
from torch import Tensor

_EPS = 1e-8  # torch's own
_LARGE = 1 << 19  # numbers of the mean tensor


@dataclass(frozen=True)
class AdamWUpdate:
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
    grads = [p.new_zeros(()) if p.grad is None else p.grad for parameters in slots for p in parameters]
    each = torch.split(torch.stack(torch._foreach_norm(grads)), [len(parameters) for parameters in slots])
    return torch.stack([torch.linalg.vector_norm(norms) for norms in each])


def clip_factor(norm: float, limit: float) -> float:
    """Return what a gradient of this norm is multiplied with; a limit of 0 means no clip."""
    return min(1.0, limit / (norm + 1e-6)) if limit > 0 else 1.0  # torch's own formula


@torch.no_grad()
def adamw(tensors: Sequence[AdamWUpdate]) -> None:
    """Take the step of each tensor, as `torch.optim.AdamW` does of a gradient that was clipped."""
    trained = [t for t in tensors if t.parameter.grad is not None]
    if not trained:
        return
    grads = [t.parameter.grad for t in trained if t.parameter.grad is not None]
    if any(t.clip != 1.0 for t in trained):
        torch._foreach_mul_(grads, [t.clip for t in trained])
    is_large = sum(grad.numel() for grad in grads) > _LARGE * len(grads)
    (per_tensor if is_large or grads[0].device.type == "cpu" else foreach)(trained, grads)


def per_tensor(trained: Sequence[AdamWUpdate], grads: Sequence[Tensor]) -> None:
    """Take the steps with one call for each tensor."""
    for t, grad in zip(trained, grads, strict=True):
        torch._fused_adamw_(
            [t.parameter],
            [grad],
            [t.exp_avg],
            [t.exp_avg_sq],
            [],
            [torch.tensor(float(t.step), device=grad.device)],
            lr=t.learning_rate,
            beta1=t.betas[0],
            beta2=t.betas[1],
            weight_decay=t.weight_decay,
            eps=_EPS,
            amsgrad=False,
            maximize=False,
        )


def foreach(trained: Sequence[AdamWUpdate], grads: Sequence[Tensor]) -> None:
    """Take the steps with one call for each operation, over all tensors."""
    parameters, means, squares = zip(*((t.parameter, t.exp_avg, t.exp_avg_sq) for t in trained), strict=True)
    if any(t.weight_decay for t in trained):
        torch._foreach_mul_(parameters, [1 - t.learning_rate * t.weight_decay for t in trained])
    torch._foreach_mul_(means, [t.betas[0] for t in trained])
    torch._foreach_add_(means, torch._foreach_mul(list(grads), [1 - t.betas[0] for t in trained]))
    torch._foreach_mul_(squares, [t.betas[1] for t in trained])
    torch._foreach_addcmul_(squares, list(grads), list(grads), [1 - t.betas[1] for t in trained])
    roots = torch._foreach_sqrt(squares)
    torch._foreach_div_(roots, [math.sqrt(1 - t.betas[1] ** t.step) for t in trained])
    torch._foreach_add_(roots, _EPS)
    sizes = [-t.learning_rate / (1 - t.betas[0] ** t.step) for t in trained]
    torch._foreach_addcdiv_(parameters, means, roots, sizes)
