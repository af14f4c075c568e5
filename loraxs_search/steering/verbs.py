"""The verbs: those that steer what runs, and those that ask for more (`add`, `clone`, `extend`)."""

from __future__ import annotations

import contextlib
from collections.abc import Mapping
from typing import TYPE_CHECKING, ClassVar

from loraxs_search.errors import CommandError, SpaceError, StudyError, counted
from loraxs_search.paths import seconds_of
from loraxs_search.records import Command, Scalar, TrialState
from loraxs_search.steering._base import Accepted, Trials, Verb, check_unended, check_unstopped
from loraxs_search.steering.state import (
    AskedTrial,
    SteeredStudy,
    SteeringState,
    check_time,
    has_ended,
    num_proposed,
)

if TYPE_CHECKING:
    from loraxs_search.search_space import Space


class Stop(Verb):
    """Ends trials as PRUNED: at their next report, or at their next step with `now`; paused ones end as they are."""

    name = "stop"
    trials: ClassVar[Trials] = "some"

    def check(self, command: Command, study: SteeredStudy) -> Accepted:
        check_unended(command, study)
        when = "its next step" if command.arguments.get("now") else "its next report"
        if len(command.trial_ids) == 1:
            return Accepted(f"trial {command.trial_ids[0]} ends at {when}")
        return Accepted(f"trials {', '.join(command.trial_ids)} end, each at {when}")

    def apply(self, command: Command, facts: Mapping[str, Scalar], state: SteeringState) -> None:
        who = f" ({command.sent_by})" if command.sent_by else ""
        for trial_id in command.trial_ids:
            state.stopping.setdefault(trial_id, f"stopped by a person{who}")
            state.paused.discard(trial_id)
            if command.arguments.get("now"):
                state.at_once.add(trial_id)


class Pause(Verb):
    """Leaves trials as a kill would: unfinished, at their last report. Without trials it takes the whole study."""

    name = "pause"
    trials: ClassVar[Trials] = "any"

    def check(self, command: Command, study: SteeredStudy) -> Accepted:
        check_unended(command, study)
        check_unstopped(command, study)
        named = [trial_id for trial_id in command.trial_ids if trial_id in study.state.paused]
        if named or (not command.trial_ids and study.state.is_paused):
            what = f"Trial {named[0]} of study" if named else "Study"
            raise CommandError(
                f"{what} {study.name!r} is already paused.",
                hint=f"continue with `loraxs-search continue {study.name}`",
            )
        if not command.trial_ids:
            running = [each.trial_id for each in study.records.values() if each.state is TrialState.RUNNING]
            facts = {"trials": ",".join(each for each in running if each not in study.state.stopping)}
            return Accepted("the study pauses: no new trials, and each running one pauses at its next report", facts)
        trials = ", ".join(command.trial_ids)
        if len(command.trial_ids) == 1:
            return Accepted(f"trial {trials} pauses at its next report, and takes no slot until it is continued")
        return Accepted(f"trials {trials} pause, each at its next report, and take no slots until they are continued")

    def apply(self, command: Command, facts: Mapping[str, Scalar], state: SteeringState) -> None:
        state.is_paused = state.is_paused or not command.trial_ids
        state.paused |= {*command.trial_ids, *filter(None, str(facts.get("trials", "")).split(","))}


class Continue(Verb):
    """Has paused trials continue from their last report, as slots are free. Without trials it takes the whole study."""

    name = "continue"
    trials: ClassVar[Trials] = "any"

    def check(self, command: Command, study: SteeredStudy) -> Accepted:
        check_unended(command, study)
        check_unstopped(command, study)
        state = study.state
        running = [trial_id for trial_id in command.trial_ids if trial_id not in state.paused]
        if running or not (command.trial_ids or state.is_paused or study.paused):
            what = f"Trial {running[0]} is not" if running else "Nothing is"
            raise CommandError(
                f"{what} paused in study {study.name!r}.",
                hint=f"`loraxs-search status {study.name}` shows what is paused",
            )
        if not command.trial_ids:
            return Accepted("the study continues")
        trials = ", ".join(command.trial_ids)
        if len(command.trial_ids) == 1:
            return Accepted(f"trial {trials} continues from its last report, once a slot is free")
        return Accepted(f"trials {trials} continue from their last reports, once slots are free")

    def apply(self, command: Command, facts: Mapping[str, Scalar], state: SteeringState) -> None:
        if command.trial_ids:
            state.paused.difference_update(command.trial_ids)
        else:
            state.paused.clear()
            state.is_paused = False


class Finish(Verb):
    """Proposes no new trials. Running ones train to their ends, paused ones end as they are; candidates follow."""

    name = "finish"

    def check(self, command: Command, study: SteeredStudy) -> Accepted:
        check_unstopped(command, study)
        return Accepted("no new trials; the study ends when the running ones have ended")

    def apply(self, command: Command, facts: Mapping[str, Scalar], state: SteeringState) -> None:
        who = f" ({command.sent_by})" if command.sent_by else ""
        state.finishing = f"finished by a person{who}"
        for trial_id in state.paused:  # also one that has not come to the report at which it would have paused
            state.stopping.setdefault(trial_id, f"{state.finishing}, while it was paused")
        state.paused.clear()
        state.is_paused = False


_PARAM = "params."


def _space_of(study: SteeredStudy) -> Space:
    """Return the space that a study searches.

    Raises:
        CommandError: its file is damaged.
    """
    from loraxs_search.studies.stored_space import stored_space

    try:
        return stored_space(study.folder)
    except (StudyError, SpaceError) as error:
        raise CommandError(error.message, hint=error.hint) from error


def _facts_of(study: SteeredStudy, params: Mapping[str, Scalar], **others: Scalar) -> dict[str, Scalar]:
    """Return what a verb decided about a trial: its params, and whether the study begins anew for it."""
    facts = {f"{_PARAM}{name}": value for name, value in params.items()} | others
    return facts | ({"reopens": True} if has_ended(study) else {})


class Extend(Verb):
    """Raises the budget of a study, a finished one too.

    `trials` come on top of those that the study has or is still to have: of a study whose trials have ended, or that
    was to finish, on top of those that it has proposed. `time` comes on top of the time budget, or of the time
    spent where that is more; a study without a time budget gets one. A study that was to finish continues.

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
        if trials is None and has_ended(study) and not _wants_new(study):
            raise CommandError(
                f"`--time` alone gives study {study.name!r} nothing to do: it has had all of its {plan.trials}.",
                hint="add --trials",
            )
        budget_s = _budget_s(study, seconds)
        total = plan.trials if trials is None else int(trials) + _base(study)
        facts: dict[str, Scalar] = {"trials": total}
        if budget_s is not None:
            facts["time_budget_s"] = budget_s
        within = "" if budget_s is None else f" within {budget_s:,.0f} s of work"
        so_far = num_proposed(study.records, study.state)
        text = f"the search now proposes {counted(total, 'trial')} in all{within}, {so_far} of them so far"
        return Accepted(text, facts | ({"reopens": True} if has_ended(study) else {}))

    def apply(self, command: Command, facts: Mapping[str, Scalar], state: SteeringState) -> None:
        state.trials = int(facts["trials"])
        state.time_budget_s = float(facts["time_budget_s"]) if "time_budget_s" in facts else state.time_budget_s
        state.finishing = None
        state.num_reopenings += bool(facts.get("reopens"))


def _base(study: SteeredStudy) -> int:
    """Return what more trials are counted from."""
    is_open = study.state.num_reopenings > study.journal.num_reopenings  # an earlier command has asked for more
    is_over = (has_ended(study) and not is_open) or study.state.finishing is not None
    return num_proposed(study.records, study.state) if is_over else study.plan.trials


def _wants_new(study: SteeredStudy) -> bool:
    """Whether trials are left to start: the search's own, or ones that people asked for when the time was used up."""
    started = {record.command for record in study.records.values()}
    return num_proposed(study.records, study.state) < study.plan.trials or not started.issuperset(study.state.asked)


def _budget_s(study: SteeredStudy, more_s: float) -> float | None:
    """Return the new time budget; None if there is none.

    Raises:
        CommandError: the study's is used up, and no time comes to it.
    """
    if more_s:
        return max(study.journal.spent_by_now_s, study.plan.time_budget_s or 0.0) + more_s
    check_time(study)
    return study.plan.time_budget_s


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


class _Asking(Verb):
    """A verb that asks for a trial."""

    after_training: ClassVar[bool] = True

    def apply(self, command: Command, facts: Mapping[str, Scalar], state: SteeringState) -> None:
        params = {name.removeprefix(_PARAM): value for name, value in facts.items() if name.startswith(_PARAM)}
        source = command.trial_ids[0] if command.trial_ids else ""
        is_hidden = bool(facts.get("is_hidden", False))
        state.asked[command.command_id] = AskedTrial(command.command_id, params, source, is_hidden)
        state.num_reopenings += bool(facts.get("reopens"))


class Add(_Asking):
    """Has the study try params that a person gives, beside those that the sampler proposes.

    What is not given is what the sampler proposes for the next trial. The trial comes on top of `search.trials`, and
    the sampler learns from it as from its own. It starts once a slot is free, before new proposals.
    """

    name = "add"

    def check(self, command: Command, study: SteeredStudy) -> Accepted:
        from loraxs_search.search_space import place_given  # late: `status` starts without it

        check_time(study)
        placed = place_given(_space_of(study), command.params)
        if placed.faults:
            hint = f"`loraxs-search status {study.name}` shows params that trials have"
            raise CommandError("\n".join(placed.faults), hint=hint)
        given = ", ".join(f"{name} {value}" for name, value in placed.params.items())
        text = f"a trial with {given} starts" if given else "a trial that the sampler proposes starts"
        return Accepted(f"{text} once a slot is free", _facts_of(study, placed.params))


class Clone(_Asking):
    """Has the study try the params of a trial, but for those given.

    With `force` what concerns the optimizer alone may lie outside of the space; the sampler learns nothing from such a
    trial. Nothing else can: hosts are prepared for the shapes that the space allows.
    """

    name = "clone"
    trials: ClassVar[Trials] = "one"

    def check(self, command: Command, study: SteeredStudy) -> Accepted:
        from loraxs_search.search_space import clone_params  # late: `status` starts without it

        check_time(study)
        (source,) = command.trial_ids
        force = bool(command.arguments.get("force"))
        space, own = _space_of(study), study.records[source].params
        placed = clone_params(space, own, command.params, force=force)
        if placed.faults:
            can_force = not clone_params(space, own, command.params, force=True).faults
            hint = "`--force` tries it all the same" if can_force else "launch another study for other shapes"
            raise CommandError("\n".join(placed.faults), hint=hint)
        facts = _facts_of(study, placed.params, is_hidden=bool(placed.outside))
        return Accepted(f"a clone of trial {source} starts once a slot is free", facts)
