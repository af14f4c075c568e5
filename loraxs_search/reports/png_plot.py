"""Quality against bytes as a figure."""

from __future__ import annotations

import io
from pathlib import Path
from typing import TYPE_CHECKING, Any

from loraxs_search.home import write_atomic
from loraxs_search.reports.comparison import ComparedGroup, Comparison

if TYPE_CHECKING:
    from matplotlib.axes import Axes

_MARKERS = "osD^vP*Xd<>p"  # one for each of the groups that there may be


def save_png(comparison: Comparison, path: Path) -> None:
    """Draw quality against bytes, and beside it each group's trials and its best over seeds; write a PNG file whole.

    Raises:
        HomeError: the file cannot be written.
    """
    from matplotlib.backends.backend_agg import FigureCanvasAgg  # a second: late. No pyplot: no state, no display
    from matplotlib.figure import Figure

    figure = Figure(figsize=(11, 5), dpi=110, layout="constrained")
    FigureCanvasAgg(figure)
    sizes, groups = figure.subplots(1, 2, sharey=True, width_ratios=(3, 2))
    for number, group in enumerate(comparison.groups):
        style: dict[str, Any] = {"color": f"C{number % 10}", "marker": _MARKERS[number % len(_MARKERS)]}
        if group.points:
            _draw_sizes(sizes, group, style)
        _draw_group(groups, number, group, style, comparison.metric == comparison.task_metric)
    _label(sizes, groups, comparison)
    figure.suptitle(_title(comparison), fontsize="medium")
    buffer = io.BytesIO()
    figure.savefig(buffer, format="png", metadata={"Software": None})
    write_atomic(path, buffer.getvalue())


def _draw_sizes(axes: Axes, group: ComparedGroup, style: dict[str, Any]) -> None:
    """Draw its trials, pale, and its front as steps: from a size on, the best score that this size allows."""
    trials, front = ([(p.stored_bytes, p.score) for p in points] for points in (group.points, group.front))
    axes.plot(*zip(*trials, strict=True), linestyle="", alpha=0.35, markersize=5, **style)
    axes.plot(*zip(*front, strict=True), drawstyle="steps-post", label=group.label, **style)


def _draw_group(axes: Axes, number: int, group: ComparedGroup, style: dict[str, Any], same_metric: bool) -> None:
    """Draw its trials in a column, and mean and deviation over seeds where they are of the same metric."""
    axes.plot([number] * len(group.points), [p.score for p in group.points], linestyle="", alpha=0.35, **style)
    if group.over_seeds is not None and same_metric:
        deviation = group.over_seeds.deviation or 0.0
        place = number + 0.2  # beside the trials
        axes.errorbar([place], [group.over_seeds.mean], [deviation], capsize=4, **style)


def _label(sizes: Axes, groups: Axes, comparison: Comparison) -> None:
    sizes.set_xscale("log")
    sizes.set_xlabel("stored bytes: adapter and head; lines: the best for their size")
    sizes.set_ylabel(f"{comparison.metric} on validation rows")
    groups.set_xticks(range(len(comparison.groups)), [group.label for group in comparison.groups], rotation=30)
    groups.set_xlim(-0.5, len(comparison.groups) - 0.5)
    groups.set_xlabel("trials; beside them, the best over seeds")
    for axes in (sizes, groups):
        axes.grid(visible=True, which="major", alpha=0.3)
    if comparison.direction == "minimize":
        sizes.invert_yaxis()
    if sizes.has_data():
        sizes.legend(title=comparison.by)


def _title(comparison: Comparison) -> str:
    unfinished = [f"{name} not finished" for name, state in comparison.studies.items() if state != "finished"]
    base = comparison.base_model.rpartition("/")[2]
    return ", ".join([comparison.task, base, f"{comparison.budget} trials each", *unfinished])
