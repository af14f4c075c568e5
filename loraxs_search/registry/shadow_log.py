"""The log of `serve --shadow`, what a challenger answers beside a champion, and what a decision cites of it.

A server appends a JSON object for each row, `shadow_` before all names but those of the task's columns.
"""

from __future__ import annotations

import json
from collections.abc import Mapping
from dataclasses import replace
from pathlib import Path
from typing import Any

from loraxs_search.errors import UsageError, counted
from loraxs_search.home import home
from loraxs_search.records import Decision, ShadowRecord


def shadow_log_path(task: str) -> Path:
    """Return where this machine's servers log the shadow of a task, by its registered name. It may not exist yet."""
    return home() / "shadow" / f"{task}.jsonl"


def read_shadow_log(path: Path, challenger: str) -> dict[str, ShadowRecord]:
    """Return what a log says of an adapter beside each champion, by the champion's digest.

    Lines that cannot be read are left out: a server that is killed leaves half of one.

    Args:
        challenger: The adapter's digest.
    Raises:
        UsageError: the file cannot be read.
    """
    found, needle = dict[str, ShadowRecord](), challenger.encode()
    try:
        with path.open("rb") as file:
            for line in file:
                if needle in line and (row := _row(line, challenger)) is not None:
                    found[row.champion] = _joined(found.get(row.champion), row)
    except OSError as error:
        raise UsageError(
            f"`--shadow-log` must be a file that `serve --shadow` wrote, but {path} cannot be read: {error.strerror}.",
            hint="copy shadow/TASK.jsonl of the server's state folder to this machine",
        ) from error
    return found


def cited(decision: Decision, champion: str, shadows: Mapping[str, ShadowRecord]) -> Decision:
    """Return a decision with what is known of its finalist beside the champion that it was compared with.

    Args:
        champion: The champion's digest.
        shadows: As `read_shadow_log` gives them.
    """
    record = shadows.get(champion)
    return decision if record is None else replace(decision, reasons=(_said(record), *decision.reasons), shadow=record)


def _row(line: bytes, challenger: str) -> ShadowRecord | None:
    """Return what one line says; None if it is none of a log, or of another challenger."""
    try:
        row: Any = json.loads(line)
        champion, own, at, agree = (row[f"shadow_{n}"] for n in ("champion_digest", "challenger_digest", "at", "agree"))
    except (ValueError, LookupError, TypeError):
        return None
    if own != challenger or not (isinstance(champion, str) and isinstance(at, str)):
        return None
    return ShadowRecord(champion, own, 1, None if agree is None else int(agree is True), at, at)


def _joined(one: ShadowRecord | None, other: ShadowRecord) -> ShadowRecord:
    if one is None:
        return other
    agreed = None if one.num_agreed is None or other.num_agreed is None else one.num_agreed + other.num_agreed
    since, until = min(one.since, other.since), max(one.until, other.until)
    return replace(one, num_rows=one.num_rows + other.num_rows, num_agreed=agreed, since=since, until=until)


def _said(record: ShadowRecord) -> str:
    """Say what a server saw, in one sentence."""
    rows, since = counted(record.num_rows, "row"), f"{record.since[:16].replace('T', ' ')} UTC"
    same = "" if record.num_agreed is None else f", {record.num_agreed / record.num_rows:.1%} of them alike"
    digests = f"{record.challenger[:12]} beside {record.champion[:12]}"
    return f"shadow: it answered {rows} of the champion's requests since {since}{same} ({digests})"
