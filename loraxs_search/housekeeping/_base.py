"""The contract of a kind of thing in the state folder, and what they share."""

from __future__ import annotations

import contextlib
from abc import ABC, abstractmethod
from collections.abc import Iterator
from contextlib import AbstractContextManager
from dataclasses import dataclass
from pathlib import Path
from typing import ClassVar

from loraxs_search.housekeeping.needs import Needs


@dataclass(frozen=True)
class StoredItem:
    """Something that is there or not: removed whole, or kept whole.

    Args:
        paths: Its files and folders, which go together, in this order.
        num_bytes: What removing them frees.
        used_at: When it was last used, as far as that shows; seconds since 1970, and 0 of what goes at once.
        needed_by: Who needs it, as the end of "needed by"; empty where nobody is known to.
    """

    paths: tuple[Path, ...]
    num_bytes: int
    used_at: float
    needed_by: str = ""

    @classmethod
    def of(cls, *paths: Path, needed_by: str = "") -> StoredItem:
        """Return the item that these paths are."""
        sizes, times = [0], [0.0]
        for path in paths:
            for file in (path, *path.rglob("*")) if path.is_dir() and not path.is_symlink() else (path,):
                with contextlib.suppress(FileNotFoundError):  # replaced, or removed, at this moment
                    status = file.lstat()
                    times.append(status.st_mtime)
                    sizes.append(status.st_blocks * 512 if file.is_file() else 0)
        return cls(paths, sum(sizes), max(times), needed_by)


class Kind(ABC):
    """A kind of thing in the state folder. Looking writes nothing, and may be repeated.

    Whoever removes an item asks for it anew inside `guarded`, and leaves it where it is needed by then.

    Attributes:
        name: As people read it.
        loss: What it takes to have an item back.
        folders: The folders of the home that hold items of this kind, for `*` see `Path.glob`.
        used_by_searches: Whether searches of this machine read items that nothing on disk says they need.
        needs_registry: Whether what registered versions need decides.
    """

    name: ClassVar[str]
    loss: ClassVar[str]
    folders: ClassVar[tuple[str, ...]]
    used_by_searches: ClassVar[bool] = False
    needs_registry: ClassVar[bool] = False

    @abstractmethod
    def items(self, home: Path, needs: Needs) -> Iterator[StoredItem]:
        """Yield what is there, needed or not."""

    def guarded(self, item: StoredItem) -> AbstractContextManager[object]:
        """Return what keeps others from an item while it goes.

        Raises:
            LoraxsError: on entering it, where somebody is at work on it.
        """
        return contextlib.nullcontext()
