"""The verbs that steer a search: stop, pause, continue, finish, add, clone, extend"""

from __future__ import annotations

import sys
from collections.abc import Mapping, Sequence
from typing import Annotated

import typer

from loraxs_search.cli._output import JsonOption, StudyArgument, TrackingOption, emit
from loraxs_search.records import AnswerState, CommandAnswer, Scalar

TrialsArgument = Annotated[list[str], typer.Argument(help="Trials, such as 00003.", metavar="TRIAL...")]
ParamOption = Annotated[
    list[str] | None,
    typer.Option("--set", help="A param of the trial, e.g. --set rank=16; repeatable.", metavar="NAME=VALUE"),
]
AnyTrialsArgument = Annotated[
    list[str] | None,
    typer.Argument(help="Trials, such as 00003; default: the whole study.", metavar="[TRIAL...]"),
]


def _send_command(
    study: str,
    verb: str,
    trial_ids: Sequence[str] = (),
    arguments: Mapping[str, Scalar] | None = None,
    params: Mapping[str, Scalar] | None = None,
    *,
    tracking_uri: str | None = None,
    as_json: bool,
) -> None:
    """Send a command, and print the answer; what is only queued is said on stderr.

    Raises:
        CommandError: the command is refused.
    """
    from loraxs_search.steering.send import new_command, send

    answer = send(study, new_command(verb, trial_ids, arguments, params), tracking_uri=tracking_uri)
    emit(as_json, answer, lambda: _show(study, answer))


def _show(study: str, answer: CommandAnswer) -> None:
    out = sys.stderr if answer.state is AnswerState.QUEUED else sys.stdout
    said = "queued: " if answer.state is AnswerState.QUEUED else ""
    print(f"{study}: {said}{answer.text}", file=out)


def stop(
    study: StudyArgument,
    trials: TrialsArgument,
    now: Annotated[bool, typer.Option("--now", help="At the next step, without another report.")] = False,
    tracking_uri: TrackingOption = None,
    as_json: JsonOption = False,
) -> None:
    """Stop trials of a running search.

    A stopped trial ends as PRUNED at its next report. With --now it ends at its next step, and its last report counts.

    Without a running search the command is queued: `resume` carries it out first.

    On the machine that runs the study, commands go through its folder. From another machine, `stop` without --now goes
    through MLflow, and so do `pause`, `continue` and `finish` for the whole search. They write the tag `loraxs.command`
    to the run of the trial or of the search. You can type the same in MLflow's UI: the tag `loraxs.command` with the
    value `stop` on a trial's run, or with `pause`, `continue` or `finish` on the search's. The search answers in the
    tag `loraxs.answer` and deletes the other one. A tag means the search that runs: one that was written while none
    ran is refused by the next one. Whoever may write to MLflow may steer. Type all other commands on the machine that
    runs the study.

    Example: loraxs-search stop reviews 00003 00007 --now
    """
    _send_command(study, "stop", trials, {"now": now}, tracking_uri=tracking_uri, as_json=as_json)


def pause(
    study: StudyArgument,
    trials: AnyTrialsArgument = None,
    tracking_uri: TrackingOption = None,
    as_json: JsonOption = False,
) -> None:
    """Pause trials of a running search, or the whole search.

    A paused trial stops at its next report and keeps its last state, as after a kill. Other trials take its slot. A
    paused search proposes no new trials either. It waits until `loraxs-search continue`, also after a `resume`. The
    time counts for `search.time_budget`.

    Example: loraxs-search pause reviews 00003
    """
    _send_command(study, "pause", trials or (), tracking_uri=tracking_uri, as_json=as_json)


def continue_(
    study: StudyArgument,
    trials: AnyTrialsArgument = None,
    tracking_uri: TrackingOption = None,
    as_json: JsonOption = False,
) -> None:
    """Continue trials that were paused, or the whole search.

    A trial continues from its last report once a slot is free, before new trials.

    Example: loraxs-search continue reviews 00003
    """
    _send_command(study, "continue", trials or (), tracking_uri=tracking_uri, as_json=as_json)


def finish(study: StudyArgument, tracking_uri: TrackingOption = None, as_json: JsonOption = False) -> None:
    """Finish a running search without new trials.

    Running trials train to their ends. Paused ones end as they are. Then the candidates are scored, as always. Stop the
    running trials too, if you do not want to wait for them.

    Example: loraxs-search finish reviews
    """
    _send_command(study, "finish", tracking_uri=tracking_uri, as_json=as_json)


def add(study: StudyArgument, params: ParamOption = None, as_json: JsonOption = False) -> None:
    """Add a trial of your own to a search.

    Values must be ones that the space allows. What you leave out is what the sampler would propose for this trial. A
    parameter that only goes with certain values of another one needs that one too.

    The trial starts once a slot is free, before new proposals. It comes on top of `search.trials`, and the sampler
    learns from it. `finish` ends proposals, and not what you have added.

    A finished search continues with `resume`. Its candidates are then chosen again, among all trials.

    Example: loraxs-search add reviews --set rank=16 --set learning_rate=1e-3
    """
    from loraxs_search.steering.send import read_params

    _send_command(study, "add", params=read_params(params or ()), as_json=as_json)


def clone(
    study: StudyArgument,
    trial: Annotated[str, typer.Argument(help="The trial to clone, such as 00003.", metavar="TRIAL")],
    params: ParamOption = None,
    force: Annotated[
        bool, typer.Option("--force", help="Learning rates and the like may lie outside of the space.")
    ] = False,
    as_json: JsonOption = False,
) -> None:
    """Add a trial like another one, but for what you set.

    A clone comes on top of `search.trials`. The sampler learns from it, unless it was forced. `status` shows the trial
    in the column `from`.

    --force takes values outside of the space for what the optimizer does: learning rates and their schedule, weight
    decay, betas, clipping, and the batch size.

    Example: loraxs-search clone reviews 00003 --set learning_rate=1e-3
    """
    from loraxs_search.steering.send import read_params

    _send_command(study, "clone", [trial], {"force": force}, read_params(params or ()), as_json=as_json)


def extend(
    study: StudyArgument,
    trials: Annotated[int | None, typer.Option("--trials", help="Trials to propose beyond those planned.")] = None,
    time: Annotated[
        str | None, typer.Option("--time", help="Time beyond the time budget, such as 1h, 90m or 1h30m.")
    ] = None,
    as_json: JsonOption = False,
) -> None:
    """Give a search more trials or more time, a finished one too.

    A running search continues at once. With a finished one, run `loraxs-search resume STUDY` next. It sets the
    candidates aside, trains, and chooses among all trials. What was promoted stays. The new finalist answers the same
    test rows as the one before, so `promote` demands more confidence, as of any further decision on these rows.

    --time comes on top of the time budget, or of the time spent, where that is more. Without a time budget the search
    gets one: the time spent so far, and this.

    Example: loraxs-search extend reviews --trials 12 --time 1h
    """
    given = {"trials": trials, "time": time}
    arguments = {name: value for name, value in given.items() if value is not None}
    _send_command(study, "extend", arguments=arguments, as_json=as_json)
