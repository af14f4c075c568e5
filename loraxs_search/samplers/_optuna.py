"""Optuna's GP sampler in a space that is known as a whole, where Optuna must guess it from the trials so far.

It takes what all complete trials have had. By chance that may hold a conditional parameter, until a trial lacks it; and
of trials that start together nothing is known.
"""

from __future__ import annotations

from collections.abc import Mapping
from typing import TYPE_CHECKING, Any

from optuna.samplers import GPSampler

if TYPE_CHECKING:
    from optuna.distributions import BaseDistribution
    from optuna.study import Study
    from optuna.trial import FrozenTrial


class KnownSpaceGP(GPSampler):
    """Draws the given parameters together, in every trial.

    Args:
        distributions: Of these parameters, by name.
    """

    def __init__(self, distributions: Mapping[str, BaseDistribution], **options: Any) -> None:
        super().__init__(**options)
        self._distributions = dict(distributions)

    def infer_relative_search_space(self, study: Study, trial: FrozenTrial) -> dict[str, BaseDistribution]:
        return self._distributions
