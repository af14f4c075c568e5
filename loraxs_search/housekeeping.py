"""What lies in the state folder, whether anybody needs it, and removing what nobody does; removing studies.

Each kind of thing that the product writes there and may remove is a row of `KINDS`. What no kind names stays for good:
MLflow's store with its artifacts, the sequence numbers seen, and the spaces and rows of `init`. Unfinished studies,
sealed and pulled adapters and registered versions need things.
"""

from __future__ import annotations

import contextlib
import json
import re
import time
from collections.abc import Callable, Iterator
from contextlib import AbstractContextManager
from dataclasses import dataclass, field, replace
from pathlib import Path

from loraxs_search.base_model.files import weight_digest
from loraxs_search.errors import LoraxsError, StorageError, StudyError, TrackingError
from loraxs_search.home import REMOVED, file_lock, home, is_locked, paths_under, remove_whole, unused
from loraxs_search.log.study_log import DAMAGED_HINT
from loraxs_search.mlflow_uri import redact, resolve_uri, sqlite_path
from loraxs_search.records.adapter import Manifest
from loraxs_search.records.trial import TrialState
from loraxs_search.registry import manifest as manifests
from loraxs_search.registry.finalist import trial_of
from loraxs_search.registry.store import Registry
from loraxs_search.steering import describe, open_commands, steered
from loraxs_search.studies.folder import StudyFolder, broken_studies, list_studies, studies_root
from loraxs_search.studies.lease import idle_elsewhere
from loraxs_search.studies.lookup import store_of
from loraxs_search.tracking.store import has_waiting, remove_runs


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


def _gather_needs(home: Path, tracking_uri: str | None = None) -> Needs:
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
    # What was pulled, but for adapters whose versions were removed since; another store is not known.
    for digest, name, store in _pulled(home / "adapters"):
        if digest in digests.get(store, {digest}):
            needs.adapters.setdefault(digest, f"`pull {name}`")
            try:
                _add_folder(needs, home / "adapters" / digest, f"`pull {name}`")
            except LoraxsError as error:
                needs.unknown = f"what {name}, which was pulled, needs is not known: {error.message}"
    for name, manifest in registered:
        needs.add(manifest, name)
    return needs


def _add_study(needs: Needs, folder: StudyFolder) -> None:
    """Note what a study needs; of a finished one also the trials that may become candidates.

    Those trained all their steps, would continue, or are of candidates.

    Raises:
        StudyError: the journal, which says so, is damaged or gone.
    """
    who, candidates = f"study {folder.name}", folder.candidates()
    if (identity := folder.identity()) is not None:
        needs.bases.setdefault(identity.base_digest, who)
    for adapter in sorted((folder.path / "adapters").glob("[!.]*")):
        _add_folder(needs, adapter, who)
    if candidates is None or folder.is_running():
        needs.unfinished.append(folder.name)
        return
    if not folder.journal_path.is_file():
        raise StudyError(f"A study must have a journal, but {folder.journal_path} is missing.", hint=DAMAGED_HINT)
    records = folder.journal().records
    complete = {name for name, record in records.items() if record.state is TrialState.COMPLETE or record.is_cut}
    needs.complete[folder.name] = frozenset(complete | {trial_of(candidate.trial_id) for candidate in candidates})


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


@dataclass(frozen=True)
class Kind:
    """A kind of thing in the state folder. Looking writes nothing, and may be repeated.

    Whoever removes an item asks for it anew inside `guarded`, and leaves it where it is needed by then.

    Args:
        name: As people read it.
        loss: What it takes to have an item back.
        folders: The folders of the home that hold items of this kind, for `*` see `Path.glob`.
        items: What is there, needed or not, of a home.
        used_by_searches: Whether searches of this machine read items that nothing on disk says they need.
        needs_registry: Whether what registered versions need decides.
        guarded: Keeps others from an item while it goes; raises LoraxsError on entering it, if it is in use.
    """

    name: str
    loss: str
    folders: tuple[str, ...]
    items: Callable[[Path, Needs], Iterator[StoredItem]]
    used_by_searches: bool = False
    needs_registry: bool = False
    guarded: Callable[[StoredItem], AbstractContextManager[object]] = lambda _: contextlib.nullcontext()


_GOING_ON_S = 24 * 3600.0
# The names that the product gives. What has another one is a user's own, and stays.
_BY_CONTENT = r"[0-9a-f]{64}(\.[0-9a-f]{16})?\.safetensors"
_SNAPSHOT = re.compile(r"[0-9.]+(step-\d+\.)?safetensors")
_ROWS = ("rows", "tokens", "reports", "folders")
_HALF_MADE = re.compile(
    r"\..+\.([0-9a-f]{32}|[a-z0-9_]{8}\.tmp)"  # a folder and a file on their way to a name
    r"|\.(pull-|replaced-)?[0-9a-f]{64}(\.[a-z0-9-]+)?"  # pulled and converted adapters
)


def _snapshots(home: Path, needs: Needs) -> Iterator[StoredItem]:
    """Yield states of trials that ended early, of finished studies: none of these continues.

    Complete ones keep theirs: when the study is extended, another of them may become a candidate.
    """
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
def _of_finished(item: StoredItem) -> Iterator[None]:
    study = StudyFolder.open(item.paths[0].relative_to(studies_root()).parts[0])
    with study.lock():
        if study.candidates() is None:
            raise StudyError(f"study {study.name} continues")
        yield


def _rows(home: Path, _: Needs) -> Iterator[StoredItem]:
    root = home / "datasets"
    of_hub = {info.parents[3] for info in root.glob("*/*/*/*/dataset_info.json")}  # NAME/CONFIG/VERSION/COMMIT
    for folder in sorted(of_hub | {root / name for name in _ROWS}):
        for path in sorted(folder.rglob("[!.]*")):
            if path.is_file():
                yield StoredItem.of(path)


def _leftovers(home: Path, _: Needs) -> Iterator[StoredItem]:
    """Yield what killed processes have left half made or half removed, anywhere in the folders of the other kinds.

    What is half removed goes at once, what is half made counts as in use for a day. An adapter that was put aside while
    it was replaced does not count: opening its study restores it.
    """
    for folder in dict.fromkeys(pattern.partition("/")[0] for kind in KINDS for pattern in kind.folders):
        for path in sorted(paths_under(home / folder)):
            is_inside = any(part.startswith(".") for part in path.relative_to(home).parts[:-1])
            if is_inside or not (path.name.startswith(REMOVED) or _HALF_MADE.fullmatch(path.name)):
                continue
            item = StoredItem.of(path)
            if path.name.startswith(REMOVED):
                yield replace(item, used_at=0.0)
            else:
                is_fresh = item.used_at > time.time() - _GOING_ON_S
                yield replace(item, needed_by="a process that may still be making it" if is_fresh else "")


def _named(
    folder: str, pattern: str, needed_by: Callable[[Path, Needs], str] = lambda _, __: "", glob: str = "*"
) -> Callable[[Path, Needs], Iterator[StoredItem]]:
    """Return what yields the items of one folder that have names as the product gives them."""

    def items(home: Path, needs: Needs) -> Iterator[StoredItem]:
        for path in sorted((home / folder).glob(glob)):
            if re.fullmatch(pattern, path.name):
                yield StoredItem.of(path, needed_by=needed_by(path, needs))

    return items


def _key(path: Path) -> str:
    return path.name.partition(".")[0]


KINDS: tuple[Kind, ...] = (
    Kind(
        "snapshots",
        "nothing that a finished study needs",
        ("studies/*/snapshots", "studies/*/tune"),
        _snapshots,
        guarded=_of_finished,
    ),
    Kind(  # SVD factors of bases' weights, this machine's own and others'
        "factors",
        "the next search or load of their base decomposes its weights again",
        ("factors",),
        _named(
            "factors", _BY_CONTENT, lambda path, needs: needs.factors.get(_key(path), "") or needs.by_unfinished, "**/*"
        ),
        used_by_searches=True,
        needs_registry=True,
    ),
    Kind(
        "base models",
        "unpacked or converted again from their package, if it is installed",
        ("base_models",),
        _named(
            "base_models",
            r"[0-9a-f]{16}(-bf16-\d+)?",
            lambda path, needs: needs.by_unfinished or needs.bases.get(weight_digest(path), ""),
            "*/",
        ),
        used_by_searches=True,
        needs_registry=True,
    ),
    Kind(
        "rows and tokens",
        "the next search of their task reads and tokenises its data again",
        ("datasets",),
        _rows,
        used_by_searches=True,
    ),
    Kind(  # and what they were converted to, by digest
        "pulled adapters",
        "pulled again by their version's number",
        ("adapters",),
        _named("adapters", r"[0-9a-f]{64}(\..*)?", lambda path, needs: needs.adapters.get(_key(path), "")),
    ),
    Kind(  # of trials, which stayed on their node
        "large states",
        "a trial that continues from one trains from the start again",
        ("states",),
        _named("states", r"[0-9a-f]{16}\.\d+\.[0-9a-f]{32}\.safetensors", lambda _, needs: needs.by_unfinished),
        used_by_searches=True,
    ),
    Kind(  # what the trials of studies start from; each study keeps its own
        "copies of assets",
        "the next trial of their study brings them again",
        ("assets",),
        _named("assets", _BY_CONTENT, glob="**/*"),
        used_by_searches=True,
    ),
    Kind("leftovers", "nothing", (), _leftovers, used_by_searches=True),
)


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
        needs = _gather_needs(root, tracking_uri)
        judged = list[tuple[Kind, StoredItem, str]]()
        for kind in KINDS:
            for item in kind.items(root, needs):
                kept = "" if item.used_at <= now - older_than_s else "used not long ago"
                if any(not it.parent.resolve().is_relative_to(root.resolve()) or it.is_symlink() for it in item.paths):
                    kept = "a link leads out of the state folder"
                elif item.needed_by:
                    kept = f"needed by {item.needed_by}"
                elif kind.used_by_searches and not idle:
                    kept = "may be needed by a search that is at work on this machine"
                elif kind.needs_registry and needs.unknown:
                    kept = needs.unknown
                judged.append((kind, item, kept))
        for kind, item, kept in judged:
            planned = _Collected(kind.name, item.paths[0], item.num_bytes, item.used_at, kept)
            if not (dry_run or kept):
                try:
                    with kind.guarded(item):
                        # Since it was looked at; 0 goes at once.
                        if 0.0 < item.used_at < StoredItem.of(*item.paths).used_at:
                            planned = replace(planned, kept="used just now")
                        else:
                            for path in item.paths:
                                remove_whole(path)
                except LoraxsError as error:
                    planned = replace(planned, kept=error.message)
            done.append(planned)
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
        removed = _RemovedStudy(name, path, StoredItem.of(path).num_bytes, unread=error.message)
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
    info, item, unasked = folder.info, StoredItem.of(folder.path), ""
    with folder.lock(), contextlib.ExitStack() as held:
        try:  # keep drivers on other machines from it
            held.enter_context(idle_elsewhere(info.storage, name))
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
        if not force and (waiting := open_commands(steered(folder, folder.journal()))):
            raise StudyError(
                f"A study's commands must be answered before it goes, but `{describe(waiting[0])}` waits in {name!r}.",
                hint=f"carry it out with `loraxs-search resume {name}`, or lose it with --force",
            )
        removed = _RemovedStudy(name, folder.path, item.num_bytes, storage=info.storage, unasked=unasked)
        if runs:
            count, kept = remove_runs(store_of(folder), folder.path, info.task.registered_name, dry_run=dry_run)
            removed = replace(removed, num_runs=count, kept_runs=kept)
        if not dry_run:
            remove_whole(folder.path)
    return removed
