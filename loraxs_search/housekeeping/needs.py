"""Who needs what of the state folder: unfinished studies, sealed and pulled adapters, registered versions."""

from __future__ import annotations

import json
from collections.abc import Iterator
from dataclasses import dataclass, field
from pathlib import Path

from loraxs_search.errors import LoraxsError, StudyError
from loraxs_search.mlflow_uri import redact, resolve_uri, without_account
from loraxs_search.records import Manifest
from loraxs_search.registry import manifest as manifests
from loraxs_search.registry.reader import registered_manifests
from loraxs_search.studies import StudyFolder, list_studies


@dataclass
class Needs:
    """What is needed, and by whom, in words that follow "needed by".

    Args:
        factors: By the key of a factor file.
        bases: By the digest of a base's weights.
        adapters: By the digest of an adapter folder.
        unfinished: Studies whose search has not come to its end, those that cannot be read included.
        unknown: Why what registered versions need is not known; empty where it is.
    """

    factors: dict[str, str] = field(default_factory=dict)
    bases: dict[str, str] = field(default_factory=dict)
    adapters: dict[str, str] = field(default_factory=dict)
    unfinished: list[str] = field(default_factory=list)
    unknown: str = ""

    def add(self, manifest: Manifest, who: str) -> None:
        """Note what an adapter stands on."""
        self.bases.setdefault(manifest.base_digest, who)
        for key in manifest.factors:
            self.factors.setdefault(key, who)

    @property
    def by_unfinished(self) -> str:
        """Who may need anything that a search uses; empty where nobody does."""
        return f"study {self.unfinished[0]}, which is not finished" if self.unfinished else ""


def gather_needs(home: Path, tracking_uri: str | None = None) -> Needs:
    """Return what is needed of this machine's state folder.

    Every store of MLflow is asked that a study names, and the one in use, each with its own account. Where one does not
    answer, that is noted.
    """
    needs, uris = Needs(), [resolve_uri(tracking_uri)]
    for name in list_studies():
        try:
            folder = StudyFolder.open(name)
            _add_study(needs, folder)
            uris.append(without_account(folder.info.tracking_uri))
        except LoraxsError:  # damaged: whatever it needs stays
            needs.unfinished.append(name)
    for digest, name in _pulled(home / "adapters"):
        needs.adapters.setdefault(digest, f"`pull {name}`")
        try:
            _add_folder(needs, home / "adapters" / digest, f"`pull {name}`")
        except LoraxsError as error:
            needs.unknown = f"what {name}, which was pulled, needs is not known: {error.message}"
    for uri in dict.fromkeys(uris):
        try:
            for name, manifest in registered_manifests(resolve_uri(uri)):
                needs.add(manifest, name)
        except LoraxsError as error:
            needs.unknown = f"what is registered at {redact(uri)} is not known: {error.message}"
    return needs


def _add_study(needs: Needs, folder: StudyFolder) -> None:
    if folder.candidates() is None or folder.is_running():
        needs.unfinished.append(folder.name)
    who = f"study {folder.name}"
    if (identity := folder.identity()) is not None:
        needs.bases.setdefault(identity.base_digest, who)
    for adapter in sorted((folder.path / "adapters").glob("[!.]*")):
        _add_folder(needs, adapter, who)


def _add_folder(needs: Needs, folder: Path, who: str) -> None:
    if not folder.is_dir():
        return
    try:
        needs.add(manifests.read(folder), who)
    except LoraxsError as error:
        raise StudyError(f"{folder} has no manifest: {error.message}") from error


def _pulled(cache: Path) -> Iterator[tuple[str, str]]:
    """Yield the digests that names last meant on this machine, with a name."""
    try:
        names = json.loads((cache / "names.json").read_text())
    except (FileNotFoundError, ValueError):
        return
    for name, entry in names.items() if isinstance(names, dict) else ():
        if isinstance(entry, dict) and isinstance(entry.get("digest"), str):
            yield entry["digest"], name.rpartition(" ")[2]
