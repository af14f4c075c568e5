"""stop TRIAL... [--now]: a trial ends before its last step."""

from __future__ import annotations

from collections.abc import Mapping
from typing import ClassVar

from loraxs_search.records import Command, Scalar
from loraxs_search.steering._base import Accepted, SteeredStudy, Trials, Verb, check_unended
from loraxs_search.steering.state import SteeringState


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
