"""The sampler's memory rebuilt from the journal: on another machine, or after its database was lost."""

from __future__ import annotations

from collections.abc import Mapping

import optuna
from optuna.trial import FixedTrial, TrialState, create_trial

from loraxs_search.records import TrialRecord
from loraxs_search.search_space import Space


def rebuild(study: optuna.Study, space: Space, records: Mapping[str, TrialRecord]) -> None:
    """Add the trials that only the journal has to the study, as running, under their own numbers.

    Their reports and ends follow as after any restart. A number that is not in the journal was asked for and
    never begun: it becomes a trial without params, which the searcher finishes asking for.
    """
    known = len(study.get_trials(deepcopy=False))
    for number in range(known, max((int(trial_id) + 1 for trial_id in records), default=0)):
        record = records.get(f"{number:05d}")
        is_known = record is not None and not record.is_hidden  # the sampler sees no params of one that is hidden
        drawn = FixedTrial(space.drawn_params(record.params) if record and is_known else {})
        if is_known:
            space.suggest(drawn)  # asks for the same values, and so says what they were drawn from
        study.add_trial(create_trial(state=TrialState.RUNNING, params=drawn.params, distributions=drawn.distributions))
