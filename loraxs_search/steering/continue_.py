"""continue [TRIAL...]: what was paused goes on."""

from __future__ import annotations

from collections.abc import Mapping
from typing import ClassVar

from loraxs_search.errors import CommandError
from loraxs_search.records import Command, Scalar
from loraxs_search.steering._base import Accepted, SteeredStudy, Trials, Verb, check_unended, check_unstopped
from loraxs_search.steering.state import SteeringState


class Continue(Verb):
    """Has paused trials go on from their last report, as slots are free. Without trials it takes the whole study."""

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
            return Accepted("the study goes on")
        trials = ", ".join(command.trial_ids)
        if len(command.trial_ids) == 1:
            return Accepted(f"trial {trials} goes on from its last report, once a slot is free")
        return Accepted(f"trials {trials} go on from their last reports, once slots are free")

    def apply(self, command: Command, facts: Mapping[str, Scalar], state: SteeringState) -> None:
        if command.trial_ids:
            state.paused.difference_update(command.trial_ids)
        else:
            state.paused.clear()
            state.is_paused = False
