"""The verbs that steer what runs: `stop`, `pause`, `continue`, `finish`."""

from __future__ import annotations

from collections.abc import Mapping
from typing import ClassVar

from loraxs_search.errors import CommandError
from loraxs_search.records import Command, Scalar, TrialState
from loraxs_search.steering._base import Accepted, Trials, Verb, check_unended, check_unstopped
from loraxs_search.steering.state import SteeredStudy, SteeringState


class Stop(Verb):
    """Ends trials as PRUNED: at their next report, or at their next step with `now`; paused ones end as they are."""

    name = "stop"
    trials: ClassVar[Trials] = "some"
    options: ClassVar[Mapping[str, type[Scalar]]] = {"now": bool}

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
