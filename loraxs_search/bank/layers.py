"""Layers that give each row of a batch the adapter it names: y = W x + B C_k A x for a row of adapter k.

Shapes: x (n, ..., in) with rows first, A (r, in), B (out, r), C (n, r, r): R with its scale and singular values folded
in. A and B are orthonormal prefixes of what the module's adapters share.
"""

from __future__ import annotations

import threading
from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor, nn
from torch.func import functional_call
from torch.nn.functional import linear, pad

from loraxs_search.bank.layout import Layout
from loraxs_search.methods.loraxs import FactorKey


@dataclass(frozen=True)
class Pair:
    """Factors of one module at one rank, orthonormal, contiguous, in the dtype of the base weight.

    Args:
        a: (r, in); a product with A transposed in memory took twice as long on a CPU.
        b_t: B transposed, (r, out).
    """

    a: Tensor
    b_t: Tensor


@dataclass(frozen=True)
class Segment:
    """Neighbouring rows whose adapters share a layout.

    Args:
        layout: None where rows name no adapter.
        vectors: Shape (stop - start, width), or (1, width) where all rows name the same adapter.
        heads: Modules by name that a layer of the head takes its shape and what is not stored from.
    """

    start: int
    stop: int
    layout: Layout | None
    vectors: Tensor
    heads: Mapping[str, nn.Module]

    @property
    def num_rows(self) -> int:
        return self.stop - self.start


class Board(threading.local):
    """The segments of the pass at hand, in order and without gaps; each thread has its own."""

    segments: tuple[Segment, ...] = ()

    @property
    def num_rows(self) -> int:
        return self.segments[-1].stop


class BankLinear(nn.Module):
    """Stands in for an `nn.Linear` or `Conv1D`; the layer inside is not touched.

    Args:
        pairs: Factors by family and rank; filled by the owner before an adapter needs them.
    """

    def __init__(
        self, name: str, base_layer: nn.Module, board: Board, pairs: Mapping[tuple[FactorKey, int], Pair]
    ) -> None:
        super().__init__()
        self.base_layer = base_layer
        self._name, self._board, self._pairs = name, board, pairs

    @property
    def weight(self) -> Tensor:
        """The base's own weight, for models that ask a layer for it."""
        return self.base_layer.get_parameter("weight")

    def forward(self, x: Tensor) -> Tensor:
        y: Tensor = self.base_layer(x)  # (n, ..., out)
        x_2d, y_2d = x.reshape(-1, x.shape[-1]), y.view(-1, y.shape[-1])  # (n T, in), (n T, out)
        assert x_2d.shape[0] % self._board.num_rows == 0  # a probe saw that each row has as many positions
        per_row = x_2d.shape[0] // self._board.num_rows  # T
        for segment in self._board.segments:
            if segment.layout is None or self._name not in segment.layout.cores:
                continue
            at = segment.layout.cores[self._name]
            pair = self._pairs[at.family, at.rank]
            start, stop = segment.start * per_row, segment.stop * per_row
            c = segment.layout.core(segment.vectors, self._name).to(x.dtype)  # (m or 1, r, r)
            z = linear(x_2d[start:stop], pair.a)  # (m T, r)
            if len(c) == 1:
                u = torch.mm(z, c[0].T)
            else:
                u = torch.bmm(z.view(segment.num_rows, per_row, -1), c.transpose(1, 2)).view(stop - start, -1)
            y_2d[start:stop].addmm_(u, pair.b_t)
        return y


class BankHead(nn.Module):
    """Stands in for a head module: each row goes through its adapter's own weights, label counts may differ."""

    def __init__(self, name: str, base_layer: nn.Module, board: Board) -> None:
        super().__init__()
        self.base_layer = base_layer
        self._name, self._board = name, board
        self._one_at_a_time = threading.Lock()  # `functional_call` changes a module for as long as it runs

    def forward(self, x: Tensor, *args: Any, **kwargs: Any) -> Tensor:
        """Return each row's output, float32; outputs narrower than the widest are padded with zeros."""
        outputs = [
            self._output(segment, x[segment.start : segment.stop].float(), args, kwargs)
            for segment in self._board.segments
        ]
        width = max(out.shape[-1] for out in outputs)
        return torch.cat([out if out.shape[-1] == width else pad(out, (0, width - out.shape[-1])) for out in outputs])

    def _output(self, segment: Segment, x: Tensor, args: tuple[Any, ...], kwargs: dict[str, Any]) -> Tensor:
        template = segment.heads[self._name]
        stored = {} if segment.layout is None else segment.layout.head_parameters(segment.vectors, self._name)
        out: Tensor
        if not stored:
            out = template(x, *args, **kwargs)
            return out
        if type(template) is nn.Linear:
            return _batched_linear(x, stored.get("weight", template.weight[None]), stored.get("bias", template.bias))
        with self._one_at_a_time:
            if len(segment.vectors) == 1:
                own = {name: value[0] for name, value in stored.items()}
                out = functional_call(template, own, (x, *args), kwargs)
            else:
                out = torch.vmap(lambda own, row: functional_call(template, own, (row[None], *args), kwargs)[0])(
                    stored, x
                )
        return out


def _batched_linear(x: Tensor, weight: Tensor, bias: Tensor | None) -> Tensor:
    """Apply weight (n or 1, out, in) and bias (n or 1, out) to x (n, ..., in), row by row."""
    z = x.flatten(1, -2) if x.ndim > 2 else x[:, None]  # (n, T, in)
    y = torch.matmul(z, weight.transpose(1, 2))  # (n, T, out)
    if bias is not None:
        y = y + (bias[:, None] if bias.ndim == 2 else bias)
    return y.view(*x.shape[:-1], -1)
