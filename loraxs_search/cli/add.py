"""loraxs-search add STUDY --set NAME=VALUE..."""

from __future__ import annotations

from loraxs_search.cli._completion import StudyArgument
from loraxs_search.cli._output import JsonOption
from loraxs_search.cli._steering import ParamOption, send_command


def command(
    study: StudyArgument,
    params: ParamOption = None,
    as_json: JsonOption = False,
) -> None:
    """Add a trial of your own to a search.

    Values must be ones that the space allows. What you leave out is what the sampler would propose for this trial. A
    parameter that only goes with certain values of another one needs that one too.

    The trial starts once a slot is free, before new proposals. It comes on top of `search.trials`, and the sampler
    learns from it. `finish` ends proposals, and not what you have added.

    A finished search goes on with `resume`. Its candidates are then chosen again, among all trials.

    Example: loraxs-search add reviews --set rank=16 --set learning_rate=1e-3
    """
    from loraxs_search.steering.text import read_params

    send_command(study, "add", params=read_params(params or ()), as_json=as_json)
