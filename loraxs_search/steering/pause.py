"""pause [TRIAL...]: a trial, or the study, trains no further until it is continued."""

from __future__ import annotations

from collections.abc import Mapping
from typing import ClassVar

from loraxs_search.errors import CommandError
from loraxs_search.records import Command, Scalar, TrialState
from loraxs_search.steering._base import Accepted, SteeredStudy, Trials, Verb, check_unended, check_unstopped
from loraxs_search.steering.state import SteeringState


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
                hint=f"go on with `loraxs-search continue {study.name}`",
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
