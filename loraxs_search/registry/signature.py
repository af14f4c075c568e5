"""Signatures, where a team wants them: whoever has its key vouches that an adapter was promoted by one of them.

HMAC-SHA256 over task and folder digest, which stands for every file's content. The key is any file of 16 bytes or more,
named in `LORAXS_SIGNING_KEY_FILE`: where it is set, promotion signs and pulling refuses what is not signed.
"""

from __future__ import annotations

import hashlib
import hmac
import os
from pathlib import Path

from loraxs_search.errors import IntegrityError, RegistryError

ENV_KEY = "LORAXS_SIGNING_KEY_FILE"
_MIN_BYTES, _MAX_BYTES = 16, 64 * 1024


def sign(task: str, digest: str) -> str | None:
    """Return the signature of a task's adapter; None when the team has no key.

    Raises:
        RegistryError: the key file cannot be read, or is too short to be one.
    """
    key = _key()
    return None if key is None else hmac.new(key, f"{task}\n{digest}".encode(), hashlib.sha256).hexdigest()


def check_signature(task: str, digest: str, signature: str | None) -> None:
    """Refuse an adapter that the team's key has not signed; without a key everything passes.

    Raises:
        IntegrityError: there is no signature, or it is of another key, task or content.
    """
    expected = sign(task, digest)
    if expected is None or (signature is not None and hmac.compare_digest(expected, signature)):
        return
    found = "it has none" if signature is None else "it is of another key, task or content"
    raise IntegrityError(
        f"`signature` of {task} ({digest[:16]}...) must be made with the key in {ENV_KEY}, but {found}.",
        hint=f"promote it again where {ENV_KEY} is set, or do not use it",
    )


def _key() -> bytes | None:
    name = os.environ.get(ENV_KEY)
    if not name:
        return None
    try:
        with Path(name).expanduser().open("rb") as file:
            key = file.read(_MAX_BYTES)
    except OSError as error:
        raise RegistryError(
            f"The signing key must be readable, but {name}: {error.strerror}.", hint=f"set or unset {ENV_KEY}"
        ) from error
    if len(key.strip()) < _MIN_BYTES:
        raise RegistryError(f"A signing key must have at least {_MIN_BYTES} bytes, but {name} has {len(key.strip())}.")
    return key.strip()
