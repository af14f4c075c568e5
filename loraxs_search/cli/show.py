"""loraxs-search show TASK"""

from __future__ import annotations

import sys
from collections.abc import Sequence
from dataclasses import asdict
from typing import TYPE_CHECKING

from loraxs_search.cli._completion import TaskArgument
from loraxs_search.cli._output import JsonOption, TrackingOption, emit, print_table

if TYPE_CHECKING:
    from loraxs_search.registry import RegisteredAdapter


def command(
    task: TaskArgument,
    tracking_uri: TrackingOption = None,
    as_json: JsonOption = False,
) -> None:
    """Show the adapters of a task, newest first.

    It shows the last hundred versions. Test metrics are those of the adapter itself. Next to them is what the
    yardsticks of its search reach on the metric that decided. "Over seeds" is the mean and standard deviation of a
    trial and its refits, the same params from other seeds, on validation rows. It is "-" for a trial without refits
    (`promotion.seeds: 0`), and left out where none has any. The model card has both too. "Aliases" are other names of a
    version: `champion` is the best one, `champion-BASE` the best one on that base.

    Example: loraxs-search show movie-reviews
    """
    from loraxs_search.api import show as versions

    adapters = versions(task, tracking_uri=tracking_uri)
    value = [asdict(version) | {"spread": _spreads(version)} for version in adapters]

    def show() -> None:
        metrics = list(dict.fromkeys(name for version in adapters for name in _shown_metrics(version)))
        trained_again = [name for name in metrics if any(name in _spreads(version) for version in adapters)]
        over = [f"validation {name} over seeds" for name in trained_again]
        yardsticks = list(dict.fromkeys(y.name for version in adapters for y in version.candidate.yardsticks))
        columns = ["version", *metrics, *over, *yardsticks, "bytes", "base", "trial", "made", "aliases"]
        cells = [_cells(version, metrics, trained_again, yardsticks) for version in adapters]
        print_table(columns, cells, right=frozenset({"version", "bytes"}))
        print(f"\nload it: loraxs-search pull {task}:{adapters[0].version}", file=sys.stderr)
        print(f'in Python: loraxs_search.load_adapter("{task}:{adapters[0].version}")', file=sys.stderr)

    emit(
        as_json,
        value,
        show if adapters else lambda: print(f"no adapter of {task} was promoted so far", file=sys.stderr),
    )


def _cells(
    version: RegisteredAdapter, metrics: list[str], trained_again: list[str], yardsticks: Sequence[str]
) -> list[str]:
    candidate, spreads = version.candidate, _spreads(version)
    beside: dict[str, float | None] = {
        y.name: y.test_metrics.get(version.decision.metric) for y in candidate.yardsticks
    }
    return [
        str(version.version),
        *(f"{candidate.test_metrics[name]:.4f}" if name in candidate.test_metrics else "-" for name in metrics),
        *(spreads.get(name, "-") for name in trained_again),
        *("-" if (score := beside.get(name)) is None else f"{score:.4f}" for name in yardsticks),
        f"{candidate.stored_bytes:,}",
        candidate.base_model.rstrip("/").rpartition("/")[2] or "-",
        f"{candidate.study}/{candidate.trial_id}",
        version.created_at[:16].replace("T", " "),
        ",".join(version.aliases) or "-",
    ]


def _shown_metrics(version: RegisteredAdapter) -> list[str]:
    return [name for name in version.candidate.test_metrics if name != "loss"]


def _spreads(version: RegisteredAdapter) -> dict[str, str]:
    from loraxs_search.registry.finalist import seed_statistics

    return {name: str(spread) for name, spread in seed_statistics(version.candidate).items() if spread.count > 1}
