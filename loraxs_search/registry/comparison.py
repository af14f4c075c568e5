"""A contest for the championship: every champion is made comparable first, then the rule decides."""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, replace
from typing import TYPE_CHECKING

from loraxs_search.errors import LoraxsError
from loraxs_search.records import Candidate, Decision, PromotionRule, Task
from loraxs_search.registry.adapters import RegisteredAdapter
from loraxs_search.registry.anchor import Anchor, find_anchor
from loraxs_search.registry.criterion import Criterion
from loraxs_search.registry.finalist import key
from loraxs_search.registry.looks import Looks
from loraxs_search.registry.names import CHAMPION, base_alias
from loraxs_search.registry.promotion import CONSTANT, Scored, Terms, decide, same_test_rows, test_rows_of

if TYPE_CHECKING:
    from loraxs_search.registry.test_predictions import ScoredRows


@dataclass(frozen=True, eq=False)
class Rescored:
    """A champion scored anew, on the test rows that the finalist was scored on."""

    test_metrics: Mapping[str, float]
    data_fingerprint: str
    rows: ScoredRows
    test_fingerprint: str = ""


Rescore = Callable[[RegisteredAdapter], Rescored]
ReadRows = Callable[[RegisteredAdapter], "ScoredRows | None"]


@dataclass(frozen=True, eq=False)
class ComparedChampion:
    """A champion as the finalist meets it.

    Args:
        note: How its scores came about, where they are not the recorded ones; for people.
    """

    adapter: RegisteredAdapter
    scored: Scored
    note: str = ""


def opponent(
    champion: RegisteredAdapter, finalist: Candidate, rescore: Rescore | None, read_rows: ReadRows
) -> ComparedChampion:
    """Make a champion comparable: one of other test rows or another base, or without answers, is scored anew.

    Where it cannot be, its recorded scores serve if they are on the same rows; otherwise it is met as it is, and the
    rule says that it is not comparable.
    """
    recorded = champion.candidate
    rows = read_rows(champion) if same_test_rows(recorded, finalist) else None
    if key(recorded) == key(finalist) or (rows is not None and recorded.base_digest == finalist.base_digest):
        return ComparedChampion(champion, Scored(recorded, rows))
    name = f"{champion.task}:{champion.version}"
    lacking = "is of another base" if rows is not None else "has no answers to these test rows"
    try:
        if rescore is None:
            raise LoraxsError("nobody here can score it")
        found = rescore(champion)
    except LoraxsError as error:
        note = f"the champion {name} {lacking} and could not be scored anew: {error.message}"
        return ComparedChampion(champion, Scored(recorded, rows), note)
    anew = replace(
        recorded,
        test_metrics=found.test_metrics,
        data_fingerprint=found.data_fingerprint,
        test_fingerprint=found.test_fingerprint,
    )
    note = f"the champion {name} {lacking}: it was scored anew"
    return ComparedChampion(champion, Scored(anew, found.rows), note)


@dataclass(frozen=True, eq=False)
class Contest:
    """A finalist, and the rule it is judged by.

    Args:
        past: Every decision on the task, oldest first.
    """

    rule: PromotionRule
    task: Task
    finalist: Scored
    forced: bool
    past: Sequence[Decision]

    def settle(self, opponents: Mapping[str, ComparedChampion]) -> Decision:
        """Decide whether the finalist becomes champion of the task, and if not, whether it leads its own base.

        Args:
            opponents: Alias to the champion it is on.
        """
        looks = Looks(self.past, test_rows_of(self.finalist.candidate))
        overall, own = opponents.get(CHAMPION), base_alias(self.finalist.candidate.base_model)
        decision = self._against(CHAMPION, overall, looks, self.forced)
        if decision.promoted:
            return replace(decision, aliases=tuple(dict.fromkeys((CHAMPION, own))))
        on_own_base = overall is not None and base_alias(overall.scored.candidate.base_model) == own
        there = opponents.get(own, overall if on_own_base else None)
        if own == CHAMPION or _version(there) == _version(overall):
            return decision
        looks.take(decision)
        second = self._against(own, there, looks, forced=False)
        both = replace(
            second if second.promoted else decision,
            reasons=(*decision.reasons, f"for {own}:", *second.reasons),
            looks=(*decision.looks, *second.looks),
        )
        return replace(both, aliases=(own,)) if second.promoted else both

    def _against(self, alias: str, champion: ComparedChampion | None, looks: Looks, forced: bool) -> Decision:
        other = CONSTANT if champion is None else key(champion.scored.candidate)
        terms = Terms(
            alias=alias,
            look=looks.number(key(self.finalist.candidate), other),
            anchor=self._anchor(alias, champion),
            forced=forced,
        )
        decision = decide(self.rule, self.task, self.finalist, champion.scored if champion else None, terms)
        note = champion.note if champion else ""
        return replace(decision, reasons=(note, *decision.reasons)) if note else decision

    def _anchor(self, alias: str, champion: ComparedChampion | None) -> Anchor | None:
        criterion, finalist = Criterion.of(self.rule, self.task), self.finalist.candidate
        present = None
        if champion is not None and same_test_rows(champion.scored.candidate, finalist):
            metrics = champion.scored.candidate.test_metrics
            if criterion.fault(metrics, "test") is None:
                present = Anchor(champion.adapter.version, metrics[criterion.metric])
        return find_anchor(alias, criterion, test_rows_of(finalist), self.past, present)


def _version(opponent: ComparedChampion | None) -> int | None:
    return opponent.adapter.version if opponent else None
