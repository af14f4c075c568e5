"""The kinds of things in the state folder that may be removed. Another one is a class here, and nothing else."""

from __future__ import annotations

import contextlib
import re
import time
from collections.abc import Iterator
from dataclasses import replace
from pathlib import Path

from loraxs_search.base_model import weight_digest
from loraxs_search.errors import StudyError
from loraxs_search.home import REMOVED
from loraxs_search.housekeeping._base import Kind, StoredItem
from loraxs_search.housekeeping.needs import Needs
from loraxs_search.records import TrialState
from loraxs_search.registry import trial_of
from loraxs_search.registry.names import is_sha256
from loraxs_search.studies import StudyFolder, studies_root, trials_of

_GOING_ON_S = 24 * 3600.0
# The names that the product gives. What has another one is somebody's own, and stays.
_BASE = re.compile(r"[0-9a-f]{16}(-bf16-\d+)?")
_BY_CONTENT = re.compile(r"[0-9a-f]{64}(\.[0-9a-f]{16})?\.safetensors")
_SNAPSHOT = re.compile(r"[0-9.]+(step-\d+\.)?safetensors")
_STATE = re.compile(r"[0-9a-f]{16}\.\d+\.[0-9a-f]{32}\.safetensors")
_ROWS = ("rows", "tokens", "reports", "folders")
_HALF_MADE = re.compile(
    r"\..+\.([0-9a-f]{32}|[a-z0-9_]{8}\.tmp)"  # a folder and a file on their way to a name
    r"|\.\d+(\.\d+)?\.\d+"  # an adapter of a study, by version 0.1
    r"|\.(pull-|replaced-)?[0-9a-f]{64}(\.[a-z0-9-]+)?"  # pulled and converted adapters
)


class Snapshots(Kind):
    """States of trials that ended early, of finished studies: none of these goes on.

    Complete ones keep theirs: when the study is extended, another of them may become a candidate. Earlier versions kept
    states for clones, which no study needs any more.
    """

    name = "snapshots"
    loss = "nothing that a finished study needs"
    folders = ("studies/*/snapshots", "studies/*/clones", "studies/*/tune")

    def items(self, home: Path, needs: Needs) -> Iterator[StoredItem]:
        for study in sorted((home / "studies").glob("[!.]*")):
            if not (study / "study.json").is_file():
                continue
            unfinished = f"study {study.name}, which is not finished" if study.name in needs.unfinished else ""
            kept = set() if unfinished else _complete(StudyFolder(study))
            for path in filter(lambda path: _SNAPSHOT.fullmatch(path.name), sorted((study / "snapshots").glob("*"))):
                may_be_chosen = path.name.partition(".")[0] in kept
                candidate = f"study {study.name}, which may be extended" if may_be_chosen else ""
                yield StoredItem.of(path, needed_by=unfinished or candidate)
            for path in sorted((study / "clones").glob("[!.]*.safetensors")):
                yield StoredItem.of(path, needed_by=unfinished)
            if (study / "tune").is_dir():
                yield StoredItem.of(study / "tune", needed_by=unfinished)

    @contextlib.contextmanager
    def guarded(self, item: StoredItem) -> Iterator[None]:
        study = StudyFolder.open(item.paths[0].relative_to(studies_root()).parts[0])
        with study.lock():
            if study.candidates() is None:
                raise StudyError(f"study {study.name} goes on")
            yield


def _complete(study: StudyFolder) -> set[str]:
    """Return the trials that trained all their steps, with those that candidates are of."""
    complete = {name for name, state in trials_of(study.name).items() if state is TrialState.COMPLETE}
    return complete | {trial_of(candidate.trial_id) for candidate in study.candidates() or ()}


class FactorFiles(Kind):
    """SVD factors of bases' weights, this machine's own and others'."""

    name = "factors"
    loss = "the next search or load of their base decomposes its weights again"
    folders = ("factors",)
    used_by_searches = True
    needs_registry = True

    def items(self, home: Path, needs: Needs) -> Iterator[StoredItem]:
        for path in sorted((home / "factors").rglob("*.safetensors")):
            if not _BY_CONTENT.fullmatch(path.name):
                continue
            who = needs.factors.get(path.name.partition(".")[0], "") or needs.by_unfinished
            yield StoredItem.of(path, needed_by=who)


class BaseModels(Kind):
    """Base models that were unpacked or converted from an installed package."""

    name = "base models"
    loss = "unpacked or converted again from their package, if it is installed"
    folders = ("base_models",)
    used_by_searches = True
    needs_registry = True

    def items(self, home: Path, needs: Needs) -> Iterator[StoredItem]:
        for path in sorted((home / "base_models").glob("[!.]*")):
            if path.is_dir() and _BASE.fullmatch(path.name):
                who = needs.by_unfinished or needs.bases.get(weight_digest(path), "")
                yield StoredItem.of(path, needed_by=who)


class DataSets(Kind):
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


class PulledAdapters(Kind):
    """Adapters that were pulled, and what they were converted to, by digest."""

    name = "pulled adapters"
    loss = "pulled again by their version's number"
    folders = ("adapters",)

    def items(self, home: Path, needs: Needs) -> Iterator[StoredItem]:
        for path in sorted((home / "adapters").glob("[!.]*")):
            digest = path.name.partition(".")[0]
            if is_sha256(digest):
                yield StoredItem.of(path, needed_by=needs.adapters.get(digest, ""))


class States(Kind):
    """Large states of trials, which stayed on their node."""

    name = "large states"
    loss = "a trial that goes on from one trains from the start again"
    folders = ("states",)
    used_by_searches = True

    def items(self, home: Path, needs: Needs) -> Iterator[StoredItem]:
        for path in sorted((home / "states").glob("*.safetensors")):
            if _STATE.fullmatch(path.name):
                yield StoredItem.of(path, needed_by=needs.by_unfinished)


class Assets(Kind):
    """Copies of what the trials of studies start from; each study keeps its own."""

    name = "copies of assets"
    loss = "the next trial of their study brings them again"
    folders = ("assets",)
    used_by_searches = True

    def items(self, home: Path, needs: Needs) -> Iterator[StoredItem]:
        for path in sorted((home / "assets").rglob("*.safetensors")):
            if _BY_CONTENT.fullmatch(path.name):
                yield StoredItem.of(path)


class Leftovers(Kind):
    """What killed processes have left half made or half removed, anywhere in the folders of the other kinds.

    An adapter that was put aside while it was replaced is none: opening its study brings it back.
    """

    name = "leftovers"
    loss = "nothing"
    folders = ()
    used_by_searches = True

    def items(self, home: Path, needs: Needs) -> Iterator[StoredItem]:
        for folder in dict.fromkeys(pattern.partition("/")[0] for kind in KINDS for pattern in kind.folders):
            for path in sorted((home / folder).rglob(".*")):
                is_inside = any(part.startswith(".") for part in path.relative_to(home).parts[:-1])
                if not is_inside and (path.name.startswith(REMOVED) or _HALF_MADE.fullmatch(path.name)):
                    yield self._item(path)

    def _item(self, path: Path) -> StoredItem:
        """Return what is half removed as long unused, and what is half made as in use for a day: it may be going on."""
        item = StoredItem.of(path)
        if path.name.startswith(REMOVED):
            return replace(item, used_at=0.0)
        is_fresh = item.used_at > time.time() - _GOING_ON_S
        return replace(item, needed_by="a process that may still be making it" if is_fresh else "")


KINDS: tuple[Kind, ...] = (
    Snapshots(),
    FactorFiles(),
    BaseModels(),
    DataSets(),
    PulledAdapters(),
    States(),
    Assets(),
    Leftovers(),
)
