"""Draws params for the next trial, in a time that does not grow with the study."""

from __future__ import annotations

import bisect
import warnings
from collections.abc import Callable, Container, Mapping, Sequence

import optuna
from optuna.samplers import BaseSampler, PartialFixedSampler, RandomSampler, TPESampler
from optuna.storages import InMemoryStorage
from optuna.study import StudyDirection
from optuna.trial import FrozenTrial, Trial, TrialState

from loraxs_search.records import Scalar
from loraxs_search.search.ledger.optuna_storage import as_one, live_trial
from loraxs_search.search.tune.ended_trials import EndedTrials, latest
from loraxs_search.search.tune.front_history import FrontHistory
from loraxs_search.search_space import METHOD, Space

# TPE looks at every trial of a study for each proposal, some 20 microseconds each. Of a study with more than
# MAX_HISTORY trials it sees the best and the latest, WINDOW of each, and those that run. What it takes for good are
# the 25 best ones at most (of two objectives a tenth), so these stay the same; the rest stand for all others.
MAX_HISTORY, WINDOW = 500, 200

COMMAND = "command"  # attribute of a trial that a person asked for: the id of the command


class Sampler:
    """Asks a study for trials and draws their params, which depend on a seed and the study's history only.

    In a space of several methods each method has one of the first trials, with params drawn at random.

    Args:
        first: Params of the space that the first trials have, in order of their numbers.
    """

    def __init__(self, study: optuna.Study, space: Space, first: Sequence[Mapping[str, Scalar]] = ()) -> None:
        self._study, self._space, self._first = study, space, first
        self._history = _history(study)

    def unknown(self, known: Container[str]) -> list[FrozenTrial]:
        """Return the trials that a driver asked for and died before they were recorded.

        Args:
            known: Ids of those that are recorded.
        """
        return [t for t in self._study.get_trials(deepcopy=False) if trial_name(t.number) not in known]

    @property
    def num_trials(self) -> int:
        """How many trials have been asked for: the number of the next one."""
        return len(self._study.get_trials(deepcopy=False))

    def propose(
        self, seed: int, orphan: FrozenTrial | None = None, *, index: int | None = None
    ) -> tuple[Trial, dict[str, Scalar]]:
        """Return a new trial and its params, which are written all together: where only some were on disk after a kill,
        the rest would be drawn to other values than an undisturbed search has.

        Args:
            seed: Any whole number; the 32 bits that samplers take of it differ between the seeds of all plans.
            orphan: A trial that was asked for by a driver that died before it was recorded: finish asking.
            index: Place among the search's own proposals, where people have added trials; by default its number.
        """
        place = index if index is not None else self.num_trials if orphan is None else orphan.number
        return self._ask(lambda: self._sampler(seed % 2**32, place), orphan)

    def add(
        self, given: Mapping[str, Scalar], seed: int, command: str, orphan: FrozenTrial | None = None
    ) -> tuple[Trial, dict[str, Scalar]]:
        """Return a new trial that a person asked for, and its params; the sampler learns from it.

        Params that are not given are those that it would have if the sampler proposed it; what that lacks, since other
        values of the given ones would decide whether a trial has it, is drawn at random.

        Args:
            given: Values of the space, by name, with those that decide whether a trial has them.
            command: Id of the command, which the trial bears from its first moment on disk.
            orphan: As `propose` takes it.
        """
        return self._ask(lambda: self._fixed(given, seed % 2**32), orphan, command)

    def hide(self, command: str, orphan: FrozenTrial | None = None) -> Trial:
        """Return a new trial without params: it has a number, and the sampler learns nothing from it."""
        with as_one(self._study):
            trial = self._study.ask() if orphan is None else live_trial(self._study, orphan)
            trial.set_user_attr(COMMAND, command)
            return trial

    # ---- inside ------------------------------------------------------------------------------------------------------
    def _ask(
        self, sampler: Callable[[], BaseSampler], orphan: FrozenTrial | None, command: str = ""
    ) -> tuple[Trial, dict[str, Scalar]]:
        before = self._study.sampler
        with warnings.catch_warnings():
            # `group` is what conditional spaces need; Optuna has called it experimental since 2.8, PartialFixedSampler
            # since 2.4.
            warnings.simplefilter("ignore", optuna.exceptions.ExperimentalWarning)
            self._study.sampler = sampler()
        try:
            with as_one(self._study):
                trial = self._study.ask() if orphan is None else live_trial(self._study, orphan)
                if command:
                    trial.set_user_attr(COMMAND, command)
                return trial, self._space.suggest(trial)
        finally:
            self._study.sampler = before

    def _sampler(self, seed: int, index: int) -> BaseSampler:
        if index < len(self._first):
            return PartialFixedSampler(self._space.drawn_params(self._first[index]), RandomSampler(seed=seed))
        turn, methods = index - len(self._first), self._space.methods
        if len(methods) > 1 and turn < len(methods):  # by chance alone, one of several would often be tried late
            return PartialFixedSampler(self._space.drawn_params({METHOD: methods[turn]}), RandomSampler(seed=seed))
        trials = self._study.get_trials(deepcopy=False)
        if len(trials) <= MAX_HISTORY and len(self._study.directions) == 1:
            return _tpe(seed)
        return PartialFixedSampler(self._drawn(seed, trials), RandomSampler(seed=seed))

    def _fixed(self, given: Mapping[str, Scalar], seed: int) -> BaseSampler:
        fixed = self._drawn(seed, self._study.get_trials(deepcopy=False))
        for name, value in given.items():
            parameter = self._space.parameters[name]
            fixed |= {parameter.drawn_name(index): value for index in range(len(parameter.alternatives))}
        return PartialFixedSampler(fixed, RandomSampler(seed=seed))

    def _drawn(self, seed: int, trials: Sequence[FrozenTrial]) -> dict[str, Scalar]:
        """Return what TPE draws for the next trial, by the names that Optuna has."""
        shown = ShownHistory(self._history.window(trials), len(trials))
        drawn = optuna.create_study(storage=shown, directions=self._study.directions, sampler=_tpe(seed)).ask()
        self._space.suggest(drawn)
        return drawn.params


def command_of(trial: FrozenTrial) -> str:
    """Return the id of the command that asked for a trial; empty where the search proposed it."""
    return str(trial.user_attrs.get(COMMAND, ""))


def _tpe(seed: int) -> BaseSampler:
    return TPESampler(multivariate=True, group=True, constant_liar=True, seed=seed)


def _history(study: optuna.Study) -> History | FrontHistory:
    if len(study.directions) == 1:
        return History(study.direction)
    return FrontHistory(study.directions[0], MAX_HISTORY, WINDOW)


class History:
    """Knows which trials stand for a history of any length; each is ranked once, when it has ended.

    The best are ranked as TPE does: complete ones by value, then pruned ones by how far they came.
    """

    def __init__(self, direction: StudyDirection) -> None:
        self._sign = -1.0 if direction is StudyDirection.MAXIMIZE else 1.0
        self._ranked: list[tuple[tuple[bool, int, float], int]] = []
        self._ended = EndedTrials()

    def window(self, trials: Sequence[FrozenTrial]) -> list[FrozenTrial]:
        """Return the best, the latest and those that run, in the order of their numbers.

        Args:
            trials: The whole history, by number; at least what it was at the last call.
        """
        for trial in self._ended.new(trials):
            bisect.insort(self._ranked, (self._rank(trial), trial.number))
        window = {*latest(trials, WINDOW), *(number for _, number in self._ranked[:WINDOW]), *self._ended.running}
        return [trials[number] for number in sorted(window)]

    def _rank(self, trial: FrozenTrial) -> tuple[bool, int, float]:
        pruned = trial.state is TrialState.PRUNED
        return pruned, -(trial.last_step or 0) if pruned else 0, self._sign * (trial.value or 0.0)


class ShownHistory(InMemoryStorage):
    """A storage that shows the trials it is given, uncopied, beside its own: adding them would copy each.

    Args:
        trials: In the order in which they are shown.
        first_number: Of its own trials; TPE leaves out of a history the trial whose number is that of its own.
    """

    def __init__(self, trials: Sequence[FrozenTrial], first_number: int) -> None:
        super().__init__()
        self._shown, self._first_number = trials, first_number

    def create_new_trial(self, study_id: int, template_trial: FrozenTrial | None = None) -> int:
        """Add a trial of its own."""
        trial_id = super().create_new_trial(study_id, template_trial)
        self.get_trial(trial_id).number += self._first_number
        return trial_id

    def get_all_trials(
        self, study_id: int, deepcopy: bool = True, states: Container[TrialState] | None = None
    ) -> list[FrozenTrial]:
        """Return the trials shown, then the storage's own."""
        shown = [trial for trial in self._shown if states is None or trial.state in states]
        return shown + super().get_all_trials(study_id, deepcopy, states)


def trial_name(number: int) -> str:
    """Return the trial id of an Optuna number."""
    return f"{number:05d}"
