"""Removing what nobody needs any more, and saying what was kept and why."""

from __future__ import annotations

import dataclasses
import time
from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from pathlib import Path

from loraxs_search.errors import LoraxsError
from loraxs_search.home import file_lock, home, remove_whole, unused
from loraxs_search.housekeeping._base import Kind, StoredItem
from loraxs_search.housekeeping._kinds import KINDS
from loraxs_search.housekeeping.needs import Needs, gather_needs

_A_SEARCH = "a search that is at work on this machine"


@dataclass(frozen=True)
class Collected:
    """What became of an item, or with a dry run what would become of it.

    Args:
        kept: Why it stays; empty where it goes.
    """

    kind: str
    path: Path
    num_bytes: int
    used_at: float
    kept: str = ""


def collect(
    older_than_s: float, *, dry_run: bool = False, tracking_uri: str | None = None, kinds: Sequence[Kind] = KINDS
) -> list[Collected]:
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
    with file_lock(root / ".gc.lock"), unused() as idle:
        needs = gather_needs(root, tracking_uri)
        judged = list(_judged(root, kinds, needs, older_than_s, idle))
        return [done if dry_run or done.kept else _remove(kind, item, done) for kind, item, done in judged]


def _judged(
    root: Path, kinds: Sequence[Kind], needs: Needs, older_than_s: float, idle: bool
) -> Iterator[tuple[Kind, StoredItem, Collected]]:
    now = time.time()
    for kind in kinds:
        for item in kind.items(root, needs):
            kept = _why_kept(root, kind, item, needs, idle) or _recent(item, older_than_s, now)
            yield kind, item, Collected(kind.name, item.paths[0], item.num_bytes, item.used_at, kept)


def _why_kept(root: Path, kind: Kind, item: StoredItem, needs: Needs, idle: bool) -> str:
    if any(not path.parent.resolve().is_relative_to(root.resolve()) or path.is_symlink() for path in item.paths):
        return "a link leads out of the state folder"
    if item.needed_by:
        return f"needed by {item.needed_by}"
    if kind.used_by_searches and not idle:
        return f"may be needed by {_A_SEARCH}"
    return needs.unknown if kind.needs_registry else ""


def _recent(item: StoredItem, older_than_s: float, now: float) -> str:
    return "" if item.used_at <= now - older_than_s else "used not long ago"


def _remove(kind: Kind, item: StoredItem, planned: Collected) -> Collected:
    try:
        with kind.guarded(item):
            if 0.0 < item.used_at < StoredItem.of(*item.paths).used_at:  # since it was looked at; 0 goes at once
                return dataclasses.replace(planned, kept="used just now")
            for path in item.paths:
                remove_whole(path)
    except LoraxsError as error:
        return Collected(planned.kind, planned.path, planned.num_bytes, planned.used_at, error.message)
    return planned
