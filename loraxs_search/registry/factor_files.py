"""Factor files on this machine, as files: which are there, and putting one in its place. No torch here."""

from __future__ import annotations

import hashlib
from pathlib import Path

from loraxs_search.errors import IntegrityError
from loraxs_search.home import factor_path, factor_variant_path, unchecked_factor_path, write_atomic
from loraxs_search.registry.names import is_sha256
from loraxs_search.safetensors_header import entry_of

_NAMES = ("left", "singular_values", "right")


def lacks_factors(key: str, checksum: str) -> bool:
    """Whether this machine has no factors of that key with these numbers, checked or not."""
    if factors_at(key, checksum) is not None:
        return False
    return _recorded_checksum(unchecked_factor_path(key, checksum)) != checksum


def factors_at(key: str, checksum: str, root: Path | None = None) -> Path | None:
    """Return the file with these factors: this machine's own, or another machine's that were checked here."""
    _checked(checksum, "factor checksum")
    for path in (factor_path(_checked(key), root), factor_variant_path(key, checksum, root)):
        if _recorded_checksum(path) == checksum:
            return path
    return None


def install_factors(key: str, content: bytes, root: Path | None = None) -> Path:
    """Put factors that a host of this search has used where they are looked for, and return the file.

    They become this machine's own where it has none of that key; beside its own where it has. Either way what was
    trained here keeps its meaning.

    Raises:
        IntegrityError: the content is no factor file, or its checksum is not that of its numbers.
        HomeError: the folder cannot be written.
    """
    checksum = _true_checksum(content)
    own = factor_path(_checked(key), root)
    path = factor_variant_path(key, checksum, root) if own.exists() else own
    if _recorded_checksum(own) == checksum:
        return own
    write_atomic(path, content)
    return path


def keep_unchecked(key: str, content: bytes, root: Path | None = None) -> Path:
    """Put factors from a registry aside until somebody has the weight to check them against, and return the file.

    Raises:
        IntegrityError: the content is no factor file, or its checksum is not that of its numbers.
        HomeError: the folder cannot be written.
    """
    path = unchecked_factor_path(_checked(key), _true_checksum(content), root)
    write_atomic(path, content)
    return path


def _checked(digest: str, what: str = "factor key") -> str:
    if not is_sha256(digest):
        raise IntegrityError(f"`{what}` must be 64 hex digits, but got {digest!r}.", hint="pull the adapter again")
    return digest


def _recorded_checksum(path: Path) -> str | None:
    """Return the checksum in a factor file's header; None when there is no such file."""
    try:
        return str(entry_of(path, "factors")["checksum"])
    except (OSError, ValueError, KeyError, TypeError):
        return None  # a damaged file is made anew by whoever needs it


def _true_checksum(content: bytes) -> str:
    from safetensors import SafetensorError
    from safetensors.numpy import load

    try:
        recorded = entry_of(content, "factors")["checksum"]
        tensors = load(content)
        digest = hashlib.sha256()
        for name in _NAMES:
            digest.update(tensors[name].tobytes())
    except (SafetensorError, ValueError, KeyError, TypeError) as error:
        raise IntegrityError(f"A factor file must be safetensors with a checksum, but: {error}.") from error
    if digest.hexdigest() != recorded:
        raise IntegrityError(
            f"A factor file must have checksum {recorded[:16]}..., but got {digest.hexdigest()[:16]}..."
        )
    return str(recorded)
