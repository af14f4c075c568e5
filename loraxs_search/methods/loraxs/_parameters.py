"""Where R is kept."""

from __future__ import annotations

from collections.abc import Callable

from torch import Tensor, nn


class Float32Parameters(nn.ParameterDict):
    """Follows its model to another device but never to another dtype: R stays float32."""

    def _apply(self, fn: Callable[[Tensor], Tensor], recurse: bool = True) -> Float32Parameters:
        def keep_dtype(tensor: Tensor) -> Tensor:
            moved = fn(tensor)
            return moved if moved.dtype == tensor.dtype else tensor.to(moved.device)

        super()._apply(keep_dtype, recurse)  # type: ignore[no-untyped-call]
        return self
