"""The kinds of things in the state folder that may be removed, and who needs them.

`Kind` is the contract; another kind is a class here, listed in `KINDS`, and nothing else. Unfinished studies, sealed
and pulled adapters and registered versions need things.
"""

from __future__ import annotations

import contextlib
import json
import re
import time
from abc import ABC, abstractmethod
from collections.abc import Iterator, Mapping, Sequence, Set
from contextlib import AbstractContextManager
from dataclasses import dataclass, field, replace
from pathlib import Path
from typing import ClassVar

from loraxs_search.base_model.files import weight_digest
from loraxs_search.errors import LoraxsError, StudyError, TrackingError
from loraxs_search.home import REMOVED, paths_under
from loraxs_search.log.study_log import DAMAGED_HINT
from loraxs_search.mlflow_uri import redact, resolve_uri, sqlite_path
from loraxs_search.records.adapter import Manifest
from loraxs_search.records.promotion import Candidate
from loraxs_search.records.trial import TrialState
from loraxs_search.registry import manifest as manifests
from loraxs_search.registry.finalist import trial_of
from loraxs_search.registry.store import Registry
from loraxs_search.studies.folder import StudyFolder, list_studies, studies_root
from loraxs_search.studies.lookup import store_of


@dataclass
class Needs:
    """What is needed, and by whom, in words that follow "needed by".

    Args:
        factors: By the key of a factor file.
        bases: By the digest of a base's weights.
        adapters: By the digest of an adapter folder.
        unfinished: Studies whose search has not ended, those that cannot be read included.
        complete: By finished study, its trials that may become candidates when it is extended.
        unknown: Why what registered versions need is not known; empty where it is.
    """

    factors: dict[str, str] = field(default_factory=dict)
    bases: dict[str, str] = field(default_factory=dict)
    adapters: dict[str, str] = field(default_factory=dict)
    unfinished: list[str] = field(default_factory=list)
    complete: dict[str, frozenset[str]] = field(default_factory=dict)
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
            uris.append(store_of(folder))
        except TrackingError as error:
            needs.unknown = f"what is registered where study {name} records is not known: {error.message}"
        except LoraxsError:  # damaged: whatever it needs stays
            needs.unfinished.append(name)
    digests = dict[str, set[str]]()  # of registered versions, by the store that said so
    registered = list[tuple[str, Manifest]]()
    for uri in map(resolve_uri, dict.fromkeys(uris)):
        try:
            found = list(Registry(uri).manifests())
        except LoraxsError as error:
            needs.unknown = f"what is registered at {redact(uri)} is not known: {error.message}"
            continue
        registered += [(name, manifest) for name, _, manifest in found]
        if (path := sqlite_path(uri)) is None or path.exists():
            digests[redact(uri)] = {digest for _, digest, _ in found}
    _add_pulled(needs, home / "adapters", digests)
    for name, manifest in registered:
        needs.add(manifest, name)
    return needs


def _add_pulled(needs: Needs, cache: Path, digests: Mapping[str, Set[str]]) -> None:
    """Note what was pulled, but for adapters whose versions were removed since.

    Args:
        digests: Of registered versions, by store; another store is not known.
    """
    for digest, name, store in _pulled(cache):
        if digest not in digests.get(store, {digest}):
            continue
        needs.adapters.setdefault(digest, f"`pull {name}`")
        try:
            _add_folder(needs, cache / digest, f"`pull {name}`")
        except LoraxsError as error:
            needs.unknown = f"what {name}, which was pulled, needs is not known: {error.message}"


def _add_study(needs: Needs, folder: StudyFolder) -> None:
    who, candidates = f"study {folder.name}", folder.candidates()
    if (identity := folder.identity()) is not None:
        needs.bases.setdefault(identity.base_digest, who)
    for adapter in sorted((folder.path / "adapters").glob("[!.]*")):
        _add_folder(needs, adapter, who)
    if candidates is None or folder.is_running():
        needs.unfinished.append(folder.name)
    else:
        needs.complete[folder.name] = _complete(folder, candidates)


def _complete(folder: StudyFolder, candidates: Sequence[Candidate]) -> frozenset[str]:
    """Return the trials that trained all their steps or would continue, with those that candidates are of.

    Raises:
        StudyError: the journal, which says so, is damaged or gone.
    """
    if not folder.journal_path.is_file():
        raise StudyError(f"A study must have a journal, but {folder.journal_path} is missing.", hint=DAMAGED_HINT)
    records = folder.journal().records
    complete = {name for name, record in records.items() if record.state is TrialState.COMPLETE or record.is_cut}
    return frozenset(complete | {trial_of(candidate.trial_id) for candidate in candidates})


def _add_folder(needs: Needs, folder: Path, who: str) -> None:
    if not folder.is_dir():
        return
    try:
        needs.add(manifests.read(folder), who)
    except LoraxsError as error:
        raise StudyError(f"{folder} has no manifest: {error.message}") from error


def _pulled(cache: Path) -> Iterator[tuple[str, str, str]]:
    """Yield the digests that names last meant on this machine, with a name and its store."""
    try:
        names = json.loads((cache / "names.json").read_text())
    except (FileNotFoundError, ValueError):
        return
    for name, entry in names.items() if isinstance(names, dict) else ():
        if isinstance(entry, dict) and isinstance(entry.get("digest"), str):
            store, _, known = name.rpartition(" ")
            yield entry["digest"], known, store


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
            for file in (path, *(() if path.is_symlink() else paths_under(path))):
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
            LoraxsError: on entering it, if it is in use.
        """
        return contextlib.nullcontext()


_GOING_ON_S = 24 * 3600.0
# The names that the product gives. What has another one is a user's own, and stays.
_BY_CONTENT = re.compile(r"[0-9a-f]{64}(\.[0-9a-f]{16})?\.safetensors")
_SNAPSHOT = re.compile(r"[0-9.]+(step-\d+\.)?safetensors")
_ROWS = ("rows", "tokens", "reports", "folders")
_HALF_MADE = re.compile(
    r"\..+\.([0-9a-f]{32}|[a-z0-9_]{8}\.tmp)"  # a folder and a file on their way to a name
    r"|\.(pull-|replaced-)?[0-9a-f]{64}(\.[a-z0-9-]+)?"  # pulled and converted adapters
)


class _Snapshots(Kind):
    """States of trials that ended early, of finished studies: none of these continues.

    Complete ones keep theirs: when the study is extended, another of them may become a candidate.
    """

    name = "snapshots"
    loss = "nothing that a finished study needs"
    folders = ("studies/*/snapshots", "studies/*/tune")

    def items(self, home: Path, needs: Needs) -> Iterator[StoredItem]:
        for study in (home / "studies" / name for name in sorted(list_studies())):
            unfinished = f"study {study.name}, which is not finished" if study.name not in needs.complete else ""
            kept = needs.complete.get(study.name, frozenset())
            for path in filter(lambda path: _SNAPSHOT.fullmatch(path.name), sorted((study / "snapshots").glob("*"))):
                may_be_chosen = path.name.partition(".")[0] in kept
                candidate = f"study {study.name}, which may be extended" if may_be_chosen else ""
                yield StoredItem.of(path, needed_by=unfinished or candidate)
            if (study / "tune").is_dir():
                yield StoredItem.of(study / "tune", needed_by=unfinished)

    @contextlib.contextmanager
    def guarded(self, item: StoredItem) -> Iterator[None]:
        study = StudyFolder.open(item.paths[0].relative_to(studies_root()).parts[0])
        with study.lock():
            if study.candidates() is None:
                raise StudyError(f"study {study.name} continues")
            yield


class _Named(Kind):
    """Items of one folder that are known by the names that the product gives them.

    Attributes:
        pattern: Of these names; `glob` says where in the folder they are.
    """

    pattern: ClassVar[re.Pattern[str]]
    glob: ClassVar[str] = "*"

    def items(self, home: Path, needs: Needs) -> Iterator[StoredItem]:
        for path in sorted((home / self.folders[0]).glob(self.glob)):
            if self.pattern.fullmatch(path.name):
                yield StoredItem.of(path, needed_by=self.needed_by(path, needs))

    def needed_by(self, path: Path, needs: Needs) -> str:
        """Return who needs an item; by default nobody."""
        return ""


class _FactorFiles(_Named):
    """SVD factors of bases' weights, this machine's own and others'."""

    name = "factors"
    loss = "the next search or load of their base decomposes its weights again"
    folders = ("factors",)
    used_by_searches = needs_registry = True
    pattern, glob = _BY_CONTENT, "**/*"

    def needed_by(self, path: Path, needs: Needs) -> str:
        return needs.factors.get(path.name.partition(".")[0], "") or needs.by_unfinished


class _BaseModels(_Named):
    """Base models that were unpacked or converted from an installed package."""

    name = "base models"
    loss = "unpacked or converted again from their package, if it is installed"
    folders = ("base_models",)
    used_by_searches = needs_registry = True
    pattern, glob = re.compile(r"[0-9a-f]{16}(-bf16-\d+)?"), "*/"

    def needed_by(self, path: Path, needs: Needs) -> str:
        return needs.by_unfinished or needs.bases.get(weight_digest(path), "")


class _DataSets(Kind):
    """Checked rows and tokens of data files, and what is known of them."""

    name = "rows and tokens"
    loss = "the next search of their task reads and tokenises its data again"
    folders = ("datasets",)
    used_by_searches = True

    def items(self, home: Path, needs: Needs) -> Iterator[StoredItem]:
        root = home / "datasets"
        of_hub = {info.parents[3] for info in root.glob("*/*/*/*/dataset_info.json")}  # NAME/CONFIG/VERSION/COMMIT
        for folder in sorted(of_hub | {root / name for name in _ROWS}):
            for path in sorted(folder.rglob("[!.]*")):
                if path.is_file():
                    yield StoredItem.of(path)


class _PulledAdapters(_Named):
    """Adapters that were pulled, and what they were converted to, by digest."""

    name = "pulled adapters"
    loss = "pulled again by their version's number"
    folders = ("adapters",)
    pattern = re.compile(r"[0-9a-f]{64}(\..*)?")

    def needed_by(self, path: Path, needs: Needs) -> str:
        return needs.adapters.get(path.name.partition(".")[0], "")


class _States(_Named):
    """Large states of trials, which stayed on their node."""

    name = "large states"
    loss = "a trial that continues from one trains from the start again"
    folders = ("states",)
    used_by_searches = True
    pattern = re.compile(r"[0-9a-f]{16}\.\d+\.[0-9a-f]{32}\.safetensors")

    def needed_by(self, path: Path, needs: Needs) -> str:
        return needs.by_unfinished


class _Assets(_Named):
    """Copies of what the trials of studies start from; each study keeps its own."""

    name = "copies of assets"
    loss = "the next trial of their study brings them again"
    folders = ("assets",)
    used_by_searches = True
    pattern, glob = _BY_CONTENT, "**/*"


class _Leftovers(Kind):
    """What killed processes have left half made or half removed, anywhere in the folders of the other kinds.

    An adapter that was put aside while it was replaced does not count: opening its study restores it.
    """

    name = "leftovers"
    loss = "nothing"
    folders = ()
    used_by_searches = True

    def items(self, home: Path, needs: Needs) -> Iterator[StoredItem]:
        for folder in dict.fromkeys(pattern.partition("/")[0] for kind in KINDS for pattern in kind.folders):
            for path in sorted(paths_under(home / folder)):
                is_inside = any(part.startswith(".") for part in path.relative_to(home).parts[:-1])
                if not is_inside and (path.name.startswith(REMOVED) or _HALF_MADE.fullmatch(path.name)):
                    yield self._item(path)

    def _item(self, path: Path) -> StoredItem:
        """Return what is half removed as long unused, and what is half made as in use for a day."""
        item = StoredItem.of(path)
        if path.name.startswith(REMOVED):
            return replace(item, used_at=0.0)
        is_fresh = item.used_at > time.time() - _GOING_ON_S
        return replace(item, needed_by="a process that may still be making it" if is_fresh else "")


KINDS: tuple[Kind, ...] = (
    _Snapshots(),
    _FactorFiles(),
    _BaseModels(),
    _DataSets(),
    _PulledAdapters(),
    _States(),
    _Assets(),
    _Leftovers(),
)
