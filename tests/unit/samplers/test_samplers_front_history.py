"""What the sampler proposes in a study of two objectives: it learns from fronts, and from stopped trials too."""

from __future__ import annotations

import math

import pytest
from optuna.distributions import FloatDistribution
from optuna.study import StudyDirection
from optuna.trial import FrozenTrial, TrialState, create_trial

from loraxs_search.records import SearchPlan
from loraxs_search.samplers import proposer
from loraxs_search.samplers.history import FrontHistory
from loraxs_search.samplers.proposer import Proposer
from loraxs_search.samplers.trials import StudyTrials
from loraxs_search.search_space import Space, parse_space

SPACE = "task: sst2\nbase_model: org/base\nparameters: {rank: 4, learning_rate: {uniform: [0.01, 1.0]}}\n"
RATE = {"learning_rate": FloatDistribution(0.01, 1.0)}


@pytest.fixture(scope="module")
def space(tmp_path_factory: pytest.TempPathFactory) -> Space:
    return parse_space(SPACE, source="s.yaml", folder=tmp_path_factory.mktemp("space"))


def complete(score: float, stored: int, rate: float = 0.5) -> FrozenTrial:
    return create_trial(values=[score, stored], params={"learning_rate": rate}, distributions=RATE)


def pruned(step: int, score: float, stored: int, rate: float = 0.5) -> FrozenTrial:
    return create_trial(
        state=TrialState.PRUNED,
        params={"learning_rate": rate},
        distributions=RATE,
        user_attrs={f"report.{at}": [score if at == step else 0.0, stored] for at in range(40, step + 1, 40)},
    )


def history_of(*trials: FrozenTrial) -> list[FrozenTrial]:
    for number, trial in enumerate(trials):
        trial.number = number
    return list(trials)


def seen(space: Space, *trials: FrozenTrial) -> Proposer:
    """Return a sampler that sees these trials."""
    history = StudyTrials(space.task, SearchPlan(objectives=("accuracy", "stored_bytes")))
    history.trials = history_of(*trials)
    return Proposer(history, space)


def middle(search: Proposer) -> float:
    rates = sorted(float(search.propose(seed)[0]["learning_rate"]) for seed in range(15))
    return rates[len(rates) // 2]


def test_complete_trials_are_first_then_those_that_came_far_each_by_fronts() -> None:
    trials = history_of(
        pruned(40, 0.9, 1000),
        pruned(80, 0.2, 9000),
        complete(0.5, 5000),
        create_trial(state=TrialState.RUNNING),
        pruned(80, 0.6, 5000),
        complete(0.6, 4000),
        create_trial(state=TrialState.FAIL),
        create_trial(state=TrialState.PRUNED),
        complete(0.9, 9000),
    )
    shown = FrontHistory(StudyDirection.MAXIMIZE, 500, 200).window(trials)
    assert [trial.number for trial in shown] == [8, 5, 2, 4, 1, 0, 7, 3]
    fewest_first = FrontHistory(StudyDirection.MINIMIZE, 500, 200).window(trials)
    assert [trial.number for trial in fewest_first][:3] == [2, 5, 8]


def test_equal_trials_come_by_their_numbers_whichever_ended_first() -> None:
    """A driver that resumes sees them all at once, and must propose what one that saw them end would."""
    equal = history_of(pruned(40, 0.5, 1000), pruned(40, 0.5, 1000), complete(0.6, 900), complete(0.6, 900))
    live, running = FrontHistory(StudyDirection.MAXIMIZE, 500, 200), create_trial(state=TrialState.RUNNING)
    live.window([running, equal[1], running, equal[3]])
    assert [trial.number for trial in live.window(equal)] == [2, 3, 0, 1]
    assert live.window(equal) == FrontHistory(StudyDirection.MAXIMIZE, 500, 200).window(equal)
    unscored = history_of(create_trial(state=TrialState.PRUNED), create_trial(state=TrialState.PRUNED))
    live = FrontHistory(StudyDirection.MAXIMIZE, 500, 200)
    live.window([running, unscored[1]])
    assert [trial.number for trial in live.window(unscored)] == [0, 1]


def test_a_long_history_is_seen_by_its_best_and_its_latest() -> None:
    trials = history_of(*(complete(i * 37 % 101 / 101, 1000 * (1 + i % 7)) for i in range(300)))
    whole = FrontHistory(StudyDirection.MAXIMIZE, 1000, 20).window(trials)
    shown = FrontHistory(StudyDirection.MAXIMIZE, 100, 20).window(trials)
    assert shown[:20] == whole[:20]
    assert {t.number for t in shown} >= set(range(280, 300))
    assert len(shown) <= 40
    grown = FrontHistory(StudyDirection.MAXIMIZE, 100, 20)
    for length in (1, 50, 200):
        grown.window(trials[:length])
    assert grown.window(trials) == shown, "what was looked at before makes no difference"


@pytest.mark.parametrize("longest", [1000, 30])
def test_proposals_depend_on_seed_and_history_alone(
    longest: int, space: Space, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(proposer, "MAX_HISTORY", longest)
    trials = [complete(i * 37 % 101 / 101, 1000 * (1 + i % 7), (1 + i) / 61) for i in range(60)]
    params, _ = seen(space, *trials).propose(5)
    assert seen(space, *trials).propose(5)[0] == params
    assert seen(space, *trials).propose(6)[0] != params


@pytest.mark.parametrize("longest", [1000, 30])
def test_it_learns_from_the_front(longest: int, space: Space, monkeypatch: pytest.MonkeyPatch) -> None:
    """The best rate is 0.8 at each size, and the sizes are as good as each other."""
    monkeypatch.setattr(proposer, "MAX_HISTORY", longest)
    rates = [(2 + i * 37 % 101) / 103 for i in range(100)]
    trials = [complete(0.1 * (i % 3) - abs(rate - 0.8), 1000 * (1 + i % 3), rate) for i, rate in enumerate(rates)]
    assert math.isclose(middle(seen(space, *trials)), 0.8, abs_tol=0.1)


def test_while_no_trial_is_complete_it_learns_from_the_best_of_those_that_were_stopped(space: Space) -> None:
    """Optuna takes pruned trials without values as equal, and the first that it sees for the best: holds it to that."""
    rates = [(2 + i * 37 % 101) / 103 for i in range(60)]
    trials = [pruned(40, -abs(rate - 0.8), 1000, rate) for rate in rates]
    assert math.isclose(middle(seen(space, *trials)), 0.8, abs_tol=0.1)


def test_a_complete_trial_is_better_than_one_that_was_stopped(space: Space) -> None:
    stopped = [pruned(40, 0.9, 1000, 0.05 + i / 1000) for i in range(40)]
    trials = [*stopped, *(complete(0.5 + i / 100, 5000 + 1000 * i, 0.9) for i in range(8))]
    assert middle(seen(space, *trials)) > 0.8
