"""Tables in the cache: each a file that is whole or not there."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import numpy as np
import numpy.typing as npt
import pyarrow as pa

from loraxs_search.home import mark_used, write_atomic


def load_table(path: Path) -> pa.Table | None:
    """Map a table into memory; None when there is none, or it is damaged."""
    try:
        table = pa.ipc.open_file(pa.memory_map(str(path))).read_all()
    except (FileNotFoundError, pa.ArrowInvalid, OSError):  # Arrow says either of a file that is cut short
        return None
    mark_used(path)
    return table


def numbers_of(column: pa.Array) -> npt.NDArray[Any]:
    """Return a column of numbers without a copy, read-only; Arrow's own `to_numpy` imports pandas: half a second."""
    return np.from_dlpack(column)


def store_table(path: Path, table: pa.Table) -> None:
    """Write a table.

    Raises:
        HomeError: the file cannot be written.
    """
    sink = pa.BufferOutputStream()
    with pa.ipc.new_file(sink, table.schema) as writer:
        writer.write_table(table)
    write_atomic(path, sink.getvalue().to_pybytes())
