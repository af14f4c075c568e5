"""A file of lines that one process appends to and any may read: whole after a kill, and after a full disk."""

from __future__ import annotations

import os
from collections.abc import Iterator
from pathlib import Path

from loraxs_search.home import disk_faults


class AppendLog:
    """Lines appended by one writer. A line counts once it ends with a newline.

    What a killed writer or a full disk left at the end without one is passed over by readers and cut off by the next
    write.

    Args:
        path: The file; it is created by the first write.
    """

    def __init__(self, path: Path) -> None:
        self.path = path
        self.end = 0  # offset behind what was read or written

    def new_lines(self) -> Iterator[bytes]:
        """Yield the lines that follow `end`, which moves behind a line once the next one is asked for."""
        for line, end in lines_from(self.path, self.end):
            yield line
            self.end = end

    def skip(self) -> None:
        """Go behind the last line without a look at what it says."""
        for _ in self.new_lines():
            pass

    def append(self, lines: bytes, *, flush_to_device: bool = False) -> None:
        """Write lines, newlines included, behind the last one; the kernel has them when this returns.

        Raises:
            HomeError: no space left, or no right to write; the lines before are as they were.
        """
        with disk_faults(self.path), open(self.path, "wb", buffering=0, opener=_not_emptied) as file:
            file.truncate(self.end)
            file.seek(self.end)
            left = memoryview(lines)
            while left:  # a disk that fills up takes a part
                left = left[file.write(left) :]
            if flush_to_device:
                os.fsync(file.fileno())
        self.end += len(lines)


def lines_from(path: Path, start: int) -> Iterator[tuple[bytes, int]]:
    """Yield the lines behind an offset, each with the offset behind it; none where there is no file."""
    if not path.exists():
        return
    end = start
    with path.open("rb") as file:
        file.seek(start)
        for line in file:
            if not line.endswith(b"\n"):
                return
            end += len(line)
            yield line, end


def _not_emptied(path: str, _: int) -> int:
    return os.open(path, os.O_WRONLY | os.O_CREAT, 0o666)
