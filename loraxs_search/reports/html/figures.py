"""The figures of the report: a question about a study each, drawn, or why it cannot be; and how all look.

A figure is a function of `ReportFacts`, listed in `FIGURES` by name. Plotly loads when one is drawn. Texts
that users wrote go through `_shown`, since plotly takes tags in its labels for markup. Figures look well on light and
dark ground alike: one accent, greys, and red for what failed. The page's style sheet replaces the colours of texts and
lines by those of its theme.
"""

from __future__ import annotations

import math
from collections.abc import Callable, Mapping, Sequence
from html import escape
from itertools import accumulate, cycle
from typing import TYPE_CHECKING, Any

from loraxs_search.errors import counted
from loraxs_search.records.codec import Scalar
from loraxs_search.records.trial import TrialRecord, TrialState
from loraxs_search.registry.finalist import trial_of
from loraxs_search.reports.html.summary import ReportFacts
from loraxs_search.reports.importances import Importances
from loraxs_search.reports.leaderboard import front as front_of

if TYPE_CHECKING:
    from plotly.graph_objects import Figure, Scatter


# What can be read from a figure, in one or two sentences, or why nothing could be drawn; and one plot, or several small
# ones, by name. Names are unique over all figures of a report.
_Drawn = tuple[str, Mapping[str, "Figure"]]


# ---- how all look ----------------------------------------------------------------------------------------------------
_ACCENT, _GREY, _RED, _INK = "#3b82d6", "#98a1ab", "#cf5a44", "#6b7684"
_PALE = "#8fb8ea"  # of the accent: still under way
_GRID, _CLEAR = "rgba(128,136,148,0.25)", "rgba(0,0,0,0)"
_FONT = "system-ui, -apple-system, 'Segoe UI', Roboto, sans-serif"


def _shown(value: Scalar) -> str:
    """Return a value as a label: plotly reads the text as markup, so that what users wrote is escaped."""
    return escape(f"{value:.4g}" if isinstance(value, float) else str(value), quote=False)


def _styled(figure: Figure, x: str, y: str = "", *, height: int = 340) -> Figure:
    """Give a figure the look of all, the titles of its axes, and its height in pixels; return it."""
    axis: dict[str, Any] = {"gridcolor": _GRID, "zeroline": False, "linecolor": _GRID, "automargin": True}
    figure.update_layout(
        template="none",
        title=None,
        height=height,
        margin={"l": 56, "r": 14, "t": 12, "b": 44},
        paper_bgcolor=_CLEAR,
        plot_bgcolor=_CLEAR,
        font={"family": _FONT, "size": 12, "color": _INK},
        hovermode="closest",
        legend={"orientation": "h", "x": 0, "y": 1.02, "xanchor": "left", "yanchor": "bottom"},
    )
    figure.update_xaxes(**axis, title={"text": x, "standoff": 8})
    figure.update_yaxes(**axis, title={"text": y, "standoff": 8} if y else None)
    return figure


def _thinner(width: float, count: int) -> float:
    """Return the width of lines or the size of points: smaller beyond a hundred."""
    return width / max(1.0, math.pow(count / 100, 0.4))


# ---- scores over steps -----------------------------------------------------------------------------------------------
_LOOKS: dict[TrialState, tuple[dict[str, Any], float]] = {  # line, opacity
    TrialState.PRUNED: ({"color": _GREY, "width": 1}, 0.55),
    TrialState.FAIL: ({"color": _RED, "width": 1.2}, 0.8),
    TrialState.COMPLETE: ({"color": _ACCENT, "width": 1.2}, 0.55),
    TrialState.RUNNING: ({"color": _PALE, "width": 1.5, "dash": "dot"}, 1.0),
}
_DASHES = ("dot", "dash", "longdash", "dashdot")  # of baselines


def _learning_curves(facts: ReportFacts) -> _Drawn:
    from plotly.graph_objects import Figure, Scatter

    reported = [record for record in facts.records if record.reports]
    if not reported:
        return "There are no curves yet: no trial has reported a score.", {}

    def lines(records: Sequence[TrialRecord], label: str, line: dict[str, Any], opacity: float) -> Scatter:
        points = [
            point  # one trace with a gap after each trial: a thousand traces draw slowly
            for record in records
            for point in (*((r.step, r.metrics[facts.metric], r.trial_id) for r in record.reports), (None,) * 3)
        ]
        x, y, text = zip(*points, strict=True)
        hover = "%{text}, step %{x}: %{y:.4f}<extra></extra>"
        look = {"mode": "lines+markers", "marker": {"size": 4}, "opacity": opacity, "hovertemplate": hover}
        return Scatter(x=x, y=y, text=text, line=line, name=label, **look)

    figure, counts = Figure(), list[str]()
    for state, (line, opacity) in _LOOKS.items():
        if records := [record for record in reported if record.state is state]:
            counts.append(f"{len(records):,} {facts.word(state)}")
            thin = line | {"width": _thinner(line["width"], len(records))}
            figure.add_trace(lines(records, facts.word(state), thin, opacity))
    best = next((r for r in reported if facts.best and r.trial_id == facts.best.trial_id), None)
    if best is not None and len(reported) > 1:
        figure.add_trace(lines([best], f"best, {best.trial_id}", {"color": _ACCENT, "width": 3.5}, 1.0))
    steps = [report.step for record in reported for report in record.reports]
    ends, hover = [min(steps), max(*steps, min(steps) + 1)], "%{fullData.name}: %{y:.4f}<extra></extra>"
    for baseline, dash in zip(facts.baselines, cycle(_DASHES), strict=False):
        if math.isfinite(score := baseline.validation_metrics.get(facts.metric, math.nan)):
            level = {"x": ends, "y": [score] * 2, "name": _shown(baseline.name), "mode": "lines"}
            figure.add_trace(Scatter(**level, line={"color": _INK, "width": 1.2, "dash": dash}, hovertemplate=hover))
    _styled(figure, "step", f"{facts.metric} on validation rows", height=400)
    kept = " The step with the best score is kept." if facts.info.search.checkpoint == "best" else ""
    says = f"One line for each trial that has reported: {', '.join(counts)}. Stopped trials are grey.{kept}"
    return says, {"learning_curves": figure}


# ---- scores against bytes --------------------------------------------------------------------------------------------
_DECADE = 10.0  # what spans more is drawn on a logarithmic axis


def _quality_and_bytes(facts: ReportFacts) -> _Drawn:
    from plotly.graph_objects import Figure, Scatter

    if not facts.complete:
        return "No trial has trained all its steps yet, and of the others nothing is kept.", {}
    points = {r.trial_id: (r.reports[-1].size.stored_bytes, facts.score(r)) for r in facts.complete}
    figure, front = Figure(), [it.trial_id for it in front_of(facts.records, facts.folder.checkpoint_selection)]

    def draw(trials: Sequence[str], label: str, **look: object) -> None:
        x, y = ([points[trial][axis] for trial in trials] for axis in (0, 1))
        hover = "%{text}: %{y:.4f}, %{x:,} bytes<extra></extra>"
        figure.add_trace(Scatter(x=x, y=y, text=trials, name=label, hovertemplate=hover, **look))

    if others := [trial for trial in points if trial not in front]:
        draw(others, "complete trials", mode="markers", marker={"color": _GREY, "size": 7})
    line = {"color": _ACCENT, "shape": "hv", "width": 1.5}
    draw(front, "front", mode="lines+markers", marker={"color": _ACCENT, "size": 9}, line=line)
    if facts.finalist is not None and (trial := trial_of(facts.finalist.trial_id)) in points:
        star = {"symbol": "circle-open", "color": _ACCENT, "size": 17, "line": {"width": 2}}
        label = "finalist" if trial == facts.finalist.trial_id else "the finalist's recipe"
        draw([trial], label, mode="markers", marker=star)
    _styled(figure, "stored bytes of adapter and head", f"{facts.metric} on validation rows", height=380)
    sizes, scores = zip(*points.values(), strict=True)
    if min(sizes) == max(sizes):  # one tick, not a range of a millionth of a byte
        figure.update_xaxes(range=[0.9 * sizes[0], 1.1 * sizes[0]], tickvals=sizes[:1])
    elif max(sizes) > _DECADE * min(sizes):
        figure.update_xaxes(type="log", dtick="D2", tickformat="~s")
    if min(scores) == max(scores):
        figure.update_yaxes(range=[scores[0] - 0.05, scores[0] + 0.05])
    elif facts.sign < 0:
        figure.update_yaxes(autorange="reversed")
    small, large = points[front[0]], points[front[-1]]
    says = (
        f"{len(front)} of {len(points):,} complete trials are on the front: no other one is as good in fewer"
        f" bytes. It reaches from {small[1]:.4f} in {small[0]:,} bytes to {large[1]:.4f} in {large[0]:,}."
    )
    if front[0] == front[-1]:
        says = (
            f"Trial {front[0]} has the best score, {small[1]:.4f}, and none stores fewer bytes than its {small[0]:,}."
        )
    return says, {"quality_and_bytes": figure}


# ---- where the finalist is sure --------------------------------------------------------------------------------------
_FEWEST, _MOST_POINTS = 20, 250  # rows from which an accuracy is drawn; points of a curve


def _sure_answers(facts: ReportFacts) -> _Drawn:
    import numpy as np
    from plotly.graph_objects import Figure, Scatter

    from loraxs_search.operating_points import NUM_BINS, calibration_error, reliability
    from loraxs_search.registry.evidence import ScoredRows

    path = None if facts.finalist is None else facts.folder.confirmed.rows_path(facts.finalist.trial_id)
    rows = ScoredRows.from_bytes(path.read_bytes()).answered if path is not None and path.is_file() else None
    if facts.finalist is None or rows is None:
        return "There are no answers to the test rows with a probability.", {}
    counts = np.unique(np.geomspace(min(_FEWEST, len(rows[0])), len(rows[0]), _MOST_POINTS).round().astype(int))
    right = np.cumsum(rows[1][np.argsort(-rows[0], kind="stable")])[counts - 1]
    hover = "%{x:.1%}: %{y:.4f}<extra></extra>"
    look = {
        "mode": "lines",
        "line": {"color": _ACCENT, "width": 2},
        "hovertemplate": hover,
        "name": "surest rows first",
    }
    covering = Figure(Scatter(x=(counts / len(rows[0])).tolist(), y=(right / counts).tolist(), **look))
    if points := [each for each in facts.finalist.operating_points if each.test_accuracy is not None]:
        kept = [(each.test_accuracy or 0.0, *(each.test_accuracy_interval or (0.0, 1.0))) for each in points]
        above, below = zip(*((high - own, own - low) for own, low, high in kept), strict=True)
        bars = {"type": "data", "array": above, "arrayminus": below, "color": _INK, "thickness": 1}
        marks = {"mode": "markers+text", "marker": {"color": _ACCENT, "size": 9}, "textposition": "top right"}
        marks |= {"text": [f"{each.point:g}" for each in points], "name": "operating points", "error_y": bars}
        covering.add_trace(Scatter(x=[each.coverage for each in points], y=[own for own, *_ in kept], **marks))
    bins = reliability(rows)
    said, was, numbers = zip(*bins, strict=True)
    hover = "%{x:.3f}: %{y:.3f} of %{text} rows are right<extra></extra>"
    look = {"mode": "lines+markers", "line": {"color": _ACCENT}, "hovertemplate": hover, "name": "answers"}
    ends = [min(*said, *was), 1.0]
    calibrated = {
        "mode": "lines",
        "line": {"color": _INK, "width": 1.2, "dash": "dot"},
        "name": "as right as it is sure",
    }
    reliable = Figure([Scatter(x=said, y=was, text=numbers, **look), Scatter(x=ends, y=ends, **calibrated)])
    _styled(covering, "share of the test rows that is answered", "share of these that is right")
    _styled(reliable, "mean probability of the answer", "share that is right")
    says = (
        "The finalist on the test rows, surest answers first, with its operating points and their 95 % intervals; and"
        f" how often it is right at each probability, in {NUM_BINS} bins of equally many rows: calibration error"
        f" {calibration_error(rows):.4f}."
    )
    return says, {"accuracy_over_coverage": covering, "reliability": reliable}


# ---- trials and their params -----------------------------------------------------------------------------------------
_LONGEST = 18  # characters of a label
_MAX_TICKS = 12  # more numbers than these are points of a scale


def _history(facts: ReportFacts) -> _Drawn:
    from plotly.graph_objects import Figure, Scatter

    best = facts.best
    if len(facts.complete) < 2 or best is None:
        return "A history needs two trials that have trained all their steps.", {}
    numbers, scores = zip(*((int(it.trial_id), facts.score(it)) for it in facts.complete), strict=True)
    so_far = list(accumulate(scores, max if facts.sign > 0 else min))
    hover = "trial %{x}: %{y:.4f}<extra></extra>"
    points = {"mode": "markers", "marker": {"color": _GREY, "size": 6}, "hovertemplate": hover}
    line = {"mode": "lines", "line": {"color": _ACCENT, "width": 2.5, "shape": "hv"}, "hovertemplate": hover}
    trials = Scatter(x=numbers, y=scores, name="complete trials", **points)
    figure = Figure([trials, Scatter(x=numbers, y=so_far, name="best so far", **line)])
    _styled(figure, "trial", f"{facts.metric} on validation rows")
    since = sum(record.trial_id > best.trial_id for record in facts.records)
    later = f"{counted(since, 'trial')} began after it" if since else "it was the last one"
    return f"The best score, {best.score:.4f}, is of trial {best.trial_id}; {later}.", {"history": figure}


def _importances(facts: ReportFacts) -> _Drawn:
    """Draw the numbers of `compare`, which has them of the sampler's memory."""
    from plotly.graph_objects import Bar, Figure

    importance = Importances.of(facts.folder)
    if not importance.values:
        return f"There are no importances: {importance.why or 'no parameter varies'}.", {}
    names, shares = [_shown(each) for each in importance.values], list(importance.values.values())
    labels = [f"{share:.2f}" for share in shares]
    bars = Bar(x=shares, y=names, text=labels, textposition="outside", cliponaxis=False, orientation="h")
    figure = Figure(bars.update(marker={"color": _ACCENT}, hovertemplate="%{y}: %{x:.3f}<extra></extra>"))
    _styled(figure, "share", height=90 + 30 * len(names))
    figure.update_yaxes(autorange="reversed")
    figure.update_xaxes(range=[0, 1.1 * max(shares)])
    says = (
        f"{names[0]} decides most whether a trial is among the best {importance.quantile:.0%}"
        f" of {importance.num_trials} complete ones. This says what decided this search, not which value is better."
    )
    return says, {"importances": figure}


def _slices(facts: ReportFacts) -> _Drawn:
    from plotly.graph_objects import Figure, Scatter

    plots: dict[str, Figure] = {}
    if len(facts.complete) < 2:
        return "Slices need two trials that have trained all their steps.", {}
    for name in facts.varied:
        own = [record for record in facts.complete if name in record.params]
        values, labels = [record.params[name] for record in own], [_shown(record.params[name]) for record in own]
        if not own:
            continue
        numbers = [value for value in values if isinstance(value, int | float) and not isinstance(value, bool)]
        is_scale = len(numbers) == len(values) and len(set(values)) > _MAX_TICKS
        look = {"size": _thinner(7, len(own)), "colorscale": [[0, _GREY], [1, _ACCENT]]}
        points = Scatter(
            x=values if is_scale else labels,
            y=[facts.score(record) for record in own],
            mode="markers",
            marker=look | {"color": [int(record.trial_id) for record in own]},
            hovertemplate="%{x}: %{y:.4f}<extra>trial %{marker.color}</extra>",
        )
        figure = plots[f"slice_{name}"] = _styled(Figure(points), name, facts.metric, height=260)
        if not is_scale:
            order = sorted(set(values), key=lambda value: (isinstance(value, str), value))
            texts = [value if isinstance(value, str) else _shown(value) for value in order]
            ticks = [_shown(text if len(text) <= _LONGEST else f"{text[: _LONGEST - 1]}…") for text in texts]
            places = [_shown(value) for value in order]
            figure.update_xaxes(type="category", categoryarray=places, tickvals=places, ticktext=ticks)
        elif min(numbers) > 0 and max(numbers) > _DECADE * min(numbers):
            figure.update_xaxes(type="log", dtick="D2")  # at 1, 2 and 5 of each power of ten
    says = "A point for each complete trial that has the parameter; the later it was started, the bluer it is."
    return says if plots else "No parameter varies, so that there is nothing to see a slice of.", plots


FIGURES: dict[str, tuple[str, Callable[[ReportFacts], _Drawn]]] = {  # a heading, as shown to users, and what draws it
    "learning_curves": ("Learning curves", _learning_curves),
    "quality_and_bytes": ("Quality against bytes", _quality_and_bytes),
    "sure_answers": ("Where it is sure", _sure_answers),
    "history": ("Best score over trials", _history),
    "importances": ("Importances", _importances),
    "slices": ("Score over each parameter", _slices),
}
