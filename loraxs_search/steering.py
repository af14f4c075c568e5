"""Steering: what people ask of a running search, and how it is sent. All commands together give one state.

The driver journals a command before it decides on it, and its answer, which is its effect, before anything follows.
So after a kill at any moment each command is carried out once, and the state is rebuilt from the journal.
"""

from __future__ import annotations

import contextlib
import getpass
import platform
import time
import uuid
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, field, replace

from loraxs_search.errors import (
    CommandError,
    HomeError,
    StudyError,
    UsageError,
    counted,
    did_you_mean,
    one_of,
    shortened,
    unknown_name,
)
from loraxs_search.log.events import Answered, Commanded, Steered
from loraxs_search.log.study_log import StudyLog
from loraxs_search.records.codec import Scalar
from loraxs_search.records.search import Command, SearchPlan, seconds_of
from loraxs_search.records.trial import TrialState
from loraxs_search.studies.folder import StudyFolder, list_studies
from loraxs_search.studies.lease import Lease
from loraxs_search.studies.storage import Storage

_MAX_SHOWN = 10  # trials in a message
_PARAM = "params."  # before the name of a fact that is a param of an added trial
WAIT_S = 15.0
_LOOK_EVERY_S = 0.1


# ---- the state -------------------------------------------------------------------------------------------------------
@dataclass
class SteeringState:
    """Rebuilt from the journal's commands and their answers, in their order; nothing else changes it.

    Args:
        stopping: Trials that are to end, with the reason; it stays here once they have.
        at_once: Those of them that end at their next step, without a report.
        finishing: Why the study ends without new trials; None while it does not.
        asked: The `add` commands by id, in order, with the params that were given and checked. Each stays here once its
            trial has started, whose record names it.
        trials: How many the search is to propose itself, where that was extended.
        time_budget_s: The time budget of all drivers together, where that was extended.
        num_reopenings: Commands that asked for more after all trials had ended.
    """

    stopping: dict[str, str] = field(default_factory=dict)
    at_once: set[str] = field(default_factory=set)
    finishing: str | None = None
    asked: dict[str, Command] = field(default_factory=dict)
    trials: int | None = None
    time_budget_s: float | None = None
    num_reopenings: int = 0


@dataclass(frozen=True)
class SteeredStudy:
    """A study, and what the commands so far have made of it."""

    folder: StudyFolder
    journal: StudyLog
    state: SteeringState

    @property
    def plan(self) -> SearchPlan:
        """Its plan with the trials and the time that commands have given it; the space's text stays as launched."""
        plan, state = self.folder.info.search, self.state
        return replace(
            plan,
            trials=plan.trials if state.trials is None else state.trials,
            time_budget=plan.time_budget if state.time_budget_s is None else state.time_budget_s,
        )

    @property
    def whole_plan(self) -> SearchPlan:
        """The plan with all trials that the study will have.

        Those that people asked for are included; those that `finish` has kept from being proposed are not.
        """
        proposed = self.plan.trials if self.state.finishing is None else self.num_proposed
        return replace(self.plan, trials=proposed + len(self.state.asked))

    @property
    def num_proposed(self) -> int:
        """How many trials the search has proposed itself; those that people asked for come on top.

        The search asks at each of its turns: trials are looked through only where people have asked for some.
        """
        records = self.journal.records
        return len(records) - (sum(bool(record.command) for record in records.values()) if self.state.asked else 0)

    @property
    def unstarted(self) -> list[Command]:
        """The commands whose trials have not started, in their order."""
        asked = self.state.asked
        started = {record.command for record in self.journal.records.values()} if asked else set()
        return [each for each in asked.values() if each.command_id not in started]

    @property
    def has_ended(self) -> bool:
        """Whether the search has to begin anew for what comes now: trials have ended, or candidates are scored."""
        return self.journal.notice is not None or self.folder.candidates() is not None

    @property
    def is_to_reopen(self) -> bool:
        """Whether people have asked for more since its trials had ended, which its journal does not say yet."""
        return self.state.num_reopenings > self.journal.num_reopenings


def steered(folder: StudyFolder, journal: StudyLog | None = None) -> SteeredStudy:
    """Return a study with the state that the commands in its journal give."""
    study = SteeredStudy(folder, journal or folder.journal(), SteeringState())
    for command_id, command in study.journal.commands.items():
        if command_id in study.journal.answers:
            apply(command, study.journal.answers[command_id], study.state)
    return study


def open_commands(study: SteeredStudy) -> list[Command]:
    """Return the commands that no driver has answered yet, of those that reach the study through its folder."""
    taken, answers = study.journal.commands, study.journal.answers
    left_open = [command for command in taken.values() if command.command_id not in answers]
    return [*left_open, *(each for each in study.folder.inbox.waiting() if each.command_id not in taken)]


def foreseen(folder: StudyFolder) -> SteeredStudy:
    """Return a study as its commands will leave it once those that wait are decided on; nothing is written."""
    study = steered(folder)
    for command in open_commands(study):
        apply(command, decide(command, study), study.state)
    return study


# ---- verbs -----------------------------------------------------------------------------------------------------------
# A check says what happens now, as shown to users, and what was decided beside the command itself: `apply` gets these
# facts again whenever the journal is replayed.
_Accepted = tuple[str, dict[str, Scalar]]


def _check_stop(command: Command, study: SteeredStudy) -> _Accepted:
    for trial_id in command.trial_ids:
        record = study.journal.records[trial_id]
        if record.state is not TrialState.RUNNING:
            name, why = study.folder.name, f": {record.reason}" if record.reason else ""
            raise CommandError(
                f"Trial {trial_id} of study {name!r} has already ended, {record.state.value}{why}.",
                hint=f"`loraxs-search status {name}` shows how each trial stands",
            )
    when = "its next step" if command.arguments.get("now") else "its next report"
    if len(command.trial_ids) == 1:
        return f"trial {command.trial_ids[0]} ends at {when}", {}
    return f"trials {', '.join(command.trial_ids)} end, each at {when}", {}


def _check_finish(_: Command, study: SteeredStudy) -> _Accepted:
    if study.state.finishing is not None:
        raise CommandError(
            f"Study {study.folder.name!r} is about to end: {study.state.finishing}.",
            hint="its running trials train to their ends; `stop` ends one earlier",
        )
    added = len(study.unstarted)
    left = f"the running ones, and the {added} added with `add`," if added else "the running ones"
    return f"the search proposes no more trials; it ends when {left} have ended", {}


def _check_add(command: Command, study: SteeredStudy) -> _Accepted:
    from loraxs_search.search_space.space import place_given  # late: `status` starts without it

    _check_time(study)
    try:
        space = study.folder.space()
    except (StudyError, UsageError) as error:  # its file is damaged
        raise CommandError(error.message, hint=error.hint) from error
    source = "".join(command.trial_ids)
    placed, faults = place_given(space, command.params, study.journal.records[source].params if source else {})
    if faults:
        hint = f"`loraxs-search status {study.folder.name}` shows params that trials have"
        raise CommandError("\n".join(faults), hint=hint)
    given = ", ".join(f"{name} {value}" for name, value in placed.items())
    what = f"with {given}" if given else "that the sampler proposes"
    facts: dict[str, Scalar] = {f"{_PARAM}{name}": value for name, value in placed.items()}
    return f"a trial {what} starts once a slot is free", facts | ({"reopens": True} if study.has_ended else {})


def _check_extend(command: Command, study: SteeredStudy) -> _Accepted:
    name, trials, time_given = study.folder.name, command.arguments.get("trials"), command.arguments.get("time")
    if trials is None and time_given is None:
        raise CommandError(
            "`extend` needs --trials, --time or both, but got neither.",
            hint=f"for example `loraxs-search extend {name} --trials 12`",
        )
    if trials is not None and (not isinstance(trials, int) or isinstance(trials, bool) or trials < 1):
        raise CommandError(
            f"`--trials` must be a whole number of at least 1, but got {trials}.", hint="that many are added"
        )
    seconds: float | None = 0.0
    if time_given is not None:
        text = str(time_given).strip()
        seconds = seconds_of(text)
        if seconds is None and "_" not in text:  # Python reads 1_6 as 16
            with contextlib.suppress(ValueError):
                seconds = float(text)
        if seconds is None or not 0.0 < seconds < float("inf"):
            raise CommandError(f"`--time` must be a time such as 1h, 90m, 1h30m or 45s, but got {time_given}.")
    plan, so_far, has_ended = study.plan, study.num_proposed, study.has_ended
    has_more = so_far < plan.trials or any(record.is_cut for record in study.journal.records.values())
    if trials is None and has_ended and not (has_more or study.unstarted):
        raise CommandError(
            f"more `--time` gives study {name!r} nothing to do: it has had all of its {plan.trials} trials.",
            hint="add --trials",
        )
    budget_s = plan.time_budget or 0.0
    if seconds:
        budget_s = max(study.journal.spent_by_now_s, budget_s) + seconds
    else:
        _check_time(study)
    # An earlier command may have asked for more already: then its trials count.
    is_over = (has_ended and not study.is_to_reopen) or study.state.finishing is not None
    total = plan.trials if trials is None else int(trials) + (so_far if is_over else plan.trials)
    facts: dict[str, Scalar] = {"trials": total}
    if budget_s:
        facts["time_budget_s"] = budget_s
    if has_ended:
        facts["reopens"] = True
    within = f" within {budget_s:,.0f} s of work" if budget_s else ""
    return f"the search now proposes {counted(total, 'trial')} in all{within}, {so_far} of them so far", facts


def _check_time(study: SteeredStudy) -> None:
    """Refuse more trials where the time budget is used up."""
    budget_s = study.plan.time_budget
    if budget_s is not None and study.journal.spent_by_now_s >= budget_s:
        raise CommandError(
            f"Study {study.folder.name!r} has used up its time budget of {budget_s:g} s.",
            hint=f"give it more with `loraxs-search extend {study.folder.name} --time 1h`",
        )


@dataclass(frozen=True)
class _Verb:
    """One thing that can be asked of a running search.

    A command is carried out in two parts. `check` decides from the study and changes nothing; it raises CommandError
    where the command cannot be carried out. The driver journals its answer, which makes the command done, once and for
    good. `apply` then makes the effect part of the `SteeringState`, also in every later driver. The search follows the
    state: `StudySearcher.apply_commands`, whenever it has changed.

    Args:
        fewest, most: Trials that a command names; no limit where `most` is None.
        after_training: Whether it may come when the study has no more to train.
    """

    check: Callable[[Command, SteeredStudy], _Accepted]
    fewest: int = 0
    most: int | None = 0
    after_training: bool = False


VERBS = {
    # Ends trials as PRUNED: at their next report, or at their next step with `now`.
    "stop": _Verb(_check_stop, fewest=1, most=None),
    # Proposes no new trials. Running and added ones train to their ends; candidates follow.
    "finish": _Verb(_check_finish),
    # Tries params that a person gives. What is not given is as in the trial that the command names; without one, it is
    # what the sampler proposes. The trial comes on top of `search.trials`, and the sampler learns from it.
    "add": _Verb(_check_add, most=1, after_training=True),
    # Raises the budget. `trials` come on top of those that the study has or is still to have: of a study whose trials
    # have ended, or that was to finish, on top of those that it has proposed. `time` comes on top of the time budget,
    # or of the time spent where that is more. A study that was to finish continues; trials that the time budget had
    # ended continue first.
    "extend": _Verb(_check_extend, after_training=True),
}


def decide(command: Command, study: SteeredStudy) -> Answered:
    """Return the answer to a command; nothing is changed."""
    name, records, given = study.folder.name, study.journal.records, command.trial_ids
    try:
        if command.verb not in VERBS:
            raise CommandError(unknown_name("command", command.verb, VERBS), hint="see `loraxs-search --help`")
        verb = VERBS[command.verb]
        if study.journal.notice is not None and not verb.after_training:
            hint = f"`loraxs-search status {name}` shows them"
            if study.folder.candidates() is None:
                hint = f"refits and scores follow: Ctrl-C interrupts them, `loraxs-search resume {name}` continues"
            raise CommandError(
                f"All trials of study {name!r} have ended, so there is nothing to {command.verb}.", hint=hint
            )
        if len(given) < verb.fewest or (verb.most is not None and len(given) > verb.most):
            wanted = {0: "no trial", 1: "one trial", None: "one trial or more"}[verb.most]
            raise CommandError(
                f"`{command.verb}` must name {wanted} of study {name!r}, but got {', '.join(given) or 'none'}.",
                hint=f"see `loraxs-search {command.verb} --help`",
            )
        for trial_id in given:
            if trial_id not in records:
                known = one_of(list(records), trial_id).split(", ")
                shown = ", ".join(known[:_MAX_SHOWN]) + (", ..." if len(known) > _MAX_SHOWN else "")
                raise CommandError(
                    f"{did_you_mean(trial_id, records)}`trial` must be one of study {name!r}: {shown or 'none yet'},"
                    f" but got {shortened(trial_id)}.",
                    hint=f"`loraxs-search status {name}` lists them",
                )
        text, facts = verb.check(command, study)
    except CommandError as error:
        return Answered(command_id=command.command_id, state="refused", text=error.message, hint=error.hint or "")
    except HomeError:
        raise  # the disk, not the command: it is decided on once that is put right
    except Exception as error:  # noqa: BLE001  # what people type must end no search, nor each one that continues with it
        said = f"{type(error).__name__}: {error}"
        return Answered(command_id=command.command_id, state="refused", text=f"`{command.verb}` failed: {said}")
    return Answered(command_id=command.command_id, state="done", text=text, facts=facts)


def apply(command: Command, answer: Answered, state: SteeringState) -> None:
    """Make the effect of an answered command part of the state; a refused command has no effect.

    It reads no clock and no file, and never fails: every later driver repeats it as it replays the journal. A verb of a
    later version, in a journal that it wrote, is passed over.
    """
    if answer.state != "done":
        return
    facts, by_whom = answer.facts, f"by a person ({command.sent_by})" if command.sent_by else "by a person"
    match command.verb:
        case "stop":
            for trial_id in command.trial_ids:
                state.stopping.setdefault(trial_id, f"stopped {by_whom}")
                if command.arguments.get("now"):
                    state.at_once.add(trial_id)
        case "finish":
            state.finishing = f"finished {by_whom}"
        case "add":
            params = {name.removeprefix(_PARAM): value for name, value in facts.items() if name.startswith(_PARAM)}
            state.asked[command.command_id] = replace(command, params=params)
        case "extend":
            state.trials, state.finishing = int(facts["trials"]), None
            if "time_budget_s" in facts:
                state.time_budget_s = float(facts["time_budget_s"])
        case _:
            return
    state.num_reopenings += bool(facts.get("reopens"))


def describe(command: Command) -> str:
    """Return a command in a few words, with who sent it."""
    options = [
        f"--{name}" if value is True else f"--{name} {value}" for name, value in command.arguments.items() if value
    ]
    params = [f"--set {name}={value}" for name, value in command.params.items()]
    trials = [f"--from {name}" for name in command.trial_ids] if command.verb == "add" else command.trial_ids
    sender = f" ({command.sent_by})" if command.sent_by else ""
    return " ".join((command.verb, *trials, *options, *params)) + sender


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
        journal.append(answer)
        apply(command, answer, study.state)
        said = f"refused: {answer.text}" if answer.state == "refused" else answer.text
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


# ---- sending ---------------------------------------------------------------------------------------------------------
def read_params(pairs: Sequence[str]) -> dict[str, Scalar]:
    """Return what `--set NAME=VALUE` gives: numbers, true and false as such, else text.

    Raises:
        CommandError: one is no pair.
    """
    params: dict[str, Scalar] = {}
    for pair in pairs:
        name, equals, value = pair.partition("=")
        if not (name and equals):
            raise CommandError(f"`--set` must be NAME=VALUE, but got {shortened(pair)}.")
        params[name] = value
        for read in (int, float) if "_" not in value else ():  # Python reads 1_6 as 16
            with contextlib.suppress(ValueError):
                params[name] = read(value)
                break
        else:
            params[name] = {"true": True, "false": False}.get(value, value)
    return params


def new_command(
    verb: str,
    trials: Sequence[str | int] = (),
    arguments: Mapping[str, Scalar] | None = None,
    params: Mapping[str, Scalar] | None = None,
) -> Command:
    """Return a command of this user on this machine, with its own id; numpy's numbers become Python's.

    Args:
        trials: 3, "3" and "00003" name the same one.
    """
    try:
        user = getpass.getuser()
    except (KeyError, OSError):  # a user without a name, as containers have
        user = "a user"
    given, drawn = (
        {name: value.tolist() if hasattr(value, "tolist") else value for name, value in (values or {}).items()}
        for values in (arguments, params)
    )
    names = [str(trial) for trial in trials]
    names = [text.lstrip("0").zfill(5) if text.isascii() and text.isdigit() else text for text in names]
    trial_ids, sender = tuple(dict.fromkeys(names)), f"{user} on {platform.node()}"
    return Command(uuid.uuid4().hex, verb, trial_ids, given, drawn, sender, time.time())


def send(study: str, command: Command) -> Answered:
    """Leave a command for the driver of a study, and return its answer.

    It goes through the study's folder; of a study that another machine runs, through its storage. Where nobody runs the
    study, or its driver is busy for longer than `WAIT_S`, the command stays queued.

    Raises:
        CommandError: it is refused.
        StudyError: there is no such study here.
        HomeError: the study folder cannot be written.
        StorageError: the study's storage cannot be used.
    """
    if not StudyFolder.exists(study):
        raise StudyError(
            f"{did_you_mean(study, list_studies())}`study` must be one of this machine, but there is no {study!r}.",
            hint=f"type it on the machine that runs the study: `ssh MACHINE loraxs-search {command.verb} {study} ...`",
        )
    folder = StudyFolder.open(study)
    storage, answer = folder.info.storage, None
    if folder.is_running():
        folder.inbox.put(command)
        why = "the search is starting or busy: it will be carried out in a moment, or by the next `resume`; "
        why += f"`loraxs-search status {study}` shows what waits"
        journal, until = folder.journal(), time.monotonic() + WAIT_S
        while True:
            journal.refresh()
            answer = journal.answers.get(command.command_id)
            if answer is not None or time.monotonic() >= until:
                break
            time.sleep(_LOOK_EVERY_S)
    elif storage is not None and (place := Lease.holder_elsewhere(storage, study)):
        folder.inbox.put_elsewhere(Storage(storage), command)
        why = f"study {study!r} runs on {place}, which takes it from {storage} within seconds"
    else:
        # What is wrong with it, behind the commands that wait, is said now and not at the next resume.
        foretold = decide(command, foreseen(folder))
        if foretold.state == "refused":
            answer = foretold
        else:
            folder.inbox.put(command)
        why = f"nobody runs study {study!r} on this machine: `loraxs-search resume {study}` carries it out first"
    if answer is None:
        return Answered(command_id=command.command_id, state="queued", text=why)
    if answer.state == "refused":
        raise CommandError(answer.text, hint=answer.hint or None)
    return answer


def stop_trials(study: str, *trials: str | int, now: bool = False) -> Answered:
    """Stop trials of a running search: each ends as PRUNED at its next report, or `now` at its next step.

    Returns:
        The search's answer; `queued` where nobody runs the study, its driver is busy, or another machine runs it.
    Raises:
        CommandError: the search refuses it: the trial is unknown or has ended.
        StudyError: there is no such study on this machine.
    """
    return send(study, new_command("stop", trials, {"now": now}))


def finish_study(study: str) -> Answered:
    """Finish a running search: it proposes no new trials; the answer and errors are those of `stop_trials`."""
    return send(study, new_command("finish"))


def add_trial(study: str, params: Mapping[str, Scalar] | None = None, *, source: str | int | None = None) -> Answered:
    """Add a trial with these params to a search.

    It comes on top of `search.trials`, and the sampler learns from it. The answer and errors are those of
    `stop_trials`.

    Args:
        source: The trial whose params it has where `params` has none; by default the sampler proposes these.
    """
    return send(study, new_command("add", [] if source is None else [source], params=params))


def extend_study(study: str, *, trials: int | None = None, time: str | None = None) -> Answered:
    """Give a search more trials or more time; a finished one continues with `resume`.

    The answer and errors are those of `stop_trials`.

    Args:
        time: Such as `1h` or `90m`, beyond the time budget or the time spent.
    """
    given = {"trials": trials, "time": time}
    return send(study, new_command("extend", (), {name: value for name, value in given.items() if value is not None}))
