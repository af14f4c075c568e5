"""clone TRIAL --set NAME=VALUE... [--warm] [--force]: a trial like another one."""

from __future__ import annotations

from collections.abc import Mapping
from typing import ClassVar

from loraxs_search.errors import CommandError
from loraxs_search.records import Command, Scalar
from loraxs_search.steering._base import Accepted, SteeredStudy, Trials, Verb
from loraxs_search.steering.asked import ask, check_budget, facts_of, readable, refuse, space_of
from loraxs_search.steering.state import SteeringState
from loraxs_search.studies import read_reports
from loraxs_search.studies.snapshots import is_whole


class Clone(Verb):
    """Has the study try the params of a trial, but for those given.

    With `warm` it goes on with that trial's state: adapter, head, the optimizer's moments, and the step count, at the
    last report when the command is decided on. It has that trial's seed, and so the rows that would have come next;
    learning rates follow its own schedule from that step on. The sampler learns nothing from a warm clone, whose params
    do not explain its scores, nor from one outside of the space.

    With `force` what concerns the optimizer alone may lie outside of the space. Nothing else can: hosts are prepared
    for the shapes that the space allows, and a state of another shape, or in other factors, would mean something else.
    """

    name = "clone"
    trials: ClassVar[Trials] = "one"
    options: ClassVar[Mapping[str, type[Scalar]]] = {"warm": bool, "force": bool}
    takes_params = True
    after_training: ClassVar[bool] = True

    def check(self, command: Command, study: SteeredStudy) -> Accepted:
        from loraxs_search.search_space import clone_params  # late: `status` starts without it

        check_budget(study)
        (source,) = command.trial_ids
        warm, force = bool(command.arguments.get("warm")), bool(command.arguments.get("force"))
        space = space_of(study)
        placed = clone_params(space, study.records[source].params, command.params, warm=warm, force=force)
        forced = clone_params(space, study.records[source].params, command.params, warm=warm, force=True)
        hint = "`--force` tries it all the same" if not forced.faults else "launch another study for other shapes"
        refuse(placed.faults, hint)
        step = _keep_state(command, study, source) if warm else 0
        begins = f", beginning with its state at step {step}," if warm else ""
        facts = facts_of(study, placed.params, step=step, is_hidden=warm or bool(placed.outside))
        return Accepted(f"a clone of trial {source}{begins} starts once a slot is free", facts)

    def apply(self, command: Command, facts: Mapping[str, Scalar], state: SteeringState) -> None:
        ask(command, facts, state)


def _keep_state(command: Command, study: SteeredStudy, source: str) -> int:
    """Keep a trial's state for its clone, since the trial may train on; return its step.

    The file means nothing until the answer is in the journal: decided on again, the command replaces it.

    Raises:
        CommandError: there is no state to begin with.
    """
    with readable():
        snapshot = study.folder.read_snapshot(source)
        reports = read_reports(snapshot) if snapshot else ()
    where = f"trial {source} of study {study.name!r}"
    if snapshot is None or not reports:
        raise CommandError(
            f"`--warm` needs a trial that has reported, but {where} has no state yet.",
            hint="wait for its first report, or leave out --warm",
        )
    step, max_steps = reports[-1].step, study.folder.info.search.max_steps
    if step >= max_steps:
        raise CommandError(
            f"`--warm` needs a trial with steps left, but {where} has trained all {max_steps}.",
            hint="leave out --warm",
        )
    if not is_whole(snapshot):
        raise CommandError(
            f"`--warm` needs a state that is in the study folder, but that of {where} is so large that it stays on a "
            "node (`search.max_state_mb`).",
            hint="leave out --warm",
        )
    study.folder.write_clone_state(command.command_id, snapshot)
    return step
