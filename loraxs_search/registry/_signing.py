"""Signatures, where a team wants them: whoever has its key vouches for what a name of its registry means.

HMAC-SHA256 over task, alias, version, sequence number and folder digest, which stands for every file's content. The key
is any file of 16 bytes or more, named in `LORAXS_SIGNING_KEY_FILE`: where it is set, promotion and rollback sign, and
pulling refuses what is not signed under the name that was asked for, or has a lower number than was seen here before.
"""

from __future__ import annotations

import hashlib
import hmac
import json
import os
from collections.abc import Iterable, Mapping
from pathlib import Path
from typing import TYPE_CHECKING

from loraxs_search.errors import IntegrityError, RegistryError
from loraxs_search.home import alone, disk_faults, ensure_dir, home, write_atomic
from loraxs_search.mlflow_uri import redact
from loraxs_search.registry import _versions
from loraxs_search.registry._versions import SIGNATURE, RegisteredAdapter
from loraxs_search.registry.manifest import folder_digest, verify
from loraxs_search.registry.names import AdapterName, Resolved

if TYPE_CHECKING:
    from mlflow import MlflowClient


FILE = "sequences.json"


class SeenSequences:
    """Numbers by registry, task and alias, in a file of the state folder that every process shares."""

    def __init__(self, uri: str) -> None:
        self._uri = redact(uri)

    def highest(self, task: str, alias: str) -> int:
        """Return the highest number seen; 0 where none was.

        Raises:
            IntegrityError: the file is damaged.
        """
        return self._read().get(self._name(task, alias), 0)

    def accept(self, task: str, alias: str, sequence: int, least: int) -> None:
        """Remember a number that was seen signed.

        Args:
            least: The highest one before the registry was asked. Since then, others may have seen a higher one.

        Raises:
            IntegrityError: it is lower than that, or the file is damaged.
            HomeError: the file cannot be written.
        """
        if sequence < least:
            raise IntegrityError(
                f"`sequence number` of {task}@{alias} in {self._uri} must be at least {least}, which was seen here, "
                f"but got {sequence}: an older adapter was put in the place of a newer one, and not by `rollback`.",
                hint="tell whoever keeps the registry; if it was set up anew or restored from a backup, remove "
                f"{self._name(task, alias)!r} from {_path()}",
            )
        if sequence > self.highest(task, alias):
            ensure_dir(_path().parent)
            with disk_faults(_path()), alone(_path()):
                seen = self._read()
                name = self._name(task, alias)
                seen[name] = max(sequence, seen.get(name, 0))
                write_atomic(_path(), json.dumps(seen, indent=1, sort_keys=True))

    def _name(self, task: str, alias: str) -> str:
        return f"{self._uri} {task}@{alias}"

    def _read(self) -> dict[str, int]:
        try:
            read = json.loads(_path().read_text())
        except FileNotFoundError:
            return {}
        except ValueError:
            read = None
        if not isinstance(read, dict) or not all(isinstance(number, int) for number in read.values()):
            raise IntegrityError(
                f"{_path()} must hold the sequence numbers seen here, but it is damaged.",
                hint="restore it, or remove it: what was put back since can then not be noticed any more",
            )
        return read


def least_sequence(asked: AdapterName, uri: str) -> int:
    """Return the number that what is asked for must have at least; 0 for a version or without a key.

    Raises:
        IntegrityError: the file of numbers is damaged.
    """
    return SeenSequences(uri).highest(asked.task, asked.alias) if asked.alias is not None and _has_key() else 0


def _path() -> Path:
    return home() / FILE


ENV_KEY = "LORAXS_SIGNING_KEY_FILE"
_MIN_BYTES, _MAX_BYTES = 16, 64 * 1024


def _has_key() -> bool:
    """Whether the team signs: a key is named here."""
    return bool(os.environ.get(ENV_KEY))


def sign(task: str, alias: str, version: int, sequence: int, digest: str) -> str:
    """Return the sequence number and the signature of a statement, as one word each.

    The statement: the alias of the task means this version, with this content.

    Args:
        sequence: Rises with each change of what the task's aliases mean.
    Raises:
        RegistryError: the key file cannot be read, or is too short to be one.
    """
    content = json.dumps([task, alias, version, sequence, digest])
    return f"{sequence} {hmac.new(_key(), content.encode(), hashlib.sha256).hexdigest()}"


def _signed_sequence(task: str, alias: str, version: int, digest: str, signature: str) -> int | None:
    """Return the sequence number of a signature; None if the team's key has not made it for just this."""
    number = signature.partition(" ")[0]
    if not number.isdecimal() or len(number) > 18:
        return None
    own = sign(task, alias, version, int(number), digest)
    return int(number) if hmac.compare_digest(own.encode(), signature.encode(errors="replace")) else None


def _is_vouched_for(task: str, version: int, digest: str, signatures: Mapping[str, str]) -> bool:
    """Whether the team has ever signed this version of the task with this content, whatever it was called then."""
    return any(
        _signed_sequence(task, alias, version, digest, signature) is not None for alias, signature in signatures.items()
    )


def check_signature(asked: AdapterName, meaning: Resolved) -> int:
    """Refuse an adapter that the team has not signed as what was asked for; without a key everything passes.

    Args:
        asked: What the puller wants; what the registry calls its answer is not looked at.
        meaning: The version that it means.
    Returns:
        The sequence number of the alias; 0 for a version that was asked for by its number, or without a key.
    Raises:
        IntegrityError: there is no signature, or it is of another key, task, alias, version or content.
    """
    if not _has_key():
        return 0
    version, digest, signatures = meaning.version, meaning.digest, meaning.signatures
    if asked.alias is None:
        if version == asked.version and _is_vouched_for(asked.task, version, digest, signatures):
            return 0
    else:
        signature = signatures.get(asked.alias, "")
        sequence = _signed_sequence(asked.task, asked.alias, version, digest, signature)
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


_MAX_DIGITS = 15  # of a count that is taken from the registry; a longer one is no count
SEQUENCE = "loraxs.sequence"  # a tag of the registered model: the last number that was signed


def sign_aliases(client: MlflowClient, uri: str, task: str, aliases: Iterable[str], version: int, digest: str) -> int:
    """Sign that these aliases mean this version from now on, with a number above all before; without a key do nothing.

    The number is returned, 0 without a key: once the aliases are moved, `accept` refuses older ones here.

    The registry's own count and what was seen here are both outbidden: a registry that was set back stays usable for
    who knew it before.
    """
    if not _has_key():
        return 0
    seen, wanted = SeenSequences(uri), tuple(aliases)
    number = 1 + max(_last_sequence(client, task), *(seen.highest(task, alias) for alias in wanted))
    client.set_registered_model_tag(task, SEQUENCE, str(number))
    for alias in wanted:
        client.set_model_version_tag(
            task, str(version), f"{SIGNATURE}{alias}", sign(task, alias, version, number, digest)
        )
    return number


def accept(uri: str, task: str, aliases: Iterable[str], number: int) -> None:
    """Remember the number that aliases were signed with; 0 is none."""
    for alias in aliases if number else ():
        SeenSequences(uri).accept(task, alias, number, least=number)


def _last_sequence(client: MlflowClient, task: str) -> int:
    model = _versions.registered_model(client, task)
    last = str(model.tags.get(SEQUENCE, "")) if model else ""
    return int(last) if last.isdecimal() and len(last) <= _MAX_DIGITS else 0


def is_signed(adapter: RegisteredAdapter, alias: str) -> bool:
    """Whether the team has signed that the alias means this adapter; without a key there is nothing to sign."""
    signature = adapter.signatures.get(alias, "")
    number = _signed_sequence(adapter.task, alias, adapter.version, adapter.digest, signature)
    return not _has_key() or number is not None


def check_vouched_for(adapter: RegisteredAdapter) -> None:
    """Refuse to sign for what only the registry says: the team must have signed this version before.

    Raises:
        IntegrityError: it has not.
    """
    if _has_key() and not _is_vouched_for(adapter.task, adapter.version, adapter.digest, adapter.signatures):
        raise IntegrityError(
            f"{adapter.task}:{adapter.version} must be signed with the key in {ENV_KEY} to be signed anew, but is not.",
            hint="run `loraxs-search promote STUDY` on the study it comes from: its own files are what is signed then",
        )


def sign_present(
    client: MlflowClient, uri: str, holders: Mapping[str, RegisteredAdapter], folders: Mapping[str, Path]
) -> None:
    """Sign for adapters that hold an alias unsigned, where the study's own folder has the very same content.

    Args:
        holders: Alias to the adapter that it means.
        folders: Trial id to adapter folder, of the study that these adapters come from.
    """
    for alias, adapter in holders.items():
        folder = folders.get(adapter.candidate.trial_id)
        if is_signed(adapter, alias) or folder is None or not folder.is_dir():
            continue
        verify(folder)
        if folder_digest(folder) == adapter.digest:
            number = sign_aliases(client, uri, adapter.task, (alias,), adapter.version, adapter.digest)
            accept(uri, adapter.task, (alias,), number)
