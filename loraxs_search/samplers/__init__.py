"""What proposes params: Optuna's samplers, over the trials of a study as its log has them.

_base.py     the contract
entries.py   Optuna's samplers, by its names
trials.py    a study's trials, read from its log

`search/tune/proposer.py` asks the sampler for the next trial. Nothing here is kept on disk: `StudyTrials` reads the
log, and a proposal is an event in it before anything else has it.
"""

from __future__ import annotations

from collections.abc import Sequence

from loraxs_search.plugins import EntryPoints, with_defaults
from loraxs_search.records.search import SearchPlan
from loraxs_search.samplers._base import Sampler, SamplerConfig, SearchedParameter
from loraxs_search.samplers.entries import GP, TPE, RandomSearch

SAMPLERS: EntryPoints[type[Sampler]] = EntryPoints("search.sampler", "loraxs_search.samplers", TPE, RandomSearch, GP)


def make_sampler(plan: SearchPlan, searched: Sequence[SearchedParameter]) -> Sampler:
    """Return the plan's sampler.

    Raises:
        UsageError: there is no sampler of this name.
    """
    entry = SAMPLERS.get(plan.sampler)
    return entry(
        SamplerConfig(
            seed=plan.seed,
            num_trials=plan.trials,
            stops_early=plan.scheduler != "none",
            parameters=with_defaults(entry.parameters, plan.params),
            searched=searched,
        )
    )
