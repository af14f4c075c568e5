"""What a search spent, on what, and what it saved by stopping weak trials."""

from __future__ import annotations

from collections import Counter
from collections.abc import Iterator, Sequence
from dataclasses import dataclass

from loraxs_search.records import TrialRecord, TrialState
from loraxs_search.reports.html.facts import StudyFacts, device_seconds

Interval = tuple[float, float]  # seconds since 1970


@dataclass(frozen=True)
class Spending:
    """Seconds of a search.

    Args:
        device_s: Computation for trials, each to its last report. Final scores and refits are not in it.
        by_state: The same by how trials ended.
        saved_s: What stopped trials had needed for the steps that they were spared, each at its own pace.
        wall_s: What drivers worked on the search.
        hosts: Those that trials ran on, by name; empty where none was recorded.
    """

    device_s: float
    by_state: dict[TrialState, float]
    saved_s: float
    wall_s: float
    hosts: tuple[str, ...]

    @property
    def saved_share(self) -> float:
        """The share of `device_s` and `saved_s` together that was saved."""
        whole = self.device_s + self.saved_s
        return self.saved_s / whole if whole else 0.0

    @property
    def busy_devices(self) -> float:
        """How many devices were at work on trials, on average."""
        return self.device_s / self.wall_s if self.wall_s else 0.0


def spending(facts: StudyFacts) -> Spending:
    """Add up what a study's reports say."""
    by_state = {state: [r for r in facts.records if r.state is state] for state in TrialState}
    hosts = {report.host for record in facts.records for report in record.reports if report.host}
    return Spending(
        device_s=device_seconds(facts.records),
        by_state={state: device_seconds(records) for state, records in by_state.items() if records},
        saved_s=sum(_spared_s(record, facts.info.search.max_steps) for record in facts.stopped),
        wall_s=facts.spent_s,
        hosts=tuple(sorted(hosts)),
    )


def _spared_s(record: TrialRecord, max_steps: int) -> float:
    if not record.reports:
        return 0.0
    last = record.reports[-1]
    return max(0, max_steps - last.step) * last.device_s / max(1, last.step)


def computed(record: TrialRecord) -> Iterator[tuple[Interval, float]]:
    """Yield for each report the time since the one before, or since the start, and the device seconds spent in it."""
    since, before_s = record.started_at, 0.0
    for report, at in zip(record.reports, record.reported_at, strict=True):
        yield (since, at), report.device_s - before_s
        since, before_s = at, report.device_s


def stopped_at(records: Sequence[TrialRecord]) -> dict[int, int]:
    """Return how many trials made their last report at each step, by step."""
    steps = Counter(record.reports[-1].step if record.reports else 0 for record in records)
    return dict(sorted(steps.items()))


def duration(seconds: float) -> str:
    """Return a time for people: hours from two hours on, minutes from two minutes on, else seconds."""
    for least, unit_s, name in ((7200.0, 3600.0, "h"), (120.0, 60.0, "min")):
        if seconds >= least:
            return f"{seconds / unit_s:,.1f} {name}"
    return f"{seconds:.1f} s"
