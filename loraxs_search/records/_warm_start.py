"""A search that starts from what earlier ones have learnt."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass

from loraxs_search.records._words import Scalar


@dataclass(frozen=True)
class WarmStart:
    """The trial of an earlier study that a trial has its params from."""

    study: str
    trial_id: str


@dataclass(frozen=True)
class WarmTrial:
    """Params to begin with, as the new space has them."""

    params: Mapping[str, Scalar]
    warm_start: WarmStart


@dataclass(frozen=True)
class WarmTrials:
    """What a search begins with: its first trials, in order.

    Args:
        notes: What was left out, and why, for people.
    """

    trials: tuple[WarmTrial, ...] = ()
    notes: tuple[str, ...] = ()

    @property
    def studies(self) -> tuple[str, ...]:
        """The studies that trials come from, the first one's first."""
        return tuple(dict.fromkeys(trial.warm_start.study for trial in self.trials))


@dataclass(frozen=True)
class EarlierTrial:
    """A trial that has ended.

    Args:
        params: By name, `method` among them; values may be texts that stand for numbers.
    """

    trial_id: str
    params: Mapping[str, Scalar]


@dataclass(frozen=True)
class EarlierStudy:
    """A study as another search may start from it.

    Args:
        study_id: That its runs carry, never used twice, even when a name is; empty where it has no runs.
        base_digest: Of the base's weights; empty where it is not known.
        kind: Of its task; empty where it is not known.
        trials: Best first; those that failed or have no score are not among them.
    """

    name: str
    study_id: str
    base_digest: str
    kind: str
    created_at: float
    is_finished: bool
    trials: tuple[EarlierTrial, ...]
