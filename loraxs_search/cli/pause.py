"""loraxs-search pause STUDY [TRIAL...]"""

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
    """Pause trials of a running search, or the whole search.

    A paused trial stops at its next report and keeps its last state, as after a kill. Other trials take its slot. A
    paused search proposes no new trials either. It waits until `loraxs-search continue`, also after a `resume`. The
    time counts for `search.time_budget`.

    Example: loraxs-search pause reviews 00003
    """
    send_command(study, "pause", trials or (), tracking_uri=tracking_uri, as_json=as_json)
