"""Events as `--events` prints them: one JSON object each, whose form users' programs rely on."""

from __future__ import annotations

import dataclasses
from typing import Any

from loraxs_search.log.events import ShownEvent, TrialEnded, TrialReported, TrialStarted


def printed(event: ShownEvent) -> dict[str, Any]:
    """Return the object of an event."""
    common = {"study": event.study, "at": event.at, "version": event.version}
    match event:
        case TrialStarted():
            return common | {"event": "trial_started", "trial": event.trial_id, "params": event.params}
        case TrialReported(report=report):
            names = ("step", "metrics", "train_loss", "device_s", "num_tokens", "host")
            fields = {name: getattr(report, name) for name in names}
            fields |= {"trial": report.trial_id, "stored_bytes": report.size.stored_bytes}
            return common | {"event": "trial_reported", **fields}
        case TrialEnded():
            return common | {
                "event": "trial_ended",
                "trial": event.trial_id,
                "state": event.state,
                "reason": event.reason,
            }
    return common | {each.name: getattr(event, each.name) for each in dataclasses.fields(event)}
