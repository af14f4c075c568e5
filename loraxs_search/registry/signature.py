"""Signatures, where a team wants them: whoever has its key vouches for what a name of its registry means.

HMAC-SHA256 over task, alias, version, sequence number and folder digest, which stands for every file's content. The key
is any file of 16 bytes or more, named in `LORAXS_SIGNING_KEY_FILE`: where it is set, promotion and rollback sign, and
pulling refuses what is not signed under the name that was asked for.
"""

from __future__ import annotations

import hashlib
import hmac
import json
import os
from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path

from loraxs_search.errors import IntegrityError, RegistryError
from loraxs_search.registry.names import AdapterName

ENV_KEY = "LORAXS_SIGNING_KEY_FILE"
_MIN_BYTES, _MAX_BYTES = 16, 64 * 1024


@dataclass(frozen=True)
class Statement:
    """What a signature vouches for: the alias of the task means this version, with this content.

    Args:
        sequence: Rises with each change of what the task's aliases mean.
    """

    task: str
    alias: str
    version: int
    sequence: int
    digest: str


def has_key() -> bool:
    """Whether the team signs: a key is named here."""
    return bool(os.environ.get(ENV_KEY))


def sign(statement: Statement) -> str:
    """Return the sequence number and the signature of a statement, as one word each.

    Raises:
        RegistryError: the key file cannot be read, or is too short to be one.
    """
    content = [statement.task, statement.alias, statement.version, statement.sequence, statement.digest]
    return f"{statement.sequence} {_hmac(json.dumps(content))}"


def signed_sequence(task: str, alias: str, version: int, digest: str, signature: str) -> int | None:
    """Return the sequence number of a signature; None where the team's key has not made it for just this."""
    number = signature.partition(" ")[0]
    if not number.isdecimal() or len(number) > 18:
        return None
    statement = Statement(task, alias, version, int(number), digest)
    is_same = hmac.compare_digest(sign(statement).encode(), signature.encode(errors="replace"))
    return statement.sequence if is_same else None


def is_vouched_for(task: str, version: int, digest: str, signatures: Mapping[str, str]) -> bool:
    """Whether the team has ever signed this version of the task with this content, whatever it was called then."""
    return any(
        signed_sequence(task, alias, version, digest, signature) is not None for alias, signature in signatures.items()
    )


def check_signature(asked: AdapterName, version: int, digest: str, signatures: Mapping[str, str]) -> int | None:
    """Refuse an adapter that the team has not signed as what was asked for; without a key everything passes.

    Args:
        asked: What the puller wants; what the registry calls its answer is not looked at.
        signatures: Alias to signature, as they stand beside the version.
    Returns:
        The sequence number of the alias; None for a version that was asked for by its number, or without a key.
    Raises:
        IntegrityError: there is no signature, or it is of another key, task, alias, version or content.
    """
    if not has_key():
        return None
    if asked.alias is None:
        if version == asked.version and is_vouched_for(asked.task, version, digest, signatures):
            return None
    else:
        signature = signatures.get(asked.alias, "")
        sequence = signed_sequence(asked.task, asked.alias, version, digest, signature)
        if sequence is not None:
            return sequence
    raise IntegrityError(
        f"`signature` of {asked} (version {version}, {digest[:16]}...) must be made with the key in {ENV_KEY}, "
        f"but {_fault(asked, signatures)}.",
        hint=f"run `loraxs-search promote STUDY` on the study it comes from, where {ENV_KEY} is set, or do not use it",
    )


def _fault(asked: AdapterName, signatures: Mapping[str, str]) -> str:
    if not signatures:
        return "it has none"
    if asked.alias is not None and asked.alias not in signatures:
        return f"it has none under this name, only as {', '.join(sorted(signatures))}"
    return "it is of another key, task, alias, version or content"


def _hmac(text: str) -> str:
    return hmac.new(_key(), text.encode(), hashlib.sha256).hexdigest()


def _key() -> bytes:
    name = os.environ.get(ENV_KEY, "")
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
