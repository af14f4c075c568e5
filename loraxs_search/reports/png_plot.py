"""Quality against bytes as a figure."""

from __future__ import annotations

import io
from pathlib import Path
from typing import TYPE_CHECKING

from loraxs_search.home import write_atomic
from loraxs_search.reports.comparison import ComparedGroup, Comparison

if TYPE_CHECKING:
    from matplotlib.axes import Axes

_MARKERS = "osD^vP*Xd<>p"  # one for each of the groups that there may be


def save_png(comparison: Comparison, path: Path) -> None:
    """Draw each group's trials, its front, and its best over seeds, and write them whole to a PNG file.

    Raises:
        HomeError: the file cannot be written.
    """
    from matplotlib.backends.backend_agg import FigureCanvasAgg  # a second: late. No pyplot: no state, no display
    from matplotlib.figure import Figure

    figure = Figure(figsize=(8, 5), dpi=150, layout="constrained")
    FigureCanvasAgg(figure)
    axes = figure.add_subplot()
    for number, group in enumerate(comparison.groups):
        if group.points:
            _draw(axes, group, f"C{number % 10}", _MARKERS[number % len(_MARKERS)], comparison)
    axes.set_xscale("log")
    axes.set_xlabel("stored bytes: adapter and head")
    axes.set_ylabel(f"{comparison.metric} on validation rows")
    if comparison.direction == "minimize":
        axes.invert_yaxis()
    axes.set_title(_title(comparison), fontsize="medium")
    axes.grid(visible=True, which="major", alpha=0.3)
    if axes.has_data():
        axes.legend(title=comparison.by)
    buffer = io.BytesIO()
    figure.savefig(buffer, format="png", metadata={"Software": None})
    write_atomic(path, buffer.getvalue())


def _draw(axes: Axes, group: ComparedGroup, color: str, marker: str, comparison: Comparison) -> None:
    sizes, scores = [p.stored_bytes for p in group.points], [p.score for p in group.points]
    axes.plot(sizes, scores, marker, color=color, alpha=0.35, markersize=5)
    front_sizes, front_scores = [p.stored_bytes for p in group.front], [p.score for p in group.front]
    axes.plot(front_sizes, front_scores, f"{marker}-", color=color, drawstyle="steps-post", label=group.label)
    if group.over_seeds is None or group.best is None or comparison.metric != comparison.task_metric:
        return
    axes.errorbar(
        [group.best.stored_bytes],
        [group.over_seeds.mean],
        yerr=[group.over_seeds.deviation or 0.0],
        fmt="_",
        color=color,
        capsize=5,
        markersize=12,
    )


def _title(comparison: Comparison) -> str:
    running = [name for name, state in comparison.studies.items() if state != "finished"]
    parts = [comparison.task, comparison.base_model.rpartition("/")[2], f"{comparison.budget} trials each"]
    return ", ".join([*parts, *(f"{name} not finished" for name in running)])
