"""Signing what aliases mean, where the team has a key. Called by the holder of the promotion lock."""

from __future__ import annotations

from collections.abc import Iterable, Mapping
from pathlib import Path
from typing import TYPE_CHECKING

from loraxs_search.errors import IntegrityError
from loraxs_search.registry import _versions
from loraxs_search.registry._sequences import SeenSequences
from loraxs_search.registry.adapters import SIGNATURE, RegisteredAdapter
from loraxs_search.registry.manifest import folder_digest, verify
from loraxs_search.registry.signature import ENV_KEY, Statement, has_key, is_vouched_for, sign, signed_sequence

if TYPE_CHECKING:
    from mlflow import MlflowClient

_MAX_DIGITS = 15  # of a count that is taken from the registry; a longer one is no count
SEQUENCE = "loraxs.sequence"  # a tag of the registered model: the last number that was signed


def sign_aliases(client: MlflowClient, uri: str, task: str, aliases: Iterable[str], version: int, digest: str) -> int:
    """Sign that these aliases mean this version from now on, with a number above all before; without a key do nothing.

    The number is returned, 0 without a key: once the aliases are moved, `accept` refuses older ones here.

    The registry's own count and what was seen here are both outbidden: a registry that was set back stays usable for
    who knew it before.
    """
    if not has_key():
        return 0
    seen, wanted = SeenSequences(uri), tuple(aliases)
    number = 1 + max(_last_sequence(client, task), *(seen.highest(task, alias) for alias in wanted))
    client.set_registered_model_tag(task, SEQUENCE, str(number))
    for alias in wanted:
        signature = sign(Statement(task, alias, version, number, digest))
        client.set_model_version_tag(task, str(version), f"{SIGNATURE}{alias}", signature)
    return number


def accept(uri: str, task: str, aliases: Iterable[str], number: int) -> None:
    """Remember the number that aliases were signed with; 0 is none."""
    for alias in aliases if number else ():
        SeenSequences(uri).accept(task, alias, number)


def _last_sequence(client: MlflowClient, task: str) -> int:
    model = _versions.registered_model(client, task)
    last = str(model.tags.get(SEQUENCE, "")) if model else ""
    return int(last) if last.isdecimal() and len(last) <= _MAX_DIGITS else 0


def is_signed(adapter: RegisteredAdapter, alias: str) -> bool:
    """Whether the team has signed that the alias means this adapter; without a key there is nothing to sign."""
    signature = adapter.signatures.get(alias, "")
    return not has_key() or signed_sequence(adapter.task, alias, adapter.version, adapter.digest, signature) is not None


def check_vouched_for(adapter: RegisteredAdapter) -> None:
    """Refuse to sign for what only the registry says: the team must have signed this version before.

    Raises:
        IntegrityError: it has not.
    """
    if has_key() and not is_vouched_for(adapter.task, adapter.version, adapter.digest, adapter.signatures):
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
