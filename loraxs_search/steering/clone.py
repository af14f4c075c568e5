"""clone TRIAL --set NAME=VALUE... [--force]: a trial like another one."""

from __future__ import annotations

from collections.abc import Mapping
from typing import ClassVar

from loraxs_search.errors import CommandError
from loraxs_search.records import Command, Scalar
from loraxs_search.steering._base import Accepted, SteeredStudy, Trials, Verb
from loraxs_search.steering.asked import ask, check_budget, facts_of, refuse, space_of
from loraxs_search.steering.state import SteeringState


class Clone(Verb):
    """Has the study try the params of a trial, but for those given.

    With `force` what concerns the optimizer alone may lie outside of the space; the sampler learns nothing from such a
    trial. Nothing else can: hosts are prepared for the shapes that the space allows.
    """

    name = "clone"
    trials: ClassVar[Trials] = "one"
    options: ClassVar[Mapping[str, type[Scalar]]] = {"force": bool}
    takes_params = True
    after_training: ClassVar[bool] = True

    def check(self, command: Command, study: SteeredStudy) -> Accepted:
        from loraxs_search.search_space import clone_params  # late: `status` starts without it

        check_budget(study)
        (source,) = command.trial_ids
        if command.arguments.get("warm"):  # in the inbox of a study that an earlier version left
            raise CommandError(
                "`clone` must name params alone, but got `--warm`.",
                hint="leave it out: a clone trains from its first step on",
            )
        force = bool(command.arguments.get("force"))
        space = space_of(study)
        placed = clone_params(space, study.records[source].params, command.params, force=force)
        forced = clone_params(space, study.records[source].params, command.params, force=True)
        hint = "`--force` tries it all the same" if not forced.faults else "launch another study for other shapes"
        refuse(placed.faults, hint)
        facts = facts_of(study, placed.params, is_hidden=bool(placed.outside))
        return Accepted(f"a clone of trial {source} starts once a slot is free", facts)

    def apply(self, command: Command, facts: Mapping[str, Scalar], state: SteeringState) -> None:
        ask(command, facts, state)
