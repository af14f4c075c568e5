"""Optuna's samplers in a space that is known as a whole, where Optuna must guess it from the trials so far.

It takes what all complete trials have had. By chance that may hold a conditional parameter, until a trial lacks it; and
of trials that start together nothing is known.
"""

from __future__ import annotations

import io
import pickle
from collections.abc import Mapping
from typing import TYPE_CHECKING, Any

from optuna.samplers import CmaEsSampler, GPSampler, QMCSampler

from loraxs_search.errors import StudyError

if TYPE_CHECKING:
    from optuna.distributions import BaseDistribution
    from optuna.study import Study
    from optuna.trial import FrozenTrial

_OPTIMIZER = ":optimizer:"  # in the names of the attributes that hold the state of CMA-ES
_CLASSES = {("cmaes._cma", "CMA"), ("cmaes._cmawm", "CMAwM"), ("numpy", "dtype")}
_NUMPY = {"scalar", "_reconstruct", "ndarray"}


class _KnownSpace:
    """Draws the given parameters together, in every trial.

    Args:
        distributions: Of these parameters, by name.
    """

    def __init__(self, distributions: Mapping[str, BaseDistribution], **options: Any) -> None:
        super().__init__(**options)
        self._distributions = dict(distributions)

    def infer_relative_search_space(self, study: Study, trial: FrozenTrial) -> dict[str, BaseDistribution]:
        return self._distributions


class KnownSpaceGP(_KnownSpace, GPSampler):
    """`GPSampler` in a known space."""


class KnownSpaceQMC(_KnownSpace, QMCSampler):
    """`QMCSampler` in a known space: trials that start together have points of the sequence, too."""


class KnownSpaceCmaEs(_KnownSpace, CmaEsSampler):
    """`CmaEsSampler` in a known space. Optuna keeps its state pickled in the trials: it is checked first."""

    def sample_relative(
        self, study: Study, trial: FrozenTrial, search_space: dict[str, BaseDistribution]
    ) -> dict[str, Any]:
        for past in study.get_trials(deepcopy=False):
            state = [str(value) for key, value in past.system_attrs.items() if _OPTIMIZER in key]
            if state:
                _check_pickle("".join(state), past.number)
        return super().sample_relative(study, trial, search_space)


class _StateOnly(pickle.Unpickler):
    def find_class(self, module: str, name: str) -> Any:
        if (module, name) in _CLASSES or (module.partition(".")[0] == "numpy" and name in _NUMPY):
            return super().find_class(module, name)
        raise pickle.UnpicklingError(f"it names {module}.{name}")


def _check_pickle(text: str, number: int) -> None:
    """Refuse what is not the plain state of CMA-ES: a pickle may run anything, and studies come from other machines.

    Raises:
        StudyError: the state names anything else, or cannot be read.
    """
    try:
        _StateOnly(io.BytesIO(bytes.fromhex(text))).load()
    except (ValueError, pickle.UnpicklingError, EOFError, TypeError, AttributeError) as error:
        raise StudyError(
            f"The state of CMA-ES in trial {number:05d} must hold plain numbers, but: {error}.",
            hint="the study's log is damaged or was changed: copy it anew from where it was written",
        ) from error
