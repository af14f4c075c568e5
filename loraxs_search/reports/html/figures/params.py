"""Figures that Optuna draws, of trials and their params: the history, importances, slices."""

from __future__ import annotations

from collections.abc import Iterable
from html import unescape
from typing import TYPE_CHECKING

from loraxs_search.errors import counted
from loraxs_search.records.literals import Scalar
from loraxs_search.records.trial import TrialRecord, TrialState
from loraxs_search.reports.comparison import importances
from loraxs_search.reports.html.facts import ReportFacts
from loraxs_search.reports.html.figures import _base as base

if TYPE_CHECKING:
    import optuna
    from plotly.graph_objects import Figure


_DECADE = 10.0  # what spans more is drawn on a logarithmic axis
_FEW = 6  # as many numbers are drawn side by side, each with its own tick


def optuna_study(facts: ReportFacts) -> optuna.Study:
    """Return the trials under their own numbers, with the params that vary.

    Conditional params keep their plain names, and each is drawn over the values that trials had: the space may be of
    another version. Numbers that no trial has begun become failed ones.
    """
    import optuna

    optuna.logging.set_verbosity(optuna.logging.WARNING)
    study = optuna.create_study(direction=facts.task.search_direction)
    scales = {name: _distribution(_values(facts.complete, name)) for name in facts.varied}
    records = {int(record.trial_id): record for record in facts.records}
    study.add_trials([_trial(facts, records.get(number), scales) for number in range(max(records, default=-1) + 1)])
    return study


def _trial(
    facts: ReportFacts, record: TrialRecord | None, scales: dict[str, optuna.distributions.BaseDistribution | None]
) -> optuna.trial.FrozenTrial:
    from optuna.trial import create_trial

    if record is None or record.state is not TrialState.COMPLETE:  # the plots are of complete trials
        from optuna.trial import TrialState as OptunaState

        return create_trial(state=OptunaState.FAIL)
    own = {name: scale for name, scale in scales.items() if scale is not None and name in record.params}
    params = {name: _plain(record.params[name], own[name]) for name in own}
    return create_trial(value=facts.score(record), params=params, distributions=own)


def _values(records: Iterable[TrialRecord], name: str) -> list[Scalar]:
    return [record.params[name] for record in records if name in record.params]


def _distribution(values: list[Scalar]) -> optuna.distributions.BaseDistribution | None:
    """Return what values lie in: a range of numbers, or a choice of labels; None if there is none."""
    from optuna.distributions import CategoricalDistribution, FloatDistribution

    if not values:
        return None
    numbers = [value for value in values if isinstance(value, int | float) and not isinstance(value, bool)]
    if len(numbers) < len(values):
        return CategoricalDistribution(sorted({base.shown(value) for value in values}))
    if len(set(numbers)) <= min(_FEW, len(numbers) // 2) or (
        len(set(numbers)) <= _FEW and all(number == int(number) for number in numbers)
    ):
        return CategoricalDistribution(sorted(set(numbers)))
    low, high = float(min(numbers)), float(max(numbers))
    return FloatDistribution(low, high, log=low > 0 and high > _DECADE * low)


def _plain(value: Scalar, distribution: optuna.distributions.BaseDistribution) -> Scalar:
    """Return a value as its distribution has it."""
    from optuna.distributions import CategoricalDistribution

    if not isinstance(distribution, CategoricalDistribution):
        return float(value)
    return value if value in distribution.choices else base.shown(value)


class ImportanceFigure(base.ReportFigure):
    """The numbers of `compare`, which has them of the sampler's memory."""

    name = "importances"
    title = "Importances"

    def draw(self, facts: ReportFacts) -> base.FigureSection:
        from plotly.graph_objects import Bar, Figure

        importance = importances(facts.folder)
        if not importance.values:
            return self.section(f"There are no importances: {importance.why or 'no parameter varies'}.")
        names = [base.shown(name) for name in importance.values]
        shares = list(importance.values.values())
        labels = [f"{share:.2f}" for share in shares]
        bars = Bar(x=shares, y=names, text=labels, textposition="outside", cliponaxis=False, orientation="h")
        figure = Figure(bars.update(marker={"color": base.ACCENT}, hovertemplate="%{y}: %{x:.3f}<extra></extra>"))
        base.styled(figure, "share", height=90 + 30 * len(names))
        figure.update_yaxes(autorange="reversed")
        figure.update_xaxes(range=[0, 1.1 * max(shares)])
        says = (
            f"{names[0]} decides most whether a trial is among the best {importance.quantile:.0%}"
            f" of {importance.num_trials} complete ones. This says what decided this search, not which value is better."
        )
        return self.section(says, {self.name: figure})


class ScoreHistory(base.ReportFigure):
    name = "history"
    title = "Best score over trials"

    def draw(self, facts: ReportFacts) -> base.FigureSection:
        from optuna.visualization import plot_optimization_history

        if len(facts.complete) < 2:
            return self.section("A history needs two trials that have trained all their steps.")
        figure = plot_optimization_history(optuna_study(facts), target_name=facts.metric)
        trials, best = figure.data[:2]
        trials.update(name="complete trials", marker={"color": base.GREY, "size": 6})
        best.update(name="best so far", line={"color": base.ACCENT, "width": 2.5, "shape": "hv"})
        first = int(facts.complete[0].trial_id)
        best.update(x=best.x[first:], y=best.y[first:])  # before it there is no best
        figure.data = (trials, best)
        figure.update_traces(hovertemplate="trial %{x}: %{y:.4f}<extra></extra>")
        base.styled(figure, "trial", f"{facts.metric} on validation rows")
        return self.section(_says_history(facts), {self.name: figure})


def _says_history(facts: ReportFacts) -> str:
    best = facts.best
    assert best is not None  # there are complete trials
    since = sum(record.trial_id > best.trial_id for record in facts.records)
    later = f"{counted(since, 'trial')} began after it" if since else "it was the last one"
    return f"The best score, {best.score:.4f}, is of trial {best.trial_id}; {later}."


_LONGEST = 18  # characters of a label


class Slices(base.ReportFigure):
    name = "slices"
    title = "Score over each parameter"

    def draw(self, facts: ReportFacts) -> base.FigureSection:
        if len(facts.complete) < 2:
            return self.section("Slices need two trials that have trained all their steps.")
        study = optuna_study(facts)
        known = {name for trial in study.get_trials(deepcopy=False) for name in trial.params}
        names = [name for name in facts.varied if name in known]
        if not names:
            return self.section("No parameter varies, so that there is nothing to see a slice of.")
        says = "A point for each complete trial that has the parameter; the later it was started, the bluer it is."
        return self.section(says, {f"slice_{name}": _slice(study, name, facts.metric) for name in names})


def _slice(study: optuna.Study, name: str, metric: str) -> Figure:
    from optuna.visualization import plot_slice

    figure = plot_slice(study, params=[name], target_name=metric)
    scale = {
        "colorscale": [[0, base.GREY], [1, base.ACCENT]],
        "showscale": False,
        "size": base.thinner(7, len(study.trials)),
        "line": {"width": 0},
    }
    figure.update_traces(marker=scale, hovertemplate="%{x}: %{y:.4f}<extra>trial %{marker.color}</extra>")
    base.styled(figure, name, metric, height=260)
    if figure.layout.xaxis.type == "category":  # Optuna quotes labels
        for trace in figure.data:
            trace.x = [_unquoted(label) for label in trace.x]
        labels = [_unquoted(label) for label in figure.layout.xaxis.categoryarray]
        figure.update_xaxes(categoryarray=labels, tickvals=labels, ticktext=[_shortened(label) for label in labels])
    elif figure.layout.xaxis.type == "log":
        base.log_axis(
            figure.layout.xaxis, *(edge([x for trace in figure.data for x in trace.x]) for edge in (min, max))
        )
    return figure


def _unquoted(label: str) -> str:
    return label.strip("'\"")


def _shortened(label: str) -> str:
    """Return a label that stands beside others; its own text is escaped."""
    text = unescape(label)
    return base.shown(text if len(text) <= _LONGEST else f"{text[: _LONGEST - 1]}…")
