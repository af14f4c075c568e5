"""Where R is kept, and A and B where they are the adapter's own."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

from peft.tuners._buffer_dict import BufferDict
from torch import Tensor, nn

_Apply = Callable[[Tensor], Tensor]


class Float32Parameters(nn.ParameterDict):
    """Follows its model to another device but never to another dtype: R stays float32."""

    def _apply(self, fn: _Apply, recurse: bool = True) -> Float32Parameters:
        super()._apply(_keeping_dtype(fn), recurse)  # type: ignore[no-untyped-call]
        return self


class Float32Buffers(BufferDict):
    """Stored with the adapter, and like `Float32Parameters`: what is saved is what was trained in."""

    def __init__(self) -> None:
        super().__init__({}, persistent=True)

    def _apply(self, fn: _Apply, recurse: bool = True) -> Any:
        super()._apply(_keeping_dtype(fn), recurse)  # type: ignore[no-untyped-call]
        return self


def _keeping_dtype(fn: _Apply) -> _Apply:
    def keep_dtype(tensor: Tensor) -> Tensor:
        moved = fn(tensor)
        return moved if moved.dtype == tensor.dtype else tensor.to(moved.device)

    return keep_dtype
