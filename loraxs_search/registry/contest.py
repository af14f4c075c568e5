"""A contest for the championship: every champion is made comparable first, then the rule decides."""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, replace
from typing import TYPE_CHECKING

from loraxs_search.errors import LoraxsError
from loraxs_search.records import Candidate, Decision, PromotionRule, Task
from loraxs_search.registry.adapters import RegisteredAdapter
from loraxs_search.registry.names import CHAMPION, base_alias
from loraxs_search.registry.promotion import decide, key

if TYPE_CHECKING:
    from loraxs_search.registry.rows import ScoredRows


@dataclass(frozen=True, eq=False)
class Rescored:
    """A champion scored anew, on the test rows the candidates were scored on."""

    test_metrics: Mapping[str, float]
    data_fingerprint: str
    rows: ScoredRows


Rescore = Callable[[RegisteredAdapter], Rescored]
ReadRows = Callable[[RegisteredAdapter], "ScoredRows | None"]


@dataclass(frozen=True, eq=False)
class Opponent:
    """A champion as candidates meet it.

    Args:
        note: How its scores came about, where they are not the recorded ones; for people.
    """

    adapter: RegisteredAdapter
    candidate: Candidate
    rows: ScoredRows | None
    note: str = ""


def opponent(
    champion: RegisteredAdapter, candidates: Sequence[Candidate], rescore: Rescore | None, read_rows: ReadRows
) -> Opponent:
    """Make a champion comparable: one that was scored on other data, or stands on another base, is scored anew.

    Where it cannot be, its recorded scores serve if they are on the same data; otherwise it is met as it is, and the
    rule says that it is not comparable.
    """
    its = champion.candidate
    same_data = any(its.data_fingerprint == c.data_fingerprint for c in candidates)
    if same_data and any(its.base_digest == c.base_digest for c in candidates):
        return Opponent(champion, its, read_rows(champion))
    name = f"{champion.task}:{champion.version}"
    what = "base" if same_data else "data"
    try:
        if rescore is None:
            raise LoraxsError("nobody here can score it")
        found = rescore(champion)
    except LoraxsError as error:
        note = f"the champion {name} is of other {what} and could not be scored anew: {error.message}"
        return Opponent(champion, its, read_rows(champion) if same_data else None, note)
    anew = replace(its, test_metrics=found.test_metrics, data_fingerprint=found.data_fingerprint)
    note = f"the champion {name} is of other {what} and was scored anew on these test rows"
    return Opponent(champion, anew, found.rows, note)


@dataclass(frozen=True)
class Contest:
    """Candidates, and the rule they are judged by."""

    rule: PromotionRule
    task: Task
    candidates: Sequence[Candidate]
    rows: Mapping[str, ScoredRows]
    forced: bool

    @property
    def aliases(self) -> tuple[str, ...]:
        """The championships that candidates compete for: the task's, and those of their bases."""
        return CHAMPION, *sorted({base_alias(c.base_model) for c in self.candidates} - {CHAMPION})

    def settle(self, opponents: Mapping[str, Opponent]) -> Decision:
        """Decide who becomes champion of the task, and if nobody does, whether its base's championship is to be had.

        Args:
            opponents: Alias to the champion it is on.
        """
        overall = opponents.get(CHAMPION)
        decision = self._against(overall, self.candidates, self.forced)
        if decision.winner is None:
            return decision
        own = base_alias(self._winner(decision).base_model)
        if decision.promoted:
            return replace(decision, aliases=tuple(dict.fromkeys((CHAMPION, own))))
        there = opponents.get(own, overall if overall and base_alias(overall.candidate.base_model) == own else None)
        if own == CHAMPION or (overall and there and overall.adapter.version == there.adapter.version):
            return decision
        on_base = [c for c in self.candidates if base_alias(c.base_model) == own]
        second = self._against(there, on_base, forced=False)
        reasons = (*decision.reasons, f"for {own}:", *second.reasons)
        if not second.promoted:
            return replace(decision, reasons=reasons)
        return replace(second, reasons=reasons, aliases=(own,))

    def _against(self, champion: Opponent | None, candidates: Sequence[Candidate], forced: bool) -> Decision:
        if champion is None:
            return decide(self.rule, self.task, candidates, None, forced, self.rows)
        rows = dict(self.rows)
        if champion.rows is not None:
            rows[key(champion.candidate)] = champion.rows
        decision = decide(self.rule, self.task, candidates, champion.candidate, forced, rows)
        return replace(decision, reasons=(champion.note, *decision.reasons)) if champion.note else decision

    def _winner(self, decision: Decision) -> Candidate:
        return next(c for c in self.candidates if (c.study, c.trial_id) == (decision.study, decision.winner))
