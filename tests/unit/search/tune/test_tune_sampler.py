"""What the sampler proposes: by seed and history alone, and in a time that does not grow with the history."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import optuna
import pytest
from optuna.distributions import CategoricalDistribution, FloatDistribution
from optuna.study import StudyDirection
from optuna.trial import FrozenTrial, TrialState, create_trial

from loraxs_search.search.ledger.optuna_storage import SingleWriterJournal, open_optuna_study
from loraxs_search.search.tune import sampler
from loraxs_search.search.tune.sampler import WINDOW, History, Sampler, ShownHistory
from loraxs_search.search_space import Space, load_space

DISTRIBUTIONS = {
    "rank": CategoricalDistribution((4, 8, 16)),
    "scale": CategoricalDistribution((0.5, 1.0, 2.0)),
    "target_modules": CategoricalDistribution(("attention", "ffn", "all-linear")),
    "learning_rate": FloatDistribution(3e-3, 3e-2, log=True),
    "head_learning_rate": FloatDistribution(3e-3, 2e-2, log=True),
}


@pytest.fixture(scope="module")
def space() -> Space:
    return load_space("movie_reviews")


def _ended(value: float, state: TrialState = TrialState.COMPLETE, last_step: int = 160) -> FrozenTrial:
    """A trial whose score is its place between the bounds of the learning rate."""
    params = {"rank": 8, "scale": 1.0, "target_modules": "ffn", "head_learning_rate": 0.01}
    return create_trial(
        state=state,
        value=value,
        params={**params, "learning_rate": 3e-3 + 2.7e-2 * value},
        distributions=DISTRIBUTIONS,
        intermediate_values={last_step: value},
    )


def _study(num_trials: int) -> optuna.Study:
    study = optuna.create_study(direction="maximize", sampler=optuna.samplers.RandomSampler(seed=0))
    study.add_trials([_ended(i * 37 % 101 / 101) for i in range(num_trials)])
    return study


def test_a_window_holds_the_best_the_latest_and_those_that_run() -> None:
    history = [_ended(i * 37 % 1009 / 1009) for i in range(1009)]
    history.insert(100, create_trial(state=TrialState.RUNNING))
    history.insert(200, _ended(0.999, TrialState.PRUNED, last_step=40))
    for number, trial in enumerate(history):
        trial.number = number
    window = History(StudyDirection.MAXIMIZE).window(history)
    values = sorted((t.value for t in history if t.state is TrialState.COMPLETE), reverse=True)
    assert history[100] in window
    assert history[200] not in window, "a pruned trial is behind every complete one"
    assert {t.value for t in window} >= set(values[:WINDOW])
    assert set(map(id, window)) >= set(map(id, history[-WINDOW:]))
    assert len(window) <= 2 * WINDOW + 1
    assert [t.number for t in window] == sorted(t.number for t in window)
    grown = History(StudyDirection.MAXIMIZE)
    for length in (1, 150, 600):
        grown.window(history[:length])
    assert grown.window(history) == window, "what was looked at before makes no difference"
    worst = History(StudyDirection.MINIMIZE).window(history)
    assert {t.value for t in worst} >= set(values[-WINDOW:])


@pytest.mark.parametrize("longest", [1000, 30])
def test_proposals_depend_on_seed_and_history_alone(
    longest: int, space: Space, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(sampler, "MAX_HISTORY", longest)
    first, second = _study(60), _study(60)
    trial, params = Sampler(first, space).propose(5)
    assert Sampler(second, space).propose(5)[1] == params
    assert Sampler(_study(0), space).propose(6)[1] != params
    assert trial.params.items() <= params.items()
    assert set(trial.params) == set(space.distributions())


def test_a_long_history_still_teaches(space: Space, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(sampler, "MAX_HISTORY", 30)
    study = _study(300)
    proposer = Sampler(study, space)
    rates = [float(proposer.propose(seed)[1]["learning_rate"]) for seed in range(12)]
    assert sorted(rates)[len(rates) // 2] > 0.02, "the best trials have the highest rates"


def test_a_proposal_has_a_number_that_no_trial_has_that_is_shown() -> None:
    """TPE leaves out the trial whose number is that of the one it is asked for."""
    shown = ShownHistory(_study(3).get_trials(), 3)
    study = optuna.create_study(storage=shown)
    trial = study.ask()
    trial.suggest_float("lr", 0, 1)
    assert trial.number == 3
    assert [t.number for t in study.get_trials()] == [0, 1, 2, 3]
    assert study.get_trials()[3].params == trial.params


def test_a_trial_that_was_asked_for_and_not_recorded_is_asked_for_again(space: Space) -> None:
    study = _study(0)
    study.ask()
    (orphan,) = study.get_trials()
    trial, params = Sampler(study, space).propose(3, orphan)
    assert trial.number == 0
    assert len(study.trials) == 1
    assert study.trials[0].params.items() <= params.items()


def test_a_driver_killed_while_it_proposes_proposes_the_same_again(
    space: Space, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Whatever of a proposal is on disk when a kill comes, going on gives the params of an undisturbed search."""
    path, seen, append = tmp_path / "o.jsonl", list[bytes](), SingleWriterJournal.append_logs

    def watched(log: SingleWriterJournal, logs: list[dict[str, Any]]) -> None:
        append(log, logs)
        seen.append(path.read_bytes())

    study = open_optuna_study(path, "s", "maximize")
    with monkeypatch.context() as patch:
        patch.setattr(SingleWriterJournal, "append_logs", watched)
        _, params = Sampler(study, space).propose(3)
    seen.append(path.read_bytes())
    assert len(seen) > 5
    for number, content in enumerate(seen):
        (tmp_path / f"{number}.jsonl").write_bytes(content)
        again = open_optuna_study(tmp_path / f"{number}.jsonl", "s", "maximize")
        assert Sampler(again, space).propose(3, *again.get_trials())[1] == params


def test_the_first_trials_have_the_params_that_they_are_given(space: Space, tmp_path: Path) -> None:
    drawn = [Sampler(_study(0), space).propose(seed)[1] for seed in range(3)]
    study = open_optuna_study(tmp_path / "optuna.jsonl", "s", "maximize")
    for number in range(2):
        trial, params = Sampler(study, space, drawn).propose(77)
        assert (trial.number, params) == (number, drawn[number])
        assert trial.params.items() <= params.items()
        study.tell(trial, 0.5)
    study.ask()  # a driver died before it was recorded
    resumed = Sampler(open_optuna_study(tmp_path / "optuna.jsonl", "s", "maximize"), space, drawn)
    (orphan,) = resumed.unknown({"00000", "00001"})
    assert resumed.propose(78, orphan)[1] == drawn[2]
    trial, params = resumed.propose(79)
    assert params not in drawn


@pytest.mark.parametrize("num_first", [0, 2])
def test_each_of_several_methods_has_one_of_the_first_trials(num_first: int, tmp_path: Path) -> None:
    """Drawn by chance, two trials of two methods are of one method half of the time."""
    rivals = load_space("rivals_movie_reviews")
    drawn = [Sampler(_study(0), rivals).propose(seed)[1] for seed in range(num_first)]
    study = open_optuna_study(tmp_path / "optuna.jsonl", "s", "maximize")
    for _ in range(num_first + len(rivals.methods) + 1):
        trial, params = Sampler(study, rivals, drawn).propose(7)
        assert trial.params["method"] == params["method"]
        study.tell(trial, 0.5)
    own = [trial.params["method"] for trial in study.trials][num_first:]
    assert own[:-1] == ["lora-xs", "lora", "vera", "head-only", "full"]
    assert own[-1] in rivals.methods
