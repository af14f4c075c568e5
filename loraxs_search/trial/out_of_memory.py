"""How devices say that memory ran out, and what a user can do about it."""

from __future__ import annotations

import torch

from loraxs_search.errors import LoraxsError, UsageError

# What to catch; the CPU's allocator raises a bare RuntimeError.
MEMORY_ERRORS = (torch.OutOfMemoryError, MemoryError, RuntimeError)


def is_out_of_memory(error: BaseException) -> bool:
    """Whether one of `MEMORY_ERRORS` means that memory ran out."""
    return isinstance(error, (torch.OutOfMemoryError, MemoryError)) or "can't allocate memory" in str(error)


def row_too_long(longest: int) -> LoraxsError:
    """Return the error of a row that memory does not hold, of so many tokens."""
    return UsageError(
        f"Memory must hold a pass of one row, but it ran out with a row of {longest} tokens.",
        hint=f"lower the task's `max_length` below {longest}, set `search.precision` to bfloat16, or use a device with"
        " more memory",
    )
