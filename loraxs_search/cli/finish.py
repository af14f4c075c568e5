"""loraxs-search finish STUDY"""

from __future__ import annotations

from loraxs_search.cli._completion import StudyArgument
from loraxs_search.cli._output import JsonOption, TrackingOption
from loraxs_search.cli._steering import send_command


def command(
    study: StudyArgument,
    tracking_uri: TrackingOption = None,
    as_json: JsonOption = False,
) -> None:
    """Finish a running search without new trials.

    Running trials train to their ends. Paused ones end as they are. Then the candidates are scored, as always. Stop the
    running trials too, if you do not want to wait for them.

    Example: loraxs-search finish reviews
    """
    send_command(study, "finish", tracking_uri=tracking_uri, as_json=as_json)
