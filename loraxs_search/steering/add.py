"""add --set NAME=VALUE...: a trial of one's own."""

from __future__ import annotations

from collections.abc import Mapping
from typing import ClassVar

from loraxs_search.records import Command, Scalar
from loraxs_search.steering._base import Accepted, SteeredStudy, Verb
from loraxs_search.steering.asked import ask, check_budget, facts_of, refuse, space_of
from loraxs_search.steering.state import SteeringState


class Add(Verb):
    """Has the study try params that a person gives, beside those that the sampler proposes.

    What is not given is what the sampler proposes for the next trial. The trial comes on top of `search.trials`, and
    the sampler learns from it as from its own. It starts once a slot is free, before new proposals.
    """

    name = "add"
    takes_params = True
    after_training: ClassVar[bool] = True

    def check(self, command: Command, study: SteeredStudy) -> Accepted:
        from loraxs_search.search_space import place_given  # late: `status` starts without it

        check_budget(study)
        placed = place_given(space_of(study), command.params)
        refuse(placed.faults, f"`loraxs-search status {study.name}` shows params that trials have")
        given = ", ".join(f"{name} {value}" for name, value in placed.params.items())
        text = f"a trial with {given} starts" if given else "a trial that the sampler proposes starts"
        return Accepted(f"{text} once a slot is free", facts_of(study, placed.params))

    def apply(self, command: Command, facts: Mapping[str, Scalar], state: SteeringState) -> None:
        ask(command, facts, state)
