"""A head that sends each row through its adapter's own weights; the numbers of outputs may differ."""

from __future__ import annotations

import threading
from collections.abc import Callable, Mapping
from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor, nn
from torch.func import functional_call
from torch.nn.functional import linear, pad

from loraxs_search.multiplexed.row_map import AdapterT, PassContext, RowMap, RowSegment


@dataclass(frozen=True)
class HeadState:
    """One head module, with the parameters that the rows of a segment use.

    Args:
        module: Gives the function, and the values of what is not in `parameters`; float32, not changed.
        parameters: Values in place of the module's own, by their names within it.
        per_row: Whether each of them has the segment's rows first, (n, *shape), or serves all rows.
    """

    module: nn.Module
    parameters: Mapping[str, Tensor]
    per_row: bool = False


class AdaptedHead(nn.Module):
    """Replaces a head module.

    Args:
        state: Returns what a segment's rows go through, given the worker that computes the pass.
    """

    def __init__(
        self,
        base_layer: nn.Module,
        context: PassContext[Any],
        state: Callable[[RowSegment[AdapterT], int], HeadState],
    ) -> None:
        super().__init__()
        self.base_layer = base_layer
        self._context: PassContext[RowMap[Any]] = context
        self._state: Callable[[RowSegment[Any], int], HeadState] = state
        self._one_at_a_time = threading.Lock()  # `functional_call` changes a module while it runs

    def forward(self, x: Tensor, *args: Any, **kwargs: Any) -> Tensor:
        """Return each row's output, float32; outputs narrower than the widest are padded with zeros."""
        segments, worker = self._context.row_map.segments, self._context.worker
        parts = torch.split(x.float(), [segment.num_rows for segment in segments])
        outputs = [
            self._output(self._state(segment, worker), part, args, kwargs)
            for segment, part in zip(segments, parts, strict=True)
        ]
        width = max(out.shape[-1] for out in outputs)
        return torch.cat([out if out.shape[-1] == width else pad(out, (0, width - out.shape[-1])) for out in outputs])

    def _output(self, state: HeadState, x: Tensor, args: tuple[Any, ...], kwargs: dict[str, Any]) -> Tensor:
        module, parameters = state.module, dict(state.parameters)
        out: Tensor
        if not parameters:
            out = module(x, *args, **kwargs)
            return out
        if type(module) is nn.Linear:  # `functional_call` costs more than such a head itself
            return _linear(module, parameters, x, state.per_row)
        with self._one_at_a_time:
            if state.per_row:
                each = torch.vmap(lambda own, row: functional_call(module, own, (row[None], *args), kwargs)[0])
                out = each(parameters, x)
            else:
                out = functional_call(module, parameters, (x, *args), kwargs)
        return out


def _linear(module: nn.Linear, parameters: dict[str, Tensor], x: Tensor, per_row: bool) -> Tensor:
    """Apply weight (out, in) and bias (out,), or (n, out, in) and (n, out) where each row has its own."""
    weight, bias = parameters.get("weight"), parameters.get("bias")
    if not per_row:
        return linear(x, module.weight if weight is None else weight, module.bias if bias is None else bias)
    z = x.flatten(1, -2) if x.ndim > 2 else x[:, None]  # (n, T, in)
    y = torch.matmul(z, module.weight.T if weight is None else weight.transpose(1, 2))  # (n, T, out)
    shift = module.bias if bias is None else bias[:, None]
    return (y if shift is None else y + shift).view(*x.shape[:-1], -1)
