"""loraxs-search clone STUDY TRIAL --set NAME=VALUE..."""

from __future__ import annotations

from typing import Annotated

import typer

from loraxs_search.cli._completion import StudyArgument
from loraxs_search.cli._output import JsonOption, TrackingOption
from loraxs_search.cli._steering import ParamOption, send_command


def command(
    study: StudyArgument,
    trial: Annotated[str, typer.Argument(help="The trial to clone, such as 00003.", metavar="TRIAL")],
    params: ParamOption = None,
    warm: Annotated[bool, typer.Option("--warm", help="Go on from the trial's last report.")] = False,
    force: Annotated[
        bool, typer.Option("--force", help="Learning rates and the like may lie outside of the space.")
    ] = False,
    tracking_uri: TrackingOption = None,
    as_json: JsonOption = False,
) -> None:
    """Add a trial like another one, but for what you set.

    With --warm the clone goes on with the trial's adapter, head, optimizer state and step at its last report, however
    that trial ends. It keeps the trial's seed, so with unchanged params it is the trial trained on. It may change what
    the optimizer does: learning rates and their schedule, weight decay, betas, clipping, and the batch size. Another
    rank, other layers or another scale would make another model of the same numbers, and are refused.

    A clone comes on top of `search.trials`. The sampler learns from it, unless it is warm or was forced. Candidates may
    be warm clones. Their refits repeat all of it from a new seed: first the trial's params to that step, then the
    clone's. `status` shows the trial and the step in the column `from`.

    --force takes values of these optimizer parameters that lie outside of the space, and of no others.

    Example: loraxs-search clone reviews 00003 --set learning_rate=1e-3 --warm
    """
    from loraxs_search.steering.text import read_params

    send_command(
        study,
        "clone",
        [trial],
        {"warm": warm, "force": force},
        read_params(params or ()),
        tracking_uri=tracking_uri,
        as_json=as_json,
    )
