"""What every sampler keeps to, whatever it proposes; see `samplers/_base.py`."""

from __future__ import annotations

import tempfile
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import pytest
from optuna.trial import FixedTrial

from loraxs_search.errors import LoraxsError
from loraxs_search.log.events import LoggedEvent, TrialEnded, TrialReported, TrialStarted
from loraxs_search.log.study_log import read_events
from loraxs_search.records.codec import Scalar
from loraxs_search.records.search import SearchPlan
from loraxs_search.records.trial import AdapterSize, TrialReport, TrialState
from loraxs_search.samplers import SAMPLERS
from loraxs_search.samplers._base import Sampler
from loraxs_search.samplers.trials import StudyTrials
from loraxs_search.search.tune.proposer import Proposer
from loraxs_search.search_space.load import parse_space
from loraxs_search.search_space.space import Space, notes

NAMES = SAMPLERS.names()
every_sampler = pytest.mark.parametrize("name", NAMES)
EARLY = ("search.n_startup_trials=5",)

CONDITIONAL = """
task: sst2
base_model: org/base
parameters:
  rank: {int: [2, 32]}
  learning_rate: {log_uniform: [1.0e-3, 1.0e-1]}
  weight_decay: {uniform: [0.0, 0.1]}
  sigma: {choice: [input, sqrt]}
  init_std: {uniform: [1.0e-5, 1.0e-3], when: {sigma: sqrt}}
  batch_size: 8
search: {scheduler: none, trials: 24}
"""
RIVALS = """
task: sst2
base_model: org/base
method: {choice: [lora-xs, lora]}
parameters:
  rank: {int: [2, 32]}
  learning_rate: {log_uniform: [1.0e-3, 1.0e-1]}
  sigma: {choice: [input, sqrt]}
  scale: {uniform: [0.5, 4.0], when: {method: lora}}
search: {scheduler: none, trials: 24}
"""
SPACES = (CONDITIONAL, RIVALS)


def space_of(text: str, name: str, *overrides: str) -> Space:
    given = (f"search.sampler={name}", *EARLY, *overrides)
    return parse_space(text, source="s.yaml", folder=Path("/"), overrides=given)


class Study:
    """A study's log in memory, and a driver that follows it."""

    def __init__(self, space: Space, events: Sequence[LoggedEvent] = ()) -> None:
        self.space, self.events = space, list(events)
        self.trials = StudyTrials(space.task, space.search)
        self.proposer = Proposer(self.trials, space)
        for event in self.events:
            self.trials.apply(event)

    def take(self, event: LoggedEvent) -> None:
        with tempfile.TemporaryDirectory() as folder:  # as its line in the log says it
            path = Path(folder) / "journal.jsonl"
            path.write_bytes(event.to_line())
            ((read, _),) = read_events(path, None)
        assert read is not None
        self.events.append(read)
        self.trials.apply(event)

    def start(self, added: dict[str, Scalar] | None = None) -> tuple[str, dict[str, Scalar]]:
        """Have the next trial begin: one that somebody adds, or one that is proposed."""
        number = len(self.trials.trials)
        seed = self.space.search.trial_seed(number)
        params, proposal = self.proposer.propose(seed) if added is None else self.proposer.add(added, seed)
        self.take(TrialStarted(at=1.0, trial_id=f"{number:05d}", params=params, proposal=proposal))
        return f"{number:05d}", params

    def end(self, trial_id: str, params: dict[str, Scalar], state: TrialState = TrialState.COMPLETE) -> None:
        rate = float(params["learning_rate"])
        self.report(trial_id, 1 - abs(rate - 0.03), 100 * int(params.get("rank", 4)))
        self.take(TrialEnded(at=3.0, trial_id=trial_id, state=state, reason="so"))

    def report(self, trial_id: str, score: float, stored: int) -> None:
        report = TrialReport(trial_id, 40, {"accuracy": score}, 0.5, 1.0, 10, AdapterSize(1, 1, stored))
        self.take(TrialReported(at=2.0, report=report))

    def run(self, num_trials: int) -> list[dict[str, Scalar]]:
        """Have trials begin three at a time; every fourth one is stopped, every seventh fails."""
        drawn = list[dict[str, Scalar]]()
        while len(drawn) < num_trials:
            started = [self.start() for _ in range(min(3, num_trials - len(drawn)))]
            for trial_id, params in started:
                number = int(trial_id)
                ended = TrialState.PRUNED if number % 4 == 3 else TrialState.COMPLETE
                self.end(trial_id, params, TrialState.FAIL if number % 7 == 6 else ended)
            drawn += [params for _, params in started]
        return drawn


# ---- what it proposes ------------------------------------------------------------------------------------------------
@every_sampler
def test_every_proposal_is_one_of_the_space(name):
    """With each parameter that its others say it has, and no other; a range is searched and not one end of it."""
    for space in (space_of(text, name) for text in SPACES):
        drawn = Study(space).run(9)
        for params in drawn:
            assert space.suggest(FixedTrial(space.drawn_params(params))) == params  # who warns of what is out of range
        assert len({params["learning_rate"] for params in drawn}) == 9


@every_sampler
def test_the_same_seed_proposes_the_same_and_another_one_does_not(name):
    studies = [Study(space_of(CONDITIONAL, name, f"search.seed={seed}")) for seed in (3, 3, 4)]
    first, again, other = (study.run(9) for study in studies)
    assert first == again
    assert all(one != another for one, another in zip(first, other, strict=True))
    proposer = studies[0].proposer
    drawn = proposer.propose(5)
    proposer.propose(6)
    assert proposer.propose(5) == drawn, "what is drawn and not recorded changes nothing"


@every_sampler
def test_trials_that_people_add_and_that_run_together_differ(name):
    """The first ones, of which nothing is known, and those that begin when it has learnt."""
    study = Study(space_of(CONDITIONAL, name))
    begun = [study.start(added)[1] for added in (*[{}] * 3, *[None] * 5)]
    assert len({params["learning_rate"] for params in begun}) == 8
    study = Study(study.space)
    study.run(8)
    for given in ({"rank": 3}, {"sigma": "sqrt", "init_std": 1e-4}):
        trial_id, params = study.start(given)
        assert params.items() >= given.items()
        study.end(trial_id, params)
    resumed = Study(study.space, study.events)
    drawn = [study.start()[1] for _ in range(3)]
    assert len({params["learning_rate"] for params in drawn}) == 3
    assert resumed.start()[1] == drawn[0], "what people added is in the log"


@pytest.mark.parametrize(("name", "num_trials"), [("tpe", 30), ("gp", 9)])
def test_it_proposes_near_what_was_good(name, num_trials):
    """The best rate is 0.03; the middle of the range, where chance draws, is 0.01."""
    rate = "{learning_rate: {log_uniform: [1.0e-3, 1.0e-1]}}"
    text = f"task: sst2\nbase_model: org/base\nmethod: head-only\nparameters: {rate}\nsearch: {{scheduler: none}}\n"
    study = Study(space_of(text, name))
    study.run(num_trials)
    rates = sorted(float(study.start()[1]["learning_rate"]) for _ in range(3))
    assert rates[1] == pytest.approx(0.03, rel=0.3)


def test_random_proposes_the_same_whatever_was_good():
    space = space_of(CONDITIONAL, "random")
    learning, other = Study(space), Study(space)
    assert learning.run(9) == [other.start()[1] for _ in range(9)]


# ---- restarts --------------------------------------------------------------------------------------------------------
@pytest.mark.parametrize(
    ("name", "text"), [("tpe", CONDITIONAL), ("tpe", RIVALS), ("random", RIVALS), ("gp", CONDITIONAL), ("gp", RIVALS)]
)
def test_a_driver_that_dies_before_each_trial_proposes_what_an_undisturbed_one_does(name, text):
    """All that a new driver has is the log; with trials that run, that were stopped and that failed."""
    space = space_of(text, name)
    whole = Study(space)
    whole.run(9)
    whole.start()
    starts = [i for i, event in enumerate(whole.events) if isinstance(event, TrialStarted)]
    for length in starts[1::4]:
        assert Study(space, whole.events[:length]).start()[1] == whole.events[length].params
    again = Study(space, whole.events)
    assert again.start() == whole.start()
    again.run(3)
    assert Study(space, again.events).start() == again.start()


# ---- scores ----------------------------------------------------------------------------------------------------------
@every_sampler
def test_a_score_that_is_no_number_ends_no_search(name):
    study = Study(space_of(CONDITIONAL, name))
    for number in range(12):
        trial_id, _ = study.start()
        study.report(trial_id, float("nan") if number % 2 else 0.5 + number / 100, 100)
        study.take(TrialEnded(at=3.0, trial_id=trial_id, state=TrialState.COMPLETE, reason="so"))
    assert 1e-3 <= float(study.start()[1]["learning_rate"]) <= 1e-1


# ---- what it takes ---------------------------------------------------------------------------------------------------
@every_sampler
def test_what_it_declares_is_taken_stored_and_may_be_left_out(name):
    defaults = {key: law.default for key, law in SAMPLERS.get(name).parameters.items()}
    plain = parse_space(CONDITIONAL, source="s.yaml", folder=Path("/"), overrides=(f"search.sampler={name}",))
    assert defaults.items() <= plain.search.params.items()
    assert SAMPLERS.get(name)(SearchPlan(), plain.searched()).params == defaults


@every_sampler
def test_a_space_of_one_choice_or_nothing_is_searched(name):
    for rank, number in (("{choice: [2, 4]}", 2), ("2", 1)):
        text = f"task: sst2\nbase_model: org/base\nparameters: {{rank: {rank}, learning_rate: 0.01}}\n"
        study = Study(space_of(f"{text}search: {{scheduler: none}}\n", name))
        assert len({params["rank"] for params in study.run(16)}) == number


def test_what_is_drawn_at_random_and_where_too_few_trials_are_complete_is_said():
    assert notes(space_of(CONDITIONAL, "tpe")) == ()
    plain = CONDITIONAL.replace("  init_std: {uniform: [1.0e-5, 1.0e-3], when: {sigma: sqrt}}\n", "")
    for text, overrides, says in [
        (CONDITIONAL, (), "init_std (conditional) at random"),
        (plain, ("search.trials=8", "search.n_startup_trials=10"), "10 complete trials on, and the search has 8"),
        (plain, ("search.scheduler=asha",), "scheduler: none"),
    ]:
        (note,) = notes(space_of(text, "gp", *overrides))
        assert says in note


# ---- faults ----------------------------------------------------------------------------------------------------------
class Broken(Sampler):
    name = "broken"

    def optuna_sampler(self, seed: int, distributions: Any) -> Any:
        raise RuntimeError("no luck")


def test_a_sampler_that_fails_is_named(monkeypatch):
    monkeypatch.setitem(SAMPLERS._entries, "broken", Broken)
    study = Study(space_of(CONDITIONAL, "broken"))
    study.start()  # by the recipe
    with pytest.raises(LoraxsError, match=r"'broken'.*00001: RuntimeError: no luck"):
        study.start()
