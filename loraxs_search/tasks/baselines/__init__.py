"""Baselines: simple models, measured while trials train, that say what an adapter's score is worth.

_base.py      the contract
constant.py   the best constant answer
tfidf.py      a linear model of the texts
features.py   a linear model of the untouched base's hidden states

The untouched base, asked as adapters are, is measured by the driver: `search/driver/`.
"""

from __future__ import annotations

from loraxs_search.errors import UsageError
from loraxs_search.plugins import EntryPoints
from loraxs_search.records.promotion import Baseline, is_alone
from loraxs_search.tasks.baselines._base import BaselineInputs, BaselineModel
from loraxs_search.tasks.baselines.constant import Constant
from loraxs_search.tasks.baselines.features import Features
from loraxs_search.tasks.baselines.tfidf import TFIDF
from loraxs_search.tasks.kinds import TaskKind

BASELINES: EntryPoints[type[BaselineModel]] = EntryPoints(
    "baseline", "loraxs_search.baselines", {entry.name: entry for entry in (Constant, TFIDF, Features)}
)


def measure_baselines(inputs: BaselineInputs) -> tuple[Baseline, ...]:
    """Return every baseline that fits the task, scored on validation and test; what could not be had says why.

    Only the calling thread computes.
    """
    from loraxs_search.torch_threads import single_thread

    measured = list[Baseline]()
    with single_thread():
        for name in fitting_baselines(inputs.data.kind):
            try:
                entry = BASELINES.get(name)
            except UsageError as error:  # a distribution's that this node lacks, or whose import fails
                measured.append(Baseline(name, failed=str(error)[:200], applies=True))
                continue
            measured.append(entry(inputs).measure())
    return tuple(measured)


def fitting_baselines(kind: TaskKind) -> list[str]:
    """Return the names of the baselines that a task of this kind has, in order."""
    return [name for name in BASELINES.names() if does_fit(name, kind)]


def does_fit(name: str, kind: TaskKind) -> bool:
    """Return whether a task has this baseline; an entry that is not installed here fits."""
    try:
        return BASELINES.get(name).fits(kind)
    except UsageError:
        return True


def baseline_title(name: str) -> str:
    """Return what a baseline is, as shown to users; its name, where it is not installed here."""
    if is_alone(name):
        return f"the untouched base, {name}, asked in the same way"
    try:
        return BASELINES.get(name).title
    except UsageError:
        return name
