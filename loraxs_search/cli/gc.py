"""loraxs-search gc"""

from __future__ import annotations

import sys
from collections.abc import Sequence
from typing import TYPE_CHECKING, Annotated, Any

import typer

from loraxs_search.cli._bytes import shown_bytes
from loraxs_search.cli._output import JsonOption, TrackingOption, emit, print_table
from loraxs_search.durations import seconds_of
from loraxs_search.errors import UsageError

if TYPE_CHECKING:
    from loraxs_search.housekeeping import Collected


def command(
    older_than: Annotated[
        str, typer.Option("--older-than", help="Only what nobody has used for so long: 12h, 30d.", metavar="TIME")
    ] = "30d",
    dry_run: Annotated[bool, typer.Option("--dry-run", help="Say what would go, and remove nothing.")] = False,
    tracking_uri: TrackingOption = None,
    as_json: JsonOption = False,
) -> None:
    """Remove from LORAXS_HOME what nobody needs any more.

    It looks at states of trials of finished studies, SVD factors, unpacked and converted base models, rows and tokens,
    pulled adapters, and what killed processes have left. All of them can be made or fetched again.

    It never removes what a registered version, a study, or a name that was pulled needs, and nothing that a running
    search may use. If MLflow does not answer, factors and base models stay. Studies go with `studies rm`, versions with
    `rm`, and the runs in MLflow with MLflow itself.

    --json lists every item with its path, its bytes and why it stays.

    Example: loraxs-search gc --dry-run --older-than 7d
    """
    from loraxs_search.housekeeping import KINDS, collect

    done = collect(_seconds(older_than), dry_run=dry_run, tracking_uri=tracking_uri)

    def show() -> None:
        columns = ("what", "items", "bytes", "kept", "bytes kept", "lost")
        rows = [_row(kind.name, kind.loss, [it for it in done if it.kind == kind.name]) for kind in KINDS]
        print_table(columns, rows, right=frozenset(columns[1:-1]))

    emit(as_json, [vars(it) | {"path": str(it.path)} for it in done], show)
    freed = sum(it.num_bytes for it in done if not it.kept)
    print(f"\n{'would free' if dry_run else 'freed'} {shown_bytes(freed)}", file=sys.stderr)
    for line in _reasons(done):
        print(f"kept: {line}", file=sys.stderr)


def _row(name: str, loss: str, items: Sequence[Collected]) -> tuple[str, ...]:
    going, kept = [it for it in items if not it.kept], [it for it in items if it.kept]
    sizes = (shown_bytes(sum(it.num_bytes for it in some)) for some in (going, kept))
    freed, held = sizes
    return name, str(len(going)), freed, str(len(kept)), held, loss


def _reasons(done: Sequence[Collected]) -> list[str]:
    counts: dict[tuple[str, str], int] = {}
    for item in done:
        if item.kept:
            counts[item.kind, item.kept] = counts.get((item.kind, item.kept), 0) + 1
    return [f"{count} of {kind}, {why}" for (kind, why), count in counts.items()]


def _seconds(text: Any) -> float:
    seconds = seconds_of(text)
    if seconds is None:
        raise UsageError(
            f"`--older-than` must be a number with a unit, but got {text!r}.", hint="such as 90s, 12h or 30d"
        )
    return seconds
