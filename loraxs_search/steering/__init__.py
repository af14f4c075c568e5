"""Steering: what people ask of a running search. All commands together give one state.

The driver journals a command before it decides on it, and its answer, which is its effect, before anything follows.
So after a kill at any moment each command is carried out once, and the state is rebuilt from the journal.
"""

from __future__ import annotations

import contextlib
from abc import ABC, abstractmethod
from collections.abc import Callable, Mapping
from typing import ClassVar

from loraxs_search.errors import (
    CommandError,
    HomeError,
    SpaceError,
    StudyError,
    counted,
    did_you_mean,
    one_of,
    shortened,
    unknown_name,
)
from loraxs_search.log.events import Answered, Commanded, Steered
from loraxs_search.log.study_log import StudyLog
from loraxs_search.paths import seconds_of
from loraxs_search.records.literals import Scalar
from loraxs_search.records.search import AnswerState, Command, CommandAnswer, SearchPlan
from loraxs_search.records.trial import TrialState
from loraxs_search.steering.state import (
    AskedTrial,
    SteeredStudy,
    SteeringState,
    check_time,
    has_ended,
    num_proposed,
    planned,
    unstarted,
)
from loraxs_search.studies.folder import StudyFolder

_MAX_SHOWN = 10  # trials in a message


# What happens now, as shown to users, and what was decided beside the command itself: `apply` gets these facts again
# whenever the journal is replayed.
Accepted = tuple[str, Mapping[str, Scalar]]


class Verb(ABC):
    """One thing that can be asked of a running search.

    A command is carried out in two parts. `check` decides from the study and changes nothing. The driver
    journals its answer, which makes the command done, once and for good. `apply` then makes the effect part of the
    `SteeringState`, from command and facts: also in every later driver, as it replays the journal. So it reads
    no clock, no file, and never fails. The search follows the state: `StudySearcher.apply_commands`, whenever it has
    changed.

    An entry is a class here, and a name in `VERBS` of `steering/__init__.py`.

    Args:
        name: What people type.
        trials: The fewest and the most trials that it names; None for any number.
        after_training: Whether it may come when the study has no more to train.
    """

    name: ClassVar[str]
    trials: ClassVar[tuple[int, int | None]] = (0, 0)
    after_training: ClassVar[bool] = False

    @abstractmethod
    def check(self, command: Command, study: SteeredStudy) -> Accepted:
        """Decide on a command, whose trials are known to be the study's.

        Raises:
            CommandError: it cannot be carried out; the message has the law, the value and the place.
        """

    @abstractmethod
    def apply(self, command: Command, facts: Mapping[str, Scalar], state: SteeringState) -> None:
        """Make the effect of an accepted command part of the state."""


class Stop(Verb):
    """Ends trials as PRUNED: at their next report, or at their next step with `now`."""

    name = "stop"
    trials: ClassVar[tuple[int, int | None]] = (1, None)

    def check(self, command: Command, study: SteeredStudy) -> Accepted:
        for trial_id in command.trial_ids:
            record = study.records[trial_id]
            if record.state is not TrialState.RUNNING:
                why = f": {record.reason}" if record.reason else ""
                raise CommandError(
                    f"Trial {trial_id} of study {study.name!r} has already ended, {record.state.value}{why}.",
                    hint=f"`loraxs-search status {study.name}` shows how each trial stands",
                )
        when = "its next step" if command.arguments.get("now") else "its next report"
        if len(command.trial_ids) == 1:
            return f"trial {command.trial_ids[0]} ends at {when}", {}
        return f"trials {', '.join(command.trial_ids)} end, each at {when}", {}

    def apply(self, command: Command, facts: Mapping[str, Scalar], state: SteeringState) -> None:
        for trial_id in command.trial_ids:
            state.stopping.setdefault(trial_id, f"stopped by a person{_who(command)}")
            if command.arguments.get("now"):
                state.at_once.add(trial_id)


class Finish(Verb):
    """Proposes no new trials. Running and added ones train to their ends; candidates follow."""

    name = "finish"

    def check(self, command: Command, study: SteeredStudy) -> Accepted:
        if study.state.finishing is not None:
            raise CommandError(
                f"Study {study.name!r} is about to end: {study.state.finishing}.",
                hint="its running trials train to their ends; `stop` ends one earlier",
            )
        added = len(unstarted(study.records, study.state))
        left = f"the running ones, and the {added} added with `add`," if added else "the running ones"
        return f"the search proposes no more trials; it ends when {left} have ended", {}

    def apply(self, command: Command, facts: Mapping[str, Scalar], state: SteeringState) -> None:
        state.finishing = f"finished by a person{_who(command)}"


def _who(command: Command) -> str:
    return f" ({command.sent_by})" if command.sent_by else ""


class Extend(Verb):
    """Raises the budget of a study, a finished one too.

    `trials` come on top of those that the study has or is still to have: of a study whose trials have ended, or that
    was to finish, on top of those that it has proposed. `time` comes on top of the time budget, or of the time
    spent where that is more; a study without a time budget gets one. A study that was to finish continues. Trials that
    the time budget had ended continue first.

    The space's text stays as it was launched: what counts is the plan that `state.extended` returns.
    """

    name = "extend"
    after_training: ClassVar[bool] = True

    def check(self, command: Command, study: SteeredStudy) -> Accepted:
        trials, time = command.arguments.get("trials"), command.arguments.get("time")
        if trials is None and time is None:
            raise CommandError(
                "`extend` needs --trials, --time or both, but got neither.",
                hint=f"for example `loraxs-search extend {study.name} --trials 12`",
            )
        if trials is not None and (not isinstance(trials, int) or isinstance(trials, bool) or trials < 1):
            raise CommandError(
                f"`--trials` must be a whole number of at least 1, but got {trials}.", hint="that many are added"
            )
        plan, seconds = study.plan, 0.0 if time is None else _seconds(time)
        so_far = num_proposed(study.records, study.state)
        has_more = so_far < plan.trials or any(record.is_cut for record in study.records.values())
        if trials is None and has_ended(study) and not (has_more or unstarted(study.records, study.state)):
            raise CommandError(
                f"more `--time` gives study {study.name!r} nothing to do: it has had all of its {plan.trials} trials.",
                hint="add --trials",
            )
        if seconds:
            budget_s = max(study.journal.spent_by_now_s, plan.time_budget or 0.0) + seconds
        else:
            check_time(study)
            budget_s = plan.time_budget or 0.0
        # An earlier command may have asked for more already: then its trials count.
        is_open = study.state.num_reopenings > study.journal.num_reopenings
        is_over = (has_ended(study) and not is_open) or study.state.finishing is not None
        total = plan.trials if trials is None else int(trials) + (so_far if is_over else plan.trials)
        facts: dict[str, Scalar] = {"trials": total}
        if budget_s:
            facts["time_budget_s"] = budget_s
        within = f" within {budget_s:,.0f} s of work" if budget_s else ""
        text = f"the search now proposes {counted(total, 'trial')} in all{within}, {so_far} of them so far"
        return text, facts | ({"reopens": True} if has_ended(study) else {})

    def apply(self, command: Command, facts: Mapping[str, Scalar], state: SteeringState) -> None:
        state.trials = int(facts["trials"])
        state.time_budget_s = float(facts["time_budget_s"]) if "time_budget_s" in facts else state.time_budget_s
        state.finishing = None
        state.num_reopenings += bool(facts.get("reopens"))


def _seconds(text: Scalar) -> float:
    """Return the seconds of `1d`, `1h30m`, `45s` or a number of seconds.

    Raises:
        CommandError: it is none of these.
    """
    given = str(text).strip()
    seconds = seconds_of(given)
    if seconds is None and "_" not in given:  # Python reads 1_6 as 16
        with contextlib.suppress(ValueError):
            seconds = float(given)
    if seconds is None or not 0.0 < seconds < float("inf"):
        raise CommandError(f"`--time` must be a time such as 1h, 90m, 1h30m or 45s, but got {text}.")
    return seconds


_PARAM = "params."


class Add(Verb):
    """Has the study try params that a person gives, beside those that the sampler proposes.

    What is not given is as in the trial that the command names; without one, it is what the sampler proposes for the
    next trial. The trial comes on top of `search.trials`, and the sampler learns from it as from its own. It starts
    once a slot is free, before new proposals.
    """

    name = "add"
    trials: ClassVar[tuple[int, int | None]] = (0, 1)
    after_training: ClassVar[bool] = True

    def check(self, command: Command, study: SteeredStudy) -> Accepted:
        from loraxs_search.search_space.space import place_given  # late: `status` starts without it

        check_time(study)
        try:
            space = study.folder.space()
        except (StudyError, SpaceError) as error:  # its file is damaged
            raise CommandError(error.message, hint=error.hint) from error
        source = "".join(command.trial_ids)
        placed, faults = place_given(space, command.params, study.records[source].params if source else {})
        if faults:
            hint = f"`loraxs-search status {study.name}` shows params that trials have"
            raise CommandError("\n".join(faults), hint=hint)
        given = ", ".join(f"{name} {value}" for name, value in placed.items())
        what = f"with {given}" if given else "that the sampler proposes"
        facts: dict[str, Scalar] = {f"{_PARAM}{name}": value for name, value in placed.items()}
        return f"a trial {what} starts once a slot is free", facts | ({"reopens": True} if has_ended(study) else {})

    def apply(self, command: Command, facts: Mapping[str, Scalar], state: SteeringState) -> None:
        params = {name.removeprefix(_PARAM): value for name, value in facts.items() if name.startswith(_PARAM)}
        state.asked[command.command_id] = AskedTrial(command.command_id, params, "".join(command.trial_ids))
        state.num_reopenings += bool(facts.get("reopens"))


VERBS: Mapping[str, Verb] = {verb.name: verb for verb in (Stop(), Finish(), Add(), Extend())}


def steered(folder: StudyFolder, journal: StudyLog) -> SteeredStudy:
    """Return a study with the state that the commands in its journal give."""
    state = SteeringState()
    for command_id, command in journal.commands.items():
        if command_id in journal.answers:
            apply(command, journal.answers[command_id], state)
    return SteeredStudy(folder, journal, state)


def whole_plan(folder: StudyFolder, journal: StudyLog) -> SearchPlan:
    """Return a study's plan as commands have extended it; its `trials` are all that the study will have."""
    return planned(folder.info.search, steered(folder, journal).state, journal.records)


def open_commands(study: SteeredStudy) -> list[Command]:
    """Return the commands that no driver has answered yet, of those that reach the study through its folder."""
    taken, answers = study.journal.commands, study.journal.answers
    left_open = [command for command in taken.values() if command.command_id not in answers]
    return [*left_open, *(each for each in study.folder.inbox.waiting() if each.command_id not in taken)]


def foreseen(folder: StudyFolder) -> SteeredStudy:
    """Return a study as its commands will leave it once those that wait are decided on; nothing is written."""
    study = steered(folder, folder.journal())
    for command in open_commands(study):
        apply(command, decide(command, study), study.state)
    return study


def describe(command: Command) -> str:
    """Return a command in a few words, with who sent it."""
    options = [
        f"--{name}" if value is True else f"--{name} {value}" for name, value in command.arguments.items() if value
    ]
    params = [f"--set {name}={value}" for name, value in command.params.items()]
    trials = [f"--from {name}" for name in command.trial_ids] if command.verb == "add" else command.trial_ids
    return " ".join((command.verb, *trials, *options, *params)) + _who(command)


def decide(command: Command, study: SteeredStudy) -> CommandAnswer:
    """Return the answer to a command; nothing is changed."""
    try:
        if command.verb not in VERBS:
            raise CommandError(unknown_name("command", command.verb, VERBS), hint="see `loraxs-search --help`")
        verb = VERBS[command.verb]
        if study.trials_have_ended and not verb.after_training:
            name = study.name
            hint = f"`loraxs-search status {name}` shows them"
            if study.folder.candidates() is None:
                hint = f"refits and scores follow: Ctrl-C interrupts them, `loraxs-search resume {name}` continues"
            raise CommandError(
                f"All trials of study {name!r} have ended, so there is nothing to {verb.name}.", hint=hint
            )
        given, (fewest, most) = command.trial_ids, verb.trials
        if len(given) < fewest or (most is not None and len(given) > most):
            wanted = "no trial" if most == 0 else "one trial" if most == 1 else "one trial or more"
            raise CommandError(
                f"`{verb.name}` must name {wanted} of study {study.name!r}, but got {', '.join(given) or 'none'}.",
                hint=f"see `loraxs-search {verb.name} --help`",
            )
        for trial_id in given:
            if trial_id not in study.records:
                known = one_of(list(study.records), trial_id).split(", ")
                shown = ", ".join(known[:_MAX_SHOWN]) + (", ..." if len(known) > _MAX_SHOWN else "")
                raise CommandError(
                    f"{did_you_mean(trial_id, study.records)}`trial` must be one of study {study.name!r}: "
                    f"{shown or 'none yet'}, but got {shortened(trial_id)}.",
                    hint=f"`loraxs-search status {study.name}` lists them",
                )
        text, facts = verb.check(command, study)
    except CommandError as error:
        return CommandAnswer(command.command_id, AnswerState.REFUSED, error.message, error.hint or "")
    except HomeError:
        raise  # the disk, not the command: it is decided on once that is put right
    except Exception as error:  # noqa: BLE001  # what people type must end no search, nor each one that continues with it
        said = f"{type(error).__name__}: {error}"
        return CommandAnswer(command.command_id, AnswerState.REFUSED, f"`{command.verb}` failed: {said}")
    return CommandAnswer(command.command_id, AnswerState.DONE, text, facts=facts)


def apply(command: Command, answer: CommandAnswer, state: SteeringState) -> None:
    """Make the effect of an answered command part of the state; a refused command has no effect.

    A verb of a later version, in a journal that it wrote, is passed over.
    """
    if answer.state is AnswerState.DONE and command.verb in VERBS:
        VERBS[command.verb].apply(command, answer.facts, state)


def take_commands(study: SteeredStudy, say: Callable[[Steered], None] = lambda _: None) -> bool:
    """Decide on whatever waits in the study's inbox, left open by an earlier driver first; return whether any did.

    The order of what is written is what makes each command count once. A command is in the journal before anything is
    decided, its answer before anything follows, and only then it leaves the inbox. A driver that is killed in between
    leaves an open command, which the next one decides on, or one in the inbox whose id the journal knows.

    Args:
        say: Called with each answer, and with why the search ends without new trials.
    Raises:
        HomeError: the journal cannot be written; nothing has followed from a command that it does not have.
    """
    journal, inbox = study.journal, study.folder.inbox

    def answer(command: Command) -> bool:
        if command.command_id in journal.answers:
            return False
        answer = decide(command, study)
        journal.append(Answered(answer=answer))
        apply(command, answer, study.state)
        said = f"refused: {answer.text}" if answer.state is AnswerState.REFUSED else answer.text
        say(Steered(text=f"{describe(command)}: {said}", finishing=study.state.finishing or ""))
        return True

    has_answered = False
    for command in list(journal.commands.values()):
        has_answered = answer(command) or has_answered
    for command in inbox.waiting(set_aside=True):
        journal.append(Commanded(command=command))
        has_answered = answer(command) or has_answered
        inbox.remove(command.command_id)
    return has_answered


def asks_for_more(study: SteeredStudy) -> bool:
    """Whether people have asked a study for more since its trials had ended, or it is continuing for that already."""
    return study.journal.is_reopened or study.state.num_reopenings > study.journal.num_reopenings
