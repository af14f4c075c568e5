"""loraxs-search show TASK"""

from __future__ import annotations

import sys
from collections.abc import Sequence
from dataclasses import asdict
from typing import TYPE_CHECKING, Annotated

import typer

from loraxs_search.cli._output import JsonOption, TrackingOption, emit, print_table

if TYPE_CHECKING:
    from loraxs_search.registry import RegisteredAdapter


def command(
    task: Annotated[str, typer.Argument(help="Name of the task.")],
    tracking_uri: TrackingOption = None,
    as_json: JsonOption = False,
) -> None:
    """Show the adapters of a task, newest first.

    It shows the last hundred versions. Test metrics are those of the adapter itself. Next to them is what the
    yardsticks of its search reach on the metric that decided. Mean and standard deviation over the seeds that its
    recipe was trained from are of validation metrics. The model card has both too.
    """
    from loraxs_search.api import show as versions

    found = versions(task, tracking_uri=tracking_uri)
    value = [asdict(version) | {"spread": _spreads(version)} for version in found]

    def show() -> None:
        metrics = list(dict.fromkeys(name for version in found for name in _told(version)))
        over = [f"validation {name} over seeds" for name in metrics]
        yardsticks = list(dict.fromkeys(y.name for version in found for y in version.candidate.yardsticks))
        columns = ["version", *metrics, *over, *yardsticks, "bytes", "base", "trial", "made", "called"]
        cells = [_cells(version, metrics, yardsticks) for version in found]
        print_table(columns, cells, right=frozenset({"version", "bytes"}))
        print(f"\nload it: loraxs-search pull {task}:{found[0].version}", file=sys.stderr)
        print(f'in Python: loraxs_search.load_adapter("{task}:{found[0].version}")', file=sys.stderr)

    emit(as_json, value, show if found else lambda: print(f"no adapter of {task} was promoted so far", file=sys.stderr))


def _cells(version: RegisteredAdapter, metrics: list[str], yardsticks: Sequence[str]) -> list[str]:
    its, spreads = version.candidate, _spreads(version)
    beside: dict[str, float | None] = {y.name: y.test_metrics.get(version.decision.metric) for y in its.yardsticks}
    return [
        str(version.version),
        *(f"{its.test_metrics[name]:.4f}" if name in its.test_metrics else "-" for name in metrics),
        *(spreads.get(name, "-") for name in metrics),
        *("-" if (score := beside.get(name)) is None else f"{score:.4f}" for name in yardsticks),
        f"{its.stored_bytes:,}",
        its.base_model.rstrip("/").rpartition("/")[2] or "-",
        f"{its.study}/{its.trial_id}",
        version.created_at[:16].replace("T", " "),
        ",".join(version.aliases) or "-",
    ]


def _told(version: RegisteredAdapter) -> list[str]:
    return [name for name in version.candidate.test_metrics if name != "loss"]


def _spreads(version: RegisteredAdapter) -> dict[str, str]:
    from loraxs_search.registry.seed_statistics import mean_and_spread

    return {name: str(spread) for name, spread in mean_and_spread(version.candidate).items() if spread.count > 1}
