"""A study as Optuna's plots want it: in memory, made of the journal's records."""

from __future__ import annotations

import warnings
from collections.abc import Iterable
from typing import TYPE_CHECKING

from loraxs_search.records import Direction, Scalar, TrialRecord, TrialState
from loraxs_search.reports.html.facts import StudyFacts
from loraxs_search.reports.html.figures._base import shown

if TYPE_CHECKING:
    import optuna

_DECADE = 10.0  # what spans more is drawn on a logarithmic axis
_FEW = 6  # as many numbers are drawn side by side, each with its own tick


def optuna_study(facts: StudyFacts, *, with_bytes: bool = False) -> optuna.Study:
    """Return the trials under their own numbers, with the params that vary.

    Conditional params keep their plain names, and each is drawn over the values that trials had: the space may be of
    another version. Numbers that no trial has begun become failed ones.

    Args:
        with_bytes: Whether a trial's values are its score and its stored bytes.
    """
    import optuna

    optuna.logging.set_verbosity(optuna.logging.WARNING)
    directions: list[Direction] = [facts.task.search_direction]
    if with_bytes:
        directions.append("minimize")
    study = optuna.create_study(directions=directions)
    if with_bytes:
        with warnings.catch_warnings():
            warnings.simplefilter("ignore", optuna.exceptions.ExperimentalWarning)
            study.set_metric_names([facts.metric, "stored bytes"])
    scales = {name: _distribution(_values(facts.complete, name)) for name in facts.varied}
    records = {int(record.trial_id): record for record in facts.records}
    study.add_trials(
        [_trial(facts, records.get(number), scales, with_bytes) for number in range(max(records, default=-1) + 1)]
    )
    return study


def _trial(
    facts: StudyFacts,
    record: TrialRecord | None,
    scales: dict[str, optuna.distributions.BaseDistribution | None],
    with_bytes: bool,
) -> optuna.trial.FrozenTrial:
    from optuna.trial import create_trial

    if record is None or record.state is not TrialState.COMPLETE:  # the plots are of complete trials
        from optuna.trial import TrialState as OptunaState

        return create_trial(state=OptunaState.FAIL)
    values = [facts.score(record), *([record.reports[-1].size.stored_bytes] if with_bytes else [])]
    own = {name: scale for name, scale in scales.items() if scale is not None and name in record.params}
    params = {name: _plain(record.params[name], own[name]) for name in own}
    return create_trial(values=values, params=params, distributions=own)


def _values(records: Iterable[TrialRecord], name: str) -> list[Scalar]:
    return [record.params[name] for record in records if name in record.params]


def _distribution(values: list[Scalar]) -> optuna.distributions.BaseDistribution | None:
    """Return what values lie in: a range of numbers, or a choice of labels; None where there is none."""
    from optuna.distributions import CategoricalDistribution, FloatDistribution

    if not values:
        return None
    numbers = [value for value in values if isinstance(value, int | float) and not isinstance(value, bool)]
    if len(numbers) < len(values):
        return CategoricalDistribution(sorted({shown(value) for value in values}))
    if len(set(numbers)) <= min(_FEW, len(numbers) // 2) or (len(set(numbers)) <= _FEW and _are_whole(numbers)):
        return CategoricalDistribution(sorted(set(numbers)))
    low, high = float(min(numbers)), float(max(numbers))
    return FloatDistribution(low, high, log=low > 0 and high > _DECADE * low)


def _are_whole(numbers: Iterable[float]) -> bool:
    return all(number == int(number) for number in numbers)


def _plain(value: Scalar, distribution: optuna.distributions.BaseDistribution) -> Scalar:
    """Return a value as its distribution has it."""
    from optuna.distributions import CategoricalDistribution

    if not isinstance(distribution, CategoricalDistribution):
        return float(value)
    return value if value in distribution.choices else shown(value)
