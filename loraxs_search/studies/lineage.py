"""By which trials' params a trial's state was trained, from the first step on."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass

from loraxs_search.records import Scalar, TrialRecord


@dataclass(frozen=True)
class Stage:
    """A part of a trial's training.

    Args:
        trial_id: Whose params it was trained by.
        until: The step that it ends at; None is the trial's last.
    """

    trial_id: str
    params: Mapping[str, Scalar]
    until: int | None = None


def stages(record: TrialRecord, records: Mapping[str, TrialRecord]) -> tuple[Stage, ...]:
    """Return the stages of a trial, first one first: one, but for a clone that began with another trial's state.

    Args:
        records: Those of the whole study.
    """
    lineage, last = record.lineage, Stage(record.trial_id, record.params)
    if lineage is None or not lineage.is_warm:
        return (last,)
    *earlier, source = stages(records[lineage.trial_id], records)
    return (*earlier, Stage(source.trial_id, source.params, lineage.step), last)


def seed_trial(record: TrialRecord, records: Mapping[str, TrialRecord]) -> str:
    """Return the trial whose seed a trial has: its own, or that of the first whose state it goes on with.

    So a clone sees the rows that its source would have seen.
    """
    return stages(record, records)[0].trial_id
