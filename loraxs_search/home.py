"""The state folder, the only way it is written (whole or not at all), and its locks; paths that users write.

The spaces and well-known tasks that come with the package, too.
"""

from __future__ import annotations

import contextlib
import errno
import fcntl
import hashlib
import os
import re
import shutil
import tempfile
import uuid
from collections.abc import Iterator
from pathlib import Path
from typing import TYPE_CHECKING

from loraxs_search.errors import HomeError, UsageError, did_you_mean, unknown_name

if TYPE_CHECKING:
    from filelock import BaseFileLock


ENV_HOME = "LORAXS_HOME"
REMOVED = ".removed-"  # how what is being removed is called, beside its place
_IN_USE = ".in-use"
_NO_HARD_LINKS = (errno.EPERM, errno.EACCES, errno.ENOTSUP, errno.EOPNOTSUPP, errno.ENOSYS, errno.EMLINK)
_NO_ACCESS = (errno.EACCES, errno.EPERM, errno.EROFS)
_NOT_WRITABLE = (*_NO_ACCESS, errno.ENOTDIR, errno.EISDIR, errno.EEXIST, errno.ENAMETOOLONG, errno.ELOOP)


def home() -> Path:
    """Return the state folder: `LORAXS_HOME`, or `~/.loraxs-search`. It may not exist yet."""
    value = os.environ.get(ENV_HOME)
    return Path(value).expanduser().resolve() if value else Path.home() / ".loraxs-search"


def factor_path(key: str, root: Path | None = None, checksum: str = "", *, is_checked: bool = True) -> Path:
    """Return where the factor file of a content key lies; other machines' factors of the same weight lie beside it.

    Args:
        checksum: Of factors that have the same key as this machine's and other numbers.
        is_checked: False for those that came from a registry, until they are checked against the weight itself.
    """
    root = root if root is not None else home() / "factors"
    folder = (root if is_checked else root / "unchecked") / key[:2]
    return folder / (f"{key}.{checksum[:16]}.safetensors" if checksum else f"{key}.safetensors")


def ensure_dir(path: Path) -> Path:
    """Create `path` and its parents, and return it.

    Raises:
        HomeError: the folder cannot be created.
    """
    with disk_faults(path):
        path.mkdir(parents=True, exist_ok=True)
    return path


def write_atomic(path: Path, content: bytes | str, *, parents: bool = True) -> None:
    """Write `content` so that readers see the old file or the new one, never a part.

    The bytes go to a temporary file in the same folder, are flushed to the device, and are renamed over `path`. The
    rename itself is flushed too, so that a file seen once is still there after a power cut.

    Args:
        parents: Make the folder that it lies in, where that is missing.
    Raises:
        HomeError: no space left, no right to write, or a read-only file system; `path` is as it was.
    """
    with _written_beside(path, content, parents=parents) as temporary, disk_faults(path):
        os.replace(temporary, path)
        sync_folder(path.parent)


def create_atomic(path: Path, content: bytes | str) -> os.stat_result | None:
    """Write `content` to a file that is not there yet: of many at once one succeeds, and no reader sees a part of it.

    A file system without hard links lets its readers see the file empty for a moment.

    Returns:
        The file's status; None if there is a file already.

    Raises:
        HomeError: no space left, no right to write, or a read-only file system.
    """
    with _written_beside(path, content) as temporary, disk_faults(path):
        try:
            os.link(temporary, path)  # `os.replace` would take the place of another one's file
        except FileExistsError:
            return None
        except OSError as error:
            if error.errno not in _NO_HARD_LINKS:
                raise
            with contextlib.suppress(FileExistsError), path.open("xb") as file:
                file.write(temporary.read_bytes())
                file.flush()
                os.fsync(file.fileno())
                return os.fstat(file.fileno())
            return None
        sync_folder(path.parent)
        return temporary.stat()


@contextlib.contextmanager
def _written_beside(path: Path, content: bytes | str, *, parents: bool = True) -> Iterator[Path]:
    """Yield a temporary file in the folder of `path` with `content`, flushed to the device; it is removed at the end.

    Raises:
        HomeError: no space left, no right to write, or a read-only file system.
    """
    data = content.encode() if isinstance(content, str) else content
    with disk_faults(path):
        try:
            if parents:
                path.parent.mkdir(parents=True, exist_ok=True)
            fd, name = tempfile.mkstemp(dir=path.parent, prefix=f".{path.name}.", suffix=".tmp")
        except FileNotFoundError as error:  # in a folder that is removed, or where the system lets nobody make one
            raise OSError(errno.ENOTDIR, error.strerror) from error
    temporary = Path(name)
    try:
        with disk_faults(path):
            os.fchmod(fd, 0o666 & ~_umask())  # mkstemp's 0600 would shut out the people a home is shared with
            with os.fdopen(fd, "wb") as file:
                file.write(data)
                file.flush()
                os.fsync(file.fileno())
        yield temporary
    finally:
        temporary.unlink(missing_ok=True)


@contextlib.contextmanager
def disk_faults(path: Path, setting: str | None = None) -> Iterator[None]:
    """Turn the operating system's disk errors into `HomeError` with a remedy.

    Args:
        setting: What the user has chosen the place with; None means `LORAXS_HOME` for the state folder, elsewhere the
            path itself.
    """
    try:
        yield
    except OSError as error:
        setting = setting or (ENV_HOME if path.absolute().is_relative_to(home().absolute()) else None)
        if error.errno in (errno.ENOSPC, errno.EDQUOT):
            larger = f"point {setting} at a larger disk" if setting else "choose a place on a larger disk"
            if setting == ENV_HOME:  # studies name the database in it by its path
                larger = f"move {home()} to a larger disk and leave a link to it: `ln -s NEW {home()}`"
            raise HomeError(f"No space left to write {path}.", hint=f"free some space, or {larger}") from error
        if error.errno in _NOT_WRITABLE:
            raise HomeError(
                f"{path} must be writable, but the system says: {error.strerror}.",
                hint=f"set {setting} to a folder you can write to" if setting else "choose a place you can write to",
            ) from error
        raise


def file_lock(path: Path) -> BaseFileLock:
    """Return the lock of a file: one holder among all processes and threads of the machines that see it.

    Use it as a context manager to wait for it, or `acquire(blocking=False)`, which raises `filelock.Timeout` where
    another one holds it. The system frees it when its process dies. The file itself stays.
    """
    from filelock import FileLock  # late: it costs as much as the rest of this module

    mode = 0o666 & ~_umask()  # its own 0600 would shut out the people a home is shared with
    # No marker file where the file system has no locks: one that a killed process leaves would keep everybody out.
    return FileLock(path, mode=mode, thread_local=False, fallback_to_soft=False)


def is_locked(path: Path) -> bool:
    """Return whether another process holds the lock of a file. Writes nothing, and keeps no other out.

    filelock can only ask by taking the lock, which needs the right to write and would refuse two who ask at once.
    """
    try:
        with path.open("rb") as file:
            fcntl.flock(file, fcntl.LOCK_SH | fcntl.LOCK_NB)
    except FileNotFoundError:  # nobody has ever held it
        return False
    except BlockingIOError:
        return True
    return False


@contextlib.contextmanager
def exclusive(partial: Path) -> Iterator[None]:
    """Let one process and thread make a folder at a time; the lock beside it is taken away with the work."""
    path = lock_beside(partial)
    with file_lock(path):
        try:
            yield
        finally:
            path.unlink(missing_ok=True)  # while it is held: who waits for it notices, and makes another


def lock_beside(path: Path) -> Path:
    """Return the file to lock for a file or folder that cannot be locked itself; `exclusive` does."""
    return path.with_name(f"{path.name}.lock")


# ---- what is in use, and what goes ----------------------------------------------------------------------------------
def mark_used(path: Path) -> None:
    """Note that a file or folder was used now, by which `gc` knows it from what nobody uses any more."""
    with contextlib.suppress(OSError):  # a home that cannot be written keeps what it has
        os.utime(path)


@contextlib.contextmanager
def in_use() -> Iterator[None]:
    """Keep `gc` from what searches use, for as long as this lasts or the process lives.

    Any number of processes may hold it. One that comes while `gc` looks waits for a moment.
    """
    with _held(fcntl.LOCK_SH):
        yield


@contextlib.contextmanager
def unused() -> Iterator[bool]:
    """Yield whether no search is at work on this machine; if so, none begins until this ends."""
    try:
        with _held(fcntl.LOCK_EX | fcntl.LOCK_NB):
            yield True
    except BlockingIOError:
        yield False


@contextlib.contextmanager
def _held(how: int) -> Iterator[None]:
    path = home() / _IN_USE
    with disk_faults(path):
        path.parent.mkdir(parents=True, exist_ok=True)
        descriptor = os.open(path, os.O_RDWR | os.O_CREAT, 0o666)
    try:
        fcntl.flock(descriptor, how)
        yield
    finally:
        os.close(descriptor)


def file_sha256(path: Path) -> str:
    """Return the sha256 of a file's content, in hex, without holding the file in memory."""
    with path.open("rb") as file:
        return hashlib.file_digest(file, "sha256").hexdigest()


def paths_under(folder: Path) -> Iterator[Path]:
    """Yield all that is under a folder, but what is removed meanwhile: `Path.rglob` of Python 3.11 fails on that."""
    for found, folders, files in os.walk(folder):
        yield from (Path(found, name) for name in (*folders, *files))


def remove_whole(path: Path) -> None:
    """Remove a file or a folder of the home: renamed first, so that no reader sees a part of it.

    What a killed process has renamed and not removed is left beside, under a name that begins with `REMOVED`. Of two at
    once one removes it. A link is removed, never what it leads to.

    Raises:
        HomeError: the folder that holds it cannot be written.
    """
    going = path.with_name(f"{REMOVED}{uuid.uuid4().hex}")
    with disk_faults(path):
        try:
            path.rename(going)
        except FileNotFoundError:
            return
        if going.is_symlink() or not going.is_dir():
            going.unlink(missing_ok=True)
            return
        while going.exists():
            with contextlib.suppress(FileNotFoundError):  # another one removes the same leftover
                shutil.rmtree(going)


def _umask() -> int:
    status = Path("/proc/self/status")  # os.umask can only be read by setting it, a race between threads
    found = re.search(r"^Umask:\s*(\d+)", status.read_text(), re.MULTILINE) if status.exists() else None
    return int(found[1], 8) if found else 0o077


def sync_folder(path: Path) -> None:
    """Flush the names in a folder to the device: a rename stays after a power cut."""
    fd = os.open(path, os.O_RDONLY)
    try:
        os.fsync(fd)
    finally:
        os.close(fd)


# ---- paths as people write them ----
def user_path(text: str, folder: Path | None = None) -> Path:
    """Return the absolute path that `text` means; it need not exist.

    `~` is a home folder; a relative path starts at `folder`, by default the working directory.

    Raises:
        ValueError: no file can have that name; the message says why.
    """
    try:
        path = ((folder or Path()) / Path(text).expanduser()).resolve()
        os.lstat(path)
    except OSError as error:
        if error.errno in (errno.ENAMETOOLONG, errno.ELOOP):
            raise ValueError(f"the system says: {error.strerror}") from None
    except UnicodeEncodeError:
        raise ValueError("it holds half of a character") from None
    except ValueError:
        raise ValueError("it holds a NUL byte") from None
    except RuntimeError as error:  # of a user that does not exist, or links that go in a circle
        raise ValueError(f"the system says: {str(error).rstrip('.')}") from None
    return path


def meant_file(path: Path) -> str:
    """Return the question whether a file beside a missing one is meant; empty where none has nearly its name."""
    try:
        beside = [str(path.parent / each.name) for each in path.parent.iterdir()]
    except OSError:
        return ""
    return did_you_mean(path, beside)


# ---- what comes with the package, in a wheel inside it, in a checkout beside it ------------------------------------
_PACKAGE = Path(__file__).resolve().parent
SHIPPED = _PACKAGE / "_spaces" if (_PACKAGE / "_spaces").is_dir() else _PACKAGE.parent / "search_spaces"


def spaces() -> dict[str, str]:
    """Return what each space that comes with the package is, in a line, by its name."""
    texts = {name: (SHIPPED / f"{name}.yaml").read_text(encoding="utf-8") for name in shipped_spaces()}
    return {name: text.partition("\n")[0].lstrip("# ").strip() for name, text in texts.items()}


def shipped_spaces() -> list[str]:
    """Return the names of the shipped spaces, sorted."""
    return sorted(path.stem for path in SHIPPED.glob("*.yaml"))


def shipped_space_path(name: str) -> Path:
    """Return the file of a shipped space; `movie-reviews` and `movie_reviews.yaml` both mean `movie_reviews`.

    Raises:
        UsageError: there is no such space; the message lists those there are.
    """
    plain = name.removesuffix(".yaml").replace("-", "_").lower()
    for known in shipped_spaces():
        if known.replace("-", "_").lower() == plain:
            return SHIPPED / f"{known}.yaml"
    raise UsageError(unknown_name("space", name, shipped_spaces()), hint="`loraxs-search spaces ls` lists them")


def shipped_tasks() -> list[str]:
    """Return the names of the well-known tasks, sorted."""
    return sorted(path.stem for path in (SHIPPED / "tasks").glob("*.yaml"))
