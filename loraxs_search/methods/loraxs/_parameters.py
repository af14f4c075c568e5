"""Where R is kept."""

from __future__ import annotations

from collections.abc import Callable

from torch import Tensor, nn

_Apply = Callable[[Tensor], Tensor]


class Float32Parameters(nn.ParameterDict):
    """Follows its model to another device but never to another dtype: R stays float32."""

    def _apply(self, fn: _Apply, recurse: bool = True) -> Float32Parameters:
        super()._apply(_keeping_dtype(fn), recurse)  # type: ignore[no-untyped-call]
        return self


def _keeping_dtype(fn: _Apply) -> _Apply:
    def keep_dtype(tensor: Tensor) -> Tensor:
        moved = fn(tensor)
        return moved if moved.dtype == tensor.dtype else tensor.to(moved.device)

    return keep_dtype
