"""What the sampler proposes, by seed and history alone."""

from __future__ import annotations

from types import SimpleNamespace
from typing import Any, cast

import optuna
import pytest
from optuna.trial import FrozenTrial
from support.toys import measured

from loraxs_search.log.events import TrialEnded, TrialReported, TrialStarted
from loraxs_search.methods.lora_xs import LoraXS
from loraxs_search.records.search import SearchPlan
from loraxs_search.records.trial import TrialState
from loraxs_search.samplers.trials import StudyTrials
from loraxs_search.search.tune.proposer import Proposer
from loraxs_search.search_space.load import load_space
from loraxs_search.search_space.space import Space


@pytest.fixture(scope="module")
def space():
    return load_space("movie_reviews")


def _history(space: Space, num_trials: int) -> StudyTrials:
    """Return what a driver knows after so many trials."""
    history = StudyTrials(space.task, SearchPlan())
    proposer = Proposer(history, space)
    for number in range(num_trials):
        name = f"{number:05d}"
        params, proposal = proposer.propose(number)
        history.apply(TrialStarted(at=1.0, trial_id=name, params=params, proposal=proposal))
        history.apply(TrialReported(at=1.0, report=measured(name, 160, {"accuracy": number * 37 % 101 / 101})))
        history.apply(TrialEnded(at=1.0, trial_id=name, state=TrialState.COMPLETE, reason=""))
    return history


def test_a_short_history_proposes_what_optuna_itself_would(space):
    with pytest.warns(optuna.exceptions.ExperimentalWarning):
        itself = optuna.samplers.TPESampler(multivariate=True, group=True, constant_liar=True, seed=5)
    study = optuna.create_study(direction="maximize", sampler=itself)
    history = _history(space, 60)
    study.add_trials(history.trials)
    assert Proposer(history, space).propose(5)[0] == space.suggest(study.ask())


def test_a_proposal_has_a_number_that_no_trial_has_that_is_shown(space):
    """TPE leaves out the trial whose number is that of the one it is asked for."""
    seen = list[Any]()

    class Recording(optuna.samplers.RandomSampler):
        def sample_independent(self, study: optuna.Study, trial: FrozenTrial, *given: Any) -> Any:
            seen.append((trial.number, [own.number for own in study.get_trials(deepcopy=False)]))
            return super().sample_independent(study, trial, *given)

    proposer = Proposer(_history(space, 3), space)
    proposer._sampler = cast("Any", SimpleNamespace(name="recording", optuna_sampler=lambda *_: Recording()))
    proposer.propose(5)
    assert seen[0] == (3, [0, 1, 2, 3])


def test_each_of_several_methods_has_one_of_the_first_trials():
    """Drawn by chance, two trials of two methods are of one method half of the time."""
    rivals = load_space("rivals_movie_reviews")
    history = StudyTrials(rivals.task, rivals.search)
    proposer, own = Proposer(history, rivals), []
    for number in range(len(rivals.methods) + 1):
        params, proposal = proposer.propose(7)
        history.apply(TrialStarted(at=1.0, trial_id=f"{number:05d}", params=params, proposal=proposal))
        own.append(params["method"])
    assert own[:-1] == ["lora-xs", "lora", "vera", "head-only", "full"]
    assert own[-1] in rivals.methods


def test_the_first_trial_is_the_recipe_as_far_as_the_space_has_it():
    whole = load_space("movie_reviews")
    first = _first(whole)
    recipe = {name: values[0] for name, values in LoraXS().recipe({"rank": 16}).items()}
    assert (recipe["rank"], recipe["learning_rate"]) == (16, 8e-3)
    assert {name: value for name, value in recipe.items() if name in first}.items() <= first.items()
    assert whole.follows_recipe(first)
    assert not whole.follows_recipe(first | {"learning_rate": 0.0079})
    assert not whole.follows_recipe(first | {"rank": 4})


WIDE, HEAD = "{log_uniform: [1.0e-4, 1.0e-1]}", "head_learning_rate"
HANGS = "[{choice: [0.004], when: {learning_rate: 0.008}}, {choice: [0.005, 0.006]}]"
BY_RANK = "[{log_uniform: [1.0e-3, 2.0e-2], when: {rank: 8}}, 1.0e-3]"


def test_the_first_trial_of_other_spaces():
    constants = {"rank": "16", "target_modules": "all-linear", HEAD: "0.005"}
    for given, first in (
        # The rate is that of the rank.
        ({"rank": "{choice: [4, 16, 64]}", "learning_rate": WIDE}, {"rank": 16, "learning_rate": 8e-3}),
        ({"rank": "{int: [1, 12]}", "learning_rate": WIDE}, {"rank": 12, "learning_rate": 1.1e-2}),
        # A constant decides.
        ({"rank": "8", "learning_rate": BY_RANK}, {"learning_rate": 1.6e-2}),
        # What hangs on the rate is chosen by it, whatever the order in the file: it comes after the rank.
        ({"learning_rate": "{choice: [0.004, 0.008]}", HEAD: HANGS}, {"rank": 16, "learning_rate": 0.008, HEAD: 0.004}),
        # Of a space that only has the recipe's constants, and beyond the ranks that were measured, it is the sampler's.
        (constants | {"learning_rate": "{log_uniform: [1.0e-3, 2.0e-3]}"}, None),
        ({"rank": "128"}, None),
    ):
        space = load_space("movie_reviews", overrides=[f"parameters.{name}={value}" for name, value in given.items()])
        drawn = _first(space)
        assert space.follows_recipe(drawn) == (first is not None), given
        assert drawn.items() >= (first or {}).items()


def test_a_task_without_a_head_has_no_recipe():
    text = load_space("movie_reviews_text")
    assert text.first_params() == []
    assert not text.follows_recipe({"rank": 16, "learning_rate": 8e-3})


def _first(space: Space) -> dict[str, Any]:
    return Proposer(StudyTrials(space.task, space.search), space).propose(7)[0]
