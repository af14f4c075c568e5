"""loraxs-search continue STUDY [TRIAL...]"""

from __future__ import annotations

from loraxs_search.cli._completion import StudyArgument
from loraxs_search.cli._output import JsonOption, TrackingOption
from loraxs_search.cli._steering import AnyTrialsArgument, send_command


def command(
    study: StudyArgument,
    trials: AnyTrialsArgument = None,
    tracking_uri: TrackingOption = None,
    as_json: JsonOption = False,
) -> None:
    """Continue trials that were paused, or the whole search.

    A trial goes on from its last report once a slot is free, before new trials.

    Example: loraxs-search continue reviews 00003
    """
    send_command(study, "continue", trials or (), tracking_uri=tracking_uri, as_json=as_json)
