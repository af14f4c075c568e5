"""What a trial may ask of a base, whichever host trains it."""

from __future__ import annotations

from collections.abc import Collection

from loraxs_search.errors import TargetModulesError, unknown_name
from loraxs_search.records import TrialSpec


def check_target_modules(spec: TrialSpec, known: Collection[str]) -> None:
    """Refuse a trial that adapts no layer, or one that the base does not have.

    Raises:
        TargetModulesError: with the layers that there are.
    """
    names = spec.hyperparameters.target_modules
    if not names:
        raise TargetModulesError(f"`target_modules` must name a layer, but trial {spec.trial_id} names none.")
    if unknown := sorted(set(names) - set(known)):
        raise TargetModulesError(unknown_name("target_modules", unknown[0], known))
