"""loraxs-search clone STUDY TRIAL --set NAME=VALUE..."""

from __future__ import annotations

from typing import Annotated

import typer

from loraxs_search.cli._completion import StudyArgument
from loraxs_search.cli._output import JsonOption
from loraxs_search.cli._steering import ParamOption, send_command


def command(
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
    from loraxs_search.steering.text import read_params

    send_command(
        study,
        "clone",
        [trial],
        {"force": force},
        read_params(params or ()),
        as_json=as_json,
    )
