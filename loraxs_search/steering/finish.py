"""finish: a study ends without new trials."""

from __future__ import annotations

from collections.abc import Mapping

from loraxs_search.records import Command, Scalar
from loraxs_search.steering._base import Accepted, SteeredStudy, Verb, check_unstopped
from loraxs_search.steering.state import SteeringState


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
