"""What lies in the state folder, whether anybody needs it, and removing what nobody does; removing studies.

`_look` yields each thing that the product writes there and may remove. What it does not name stays for good: MLflow's
store with its artifacts, the sequence numbers seen, and the spaces and rows of `init`. Unfinished studies,
sealed and pulled adapters and registered versions need things.
"""

from __future__ import annotations

import contextlib
import json
import re
import time
from collections.abc import Iterator, Mapping
from dataclasses import dataclass, field, replace
from pathlib import Path

from loraxs_search.base_model.locate import weight_digest
from loraxs_search.errors import LoraxsError, StorageError, StudyError, TrackingError
from loraxs_search.home import REMOVED, file_lock, home, is_locked, paths_under, remove_whole, unused
from loraxs_search.log.study_log import DAMAGED_HINT
from loraxs_search.manifest import Manifest, read_manifest
from loraxs_search.mlflow_uri import resolve_uri, sqlite_path
from loraxs_search.records.trial import TrialState
from loraxs_search.registry.finalist import trial_of
from loraxs_search.registry.store import Registry
from loraxs_search.steering import describe, open_commands, steered
from loraxs_search.studies.folder import StudyFolder, broken_studies, list_studies, studies_root
from loraxs_search.studies.lease import Lease
from loraxs_search.studies.storage import Storage
from loraxs_search.tracking.store import has_waiting, remove_runs


@dataclass
class _Needs:
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

    def add(self, adapter: Manifest, who: str) -> None:
        """Note the base and the factors that an adapter needs."""
        self.bases.setdefault(adapter.base_digest, who)
        for key in adapter.factors:
            self.factors.setdefault(key, who)

    def add_study(self, folder: StudyFolder) -> None:
        """Note what a study needs; of a finished one also the trials that may become candidates.

        Those trained all their steps, would continue, or are of candidates.

        Raises:
            LoraxsError: an adapter or the journal, which says so, is damaged or gone.
        """
        who, candidates, identity = f"study {folder.name}", folder.candidates(), folder.identity.read()
        if identity is not None:
            self.bases.setdefault(identity.base_digest, who)
        for adapter in sorted(path for path in folder.adapters_path.glob("[!.]*") if path.is_dir()):
            self.add(read_manifest(adapter), who)
        if candidates is None or folder.is_running():
            self.unfinished.append(folder.name)
            return
        if not folder.journal_path.is_file():
            raise StudyError(f"A study must have a journal, but {folder.journal_path} is missing.", hint=DAMAGED_HINT)
        records = folder.journal().records
        complete = {name for name, record in records.items() if record.state is TrialState.COMPLETE or record.is_cut}
        self.complete[folder.name] = frozenset(complete | {trial_of(candidate.trial_id) for candidate in candidates})


def _gather_needs(home: Path, tracking_uri: str | None = None) -> _Needs:
    """Return what is needed of this machine's state folder.

    Every store of MLflow is asked that a study names, and the one in use. Where one does not answer, that is noted.
    """
    needs, uris = _Needs(), [resolve_uri(tracking_uri)]
    for name in list_studies():
        try:
            folder = StudyFolder.open(name)
            needs.add_study(folder)
            uris.append(folder.store_uri())
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
            needs.unknown = f"what is registered at {uri} is not known: {error.message}"
            continue
        registered += [(name, manifest) for name, _, manifest in found]
        if (path := sqlite_path(uri)) is None or path.exists():
            digests[uri] = {digest for _, digest, _ in found}
    # What names last meant on this machine, but for versions that were removed since; another store is not known.
    pulled = dict[str, object]()
    with contextlib.suppress(FileNotFoundError, ValueError, TypeError):  # one that is no object says nothing
        pulled |= json.loads((home / "adapters" / "names.json").read_text())
    for whole, entry in pulled.items():
        digest = entry.get("digest") if isinstance(entry, dict) else None
        store, _, name = whole.rpartition(" ")
        if isinstance(digest, str) and digest in digests.get(store, {digest}):
            needs.adapters.setdefault(digest, f"`pull {name}`")
            try:
                if (adapter := home / "adapters" / digest).is_dir():
                    needs.add(read_manifest(adapter), f"`pull {name}`")
            except LoraxsError as error:
                needs.unknown = f"what {name}, which was pulled, needs is not known: {error.message}"
    for name, manifest in registered:
        needs.add(manifest, name)
    return needs


# ---- what is there ---------------------------------------------------------------------------------------------------
LOSSES = {  # kinds of things, and what it takes to have one back
    "snapshots": "nothing that a finished study needs",
    "factors": "the next search or load of their base decomposes its weights again",
    "base models": "unpacked or converted again from their package, if it is installed",
    "rows and tokens": "the next search of their task reads and tokenises its data again",
    "pulled adapters": "pulled again by their version's number",
    "copies of assets": "the next trial of their study brings them again",
    "leftovers": "nothing",
}
# The folders of the home in which these things lie.
FOLDERS = ("studies", "factors", "base_models", "datasets", "adapters", "assets")
_GOING_ON_S = 24 * 3600.0
# The names that the product gives. What has another one is a user's own, and stays.
_BY_CONTENT = r"[0-9a-f]{64}(\.[0-9a-f]{16})?\.safetensors"
_SNAPSHOT = re.compile(r"[0-9.]+(step-\d+\.)?safetensors")
_ROWS = ("tokens", "folders")
_HALF_MADE = re.compile(
    r"\..+\.([0-9a-f]{32}|[a-z0-9_]{8}\.tmp)"  # a folder and a file on their way to a name
    r"|\.(pull-|replaced-)?[0-9a-f]{64}(\.[a-z0-9-]+)?"  # pulled and converted adapters
    r"|\.[0-9a-f]{16}(-bf16-\d+)?"  # unpacked and converted base models
)


def _look(home: Path, needs: _Needs, idle: bool) -> Iterator[tuple[str, Path, str]]:
    """Yield the kind and the path of what is there, and why it stays, empty where nobody is known to need it.

    Each is removed whole, or kept whole; looking writes nothing.

    Args:
        idle: Whether no search is at work on this machine: searches read things that nothing on disk says they need.
    """
    searching = "" if idle else "may be needed by a search that is at work on this machine"
    unfinished = f"needed by study {needs.unfinished[0]}, which is not finished" if needs.unfinished else ""

    def named(folder: str, pattern: str, glob: str = "*") -> Iterator[Path]:
        return (path for path in sorted((home / folder).glob(glob)) if re.fullmatch(pattern, path.name))

    def needed(by: Mapping[str, str], key: str) -> str:
        return f"needed by {by[key]}" if key in by else ""

    # States of trials that ended early, of finished studies: none of these continues. Complete ones keep theirs: when
    # the study is extended, another of them may become a candidate.
    for name in sorted(list_studies()):
        study, complete = home / "studies" / name, needs.complete.get(name, frozenset())
        kept = "" if name in needs.complete else f"needed by study {name}, which is not finished"
        for path in sorted((study / "snapshots").glob("*")):
            if _SNAPSHOT.fullmatch(path.name):
                may_be_chosen = path.name.partition(".")[0] in complete
                candidate = f"needed by study {name}, which may be extended" if may_be_chosen else ""
                yield "snapshots", path, kept or candidate
        if (study / "tune").is_dir():
            yield "snapshots", study / "tune", kept
    for path in named("factors", _BY_CONTENT, "**/*"):  # this machine's own and others'
        by = needed(needs.factors, path.name.partition(".")[0])
        yield "factors", path, by or unfinished or searching or needs.unknown
    for path in named("base_models", r"[0-9a-f]{16}(-bf16-\d+)?", "*/"):
        by = unfinished or needed(needs.bases, weight_digest(path))
        yield "base models", path, by or searching or needs.unknown
    of_hub = {info.parents[3] for info in (home / "datasets").glob("*/*/*/*/dataset_info.json")}  # NAME/CONFIG/...
    for folder in sorted(of_hub | {home / "datasets" / name for name in _ROWS}):
        for path in (path for path in sorted(folder.rglob("[!.]*")) if path.is_file()):
            yield "rows and tokens", path, searching
    for path in named("adapters", r"[0-9a-f]{64}(\..*)?"):  # and what they were converted to
        yield "pulled adapters", path, needed(needs.adapters, path.name.partition(".")[0])
    for path in named("assets", _BY_CONTENT, "**/*"):  # what trials start from; each study keeps its own
        yield "copies of assets", path, searching
    # What killed processes have left half made or half removed. An adapter that was put aside while it was replaced
    # does not count: opening its study restores it.
    for path in (path for folder in FOLDERS for path in sorted(paths_under(home / folder))):
        is_inside = any(part.startswith(".") for part in path.relative_to(home).parts[:-1])
        if not is_inside and (path.name.startswith(REMOVED) or _HALF_MADE.fullmatch(path.name)):
            is_fresh = _size_and_use(path)[1] > time.time() - _GOING_ON_S
            kept = "needed by a process that may still be making it" if is_fresh else searching
            yield "leftovers", path, kept


def _size_and_use(path: Path) -> tuple[int, float]:
    """Return the bytes that removing something frees, and when it was last used, 0 if it is being removed already."""
    size, used_at = 0, 0.0
    for file in (path, *(() if path.is_symlink() else paths_under(path))):
        with contextlib.suppress(FileNotFoundError):  # replaced, or removed, at this moment
            status = file.lstat()
            size, used_at = size + status.st_blocks * 512 * file.is_file(), max(used_at, status.st_mtime)
    return size, 0.0 if path.name.startswith(REMOVED) else used_at


# ---- removing --------------------------------------------------------------------------------------------------------
@dataclass(frozen=True)
class _Collected:
    """What became of an item, or with a dry run what would become of it.

    Args:
        kept: Why it stays; empty where it goes.
    """

    kind: str
    path: Path
    num_bytes: int
    used_at: float
    kept: str = ""


def collect(older_than_s: float, *, dry_run: bool = False, tracking_uri: str | None = None) -> list[_Collected]:
    """Remove what nobody needs and nobody has used for so long, and return every item that was looked at.

    What registered versions, pulled names, studies and running searches need stays, and so does what leads out of the
    state folder. A process that is killed meanwhile leaves whole items, and what is half removed goes the next time. Of
    two at once each item goes once.

    Raises:
        HomeError: the state folder cannot be written.
        TrackingError: the address of MLflow is malformed.
    """
    root = home()
    if not root.is_dir():
        return []
    done, now = list[_Collected](), time.time()
    with file_lock(root / ".gc.lock"), unused() as idle:
        judged = list[_Collected]()
        for kind, path, needed in _look(root, _gather_needs(root, tracking_uri), idle):
            size, used_at = _size_and_use(path)
            kept = needed or ("" if used_at <= now - older_than_s else "used not long ago")
            if not path.parent.resolve().is_relative_to(root.resolve()) or path.is_symlink():
                kept = "a link leads out of the state folder"
            judged.append(_Collected(kind, path, size, used_at, kept))
        for item in judged:
            kept = item.kept
            if not (dry_run or kept):
                try:
                    with contextlib.ExitStack() as held:
                        if item.kind == "snapshots":  # nobody is to continue with the study meanwhile
                            study = StudyFolder.open(item.path.relative_to(root).parts[1])
                            held.enter_context(study.lock())
                            if study.candidates() is None:
                                raise StudyError(f"study {study.name} continues")
                        if item.used_at < _size_and_use(item.path)[1]:
                            kept = "used just now"
                        else:
                            remove_whole(item.path)
                except LoraxsError as error:
                    kept = error.message
            done.append(replace(item, kept=kept))
    return done


@dataclass(frozen=True)
class _RemovedStudy:
    """What went with a study, or with a dry run would go.

    Args:
        num_runs: Runs that were deleted in MLflow; None if they were not asked for, and stay.
        kept_runs: Registered versions whose runs stay.
        storage: Where a copy of the study stays; None if there is none.
        unasked: Why the storage could not say whether a driver elsewhere is at work; empty where it could.
        unread: Why the study could not be read: its runs and its storage are not known then; empty where it could.
    """

    study: str
    path: Path
    num_bytes: int
    num_runs: int | None = None
    kept_runs: tuple[str, ...] = ()
    storage: str | None = None
    unasked: str = ""
    unread: str = ""


def remove_study(name: str, *, runs: bool = False, force: bool = False, dry_run: bool = False) -> _RemovedStudy:
    """Remove a study's folder, and with `runs` its runs in MLflow first.

    Registered versions and pulled adapters stand on nothing in it. Nobody may be at work on it, here or, where it has a
    storage, elsewhere; its copy there stays. A process that is killed meanwhile leaves the study whole, or a folder
    that `gc` removes; repeat it to remove the runs that are left.

    Args:
        force: Even where records wait for MLflow, which are lost then, its storage does not answer, or the study cannot
            be read.
    Raises:
        StudyError: there is no such study, it is in use, it cannot be read, or its records have not
            reached MLflow.
        StorageError: its storage cannot say whether it is in use.
        TrackingError: MLflow does not answer or is gone, and its runs are to go.
    """
    if (path := studies_root() / name).is_symlink():
        raise StudyError(f"A study must lie in the state folder, but {path} is a link.", hint="remove it by hand")
    try:
        if name in broken_studies():  # never whole here, or removed while another command wrote into it
            raise StudyError(
                f"Study {name!r} must have a study.json, but {studies_root() / name} has none.",
                hint=f"look at what is in it, then remove it with `loraxs-search studies rm {name} --force`",
            )
        folder = StudyFolder.open(name)
    except StudyError as error:
        if not force or name not in (*list_studies(), *broken_studies()):
            raise
        removed = _RemovedStudy(name, path, _size_and_use(path)[0], unread=error.message)
        lock = path / "study.lock"
        if is_locked(lock):
            raise StudyError(
                f"Study {name!r} must have one driver at a time, but another process is at work on it.",
                hint="wait until it has ended",
            ) from None
        if not dry_run:
            with file_lock(lock):
                remove_whole(path)
        return removed
    info, (num_bytes, _), unasked = folder.info, _size_and_use(folder.path), ""
    with folder.lock(), contextlib.ExitStack() as held:
        try:  # keep drivers on other machines from it
            if info.storage is not None:
                held.enter_context(Lease(Storage(info.storage), name).held())
        except StorageError as error:
            if not force:
                hints = [error.hint, "if the storage is gone for good, add --force"]
                raise StorageError(error.message, hint="; ".join(hint for hint in hints if hint)) from error
            unasked = error.message
        if not force and has_waiting(folder.path):
            raise StudyError(
                f"A study's records must be in MLflow before it goes, but some of {name!r} still wait.",
                hint=f"bring them over with `loraxs-search sync {name}`, or lose them with --force",
            )
        if not force and (waiting := open_commands(steered(folder))):
            raise StudyError(
                f"A study's commands must be answered before it goes, but `{describe(waiting[0])}` waits in {name!r}.",
                hint=f"carry it out with `loraxs-search resume {name}`, or lose it with --force",
            )
        removed = _RemovedStudy(name, folder.path, num_bytes, storage=info.storage, unasked=unasked)
        if runs:
            count, kept = remove_runs(folder.store_uri(), info.study_id, info.task.registered_name, dry_run=dry_run)
            removed = replace(removed, num_runs=count, kept_runs=kept)
        if not dry_run:
            remove_whole(folder.path)
    return removed
