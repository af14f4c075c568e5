"""File systems that are small or full; the right to mount is needed, as root has it."""

from __future__ import annotations

import contextlib
import subprocess
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path


@dataclass(frozen=True)
class Disk:
    """A mounted file system of a fixed size."""

    path: Path

    def fill(self) -> None:
        """Write until nothing more fits."""
        with (self.path / "ballast").open("ab", buffering=0) as file:
            for size in (2**20, 2**12, 1):
                with contextlib.suppress(OSError):
                    while file.write(bytes(size)) == size:
                        pass

    def free(self) -> None:
        """Make room again."""
        (self.path / "ballast").unlink()


def no_mounts(folder: Path) -> str | None:
    """Say why nothing can be mounted here; None when it can."""
    try:
        with disk(folder / "probe", 1):
            return None
    except subprocess.CalledProcessError as error:
        return f"no right to mount: {error.stderr.decode().strip()}"


@contextlib.contextmanager
def disk(path: Path, megabytes: int) -> Iterator[Disk]:
    """Mount a file system in memory at `path`, and take it away."""
    path.mkdir(parents=True)
    _mount("-t", "tmpfs", "-o", f"size={megabytes}m", "loraxs-test", str(path))
    try:
        yield Disk(path)
    finally:
        subprocess.run(["umount", "--lazy", str(path)], check=True, capture_output=True)


def _mount(*arguments: str) -> None:
    subprocess.run(["mount", *arguments], check=True, capture_output=True)
