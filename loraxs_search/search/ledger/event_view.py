"""A search as events: the calls of a view, in the form in which a journal is read again."""

from __future__ import annotations

from collections.abc import Callable

from loraxs_search.records import (
    PhaseEvent,
    SearchEvent,
    SearchStartedEvent,
    SteeredEvent,
    SteeringStatus,
    TrialRecord,
    TrialState,
)
from loraxs_search.search.ledger.view import SearchStarted
from loraxs_search.studies import ended_event, reported_event, started_event
from loraxs_search.studies.clock import steady_time


class EventView:
    """Calls `happened` with each event of a search, once.

    Of a search that goes on, what an earlier driver did is not repeated.

    Args:
        known: Called with what an earlier driver has recorded of trials, right after `search_started`.
        study: Its name, where that is known before the search begins.
    """

    def __init__(
        self,
        happened: Callable[[SearchEvent], None],
        known: Callable[[SearchEvent], None] = lambda _: None,
        study: str | None = None,
    ) -> None:
        self._happened, self._known = happened, known
        self._reported: dict[str, int] = {}  # by trial: how many of its reports are events already
        self._ended: set[str] = set()
        self.study, self.is_training = study, False

    def phase(self, text: str) -> None:
        self.is_training = False
        self._happened(PhaseEvent(study=self.study, at=steady_time(), text=text))

    def started(self, facts: SearchStarted) -> None:
        self.study, self.is_training = facts.study, True
        self._happened(search_started(facts))
        for record in facts.trials:
            self._pass_on(record, self._known)

    def trial_changed(self, record: TrialRecord) -> None:
        self._pass_on(record, self._happened)

    def commanded(self, text: str, status: SteeringStatus | None = None) -> None:
        self._happened(SteeredEvent(study=self.study or "", at=steady_time(), text=text, status=status))

    def noted(self, event: SearchEvent) -> None:
        self._happened(event)

    def finished(self) -> None:
        """Nothing: that nobody works on the study any more is known once its driver has let go of it."""

    def _pass_on(self, record: TrialRecord, happened: Callable[[SearchEvent], None]) -> None:
        study, trial_id = self.study or "", record.trial_id
        if trial_id not in self._reported:
            self._reported[trial_id] = 0
            happened(started_event(study, record))
        for number in range(self._reported[trial_id], len(record.reports)):
            happened(reported_event(study, record, number))
        self._reported[trial_id] = len(record.reports)
        if record.state is not TrialState.RUNNING and trial_id not in self._ended:
            self._ended.add(trial_id)
            happened(ended_event(study, record))


def search_started(facts: SearchStarted) -> SearchStartedEvent:
    """Return the event that a search has begun or goes on."""
    return SearchStartedEvent(
        study=facts.study,
        at=facts.at or steady_time(),
        task=facts.task.name,
        metric=facts.task.search_metric,
        direction=facts.task.search_direction,
        num_trials=facts.num_trials,
        max_steps=facts.max_steps,
        report_every=facts.report_every,
        num_refits=facts.num_refits,
        device=facts.device,
        dtype=facts.dtype,
        num_slots=facts.num_slots,
        slots=facts.slots,
        why_slots=facts.why_slots,
        time_left_s=facts.time_left_s,
        notes=facts.notes,
        steering=facts.steering,
    )
