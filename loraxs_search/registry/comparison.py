"""A finalist and the champions it is compared with: each is made comparable first, then the rule decides."""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, field, replace
from typing import TYPE_CHECKING

from loraxs_search.errors import LoraxsError
from loraxs_search.records import Decision, KeptAnswers, PromotionRule, Task
from loraxs_search.registry._versions import RegisteredAdapter
from loraxs_search.registry.finalist import Criterion, key
from loraxs_search.registry.names import CHAMPION, base_alias
from loraxs_search.registry.promotion import BASELINES, ComparisonSetup, Scored, decide
from loraxs_search.registry.test_set_reuse import ComparisonHistory, ToleranceReference, find_tolerance_reference

if TYPE_CHECKING:
    from loraxs_search.registry.significance import ScoredRows


@dataclass(frozen=True, eq=False)
class Rescored:
    """A champion scored anew, on the test rows that the finalist was scored on."""

    test_metrics: Mapping[str, float]
    data_fingerprint: str
    rows: ScoredRows
    test_fingerprint: str


Rescore = Callable[[RegisteredAdapter], Rescored]
ReadRows = Callable[[RegisteredAdapter], "ScoredRows | None"]


@dataclass(frozen=True)
class Beside:
    """What a decision needs beside candidates.

    Args:
        study: Whose candidates they are, for the record where there are none.
        answers: Of the study's baselines to the test rows, by name.
        seen: Keys of other finalists that have answered the test rows: each counts as a comparison on them.
    """

    study: str = ""
    answers: Mapping[str, KeptAnswers] = field(default_factory=dict)
    seen: Sequence[str] = ()


@dataclass(frozen=True, eq=False)
class ComparedChampion:
    """A champion as the finalist is compared with it.

    Args:
        note: How its scores came about, where they are not the recorded ones; for people.
    """

    adapter: RegisteredAdapter
    scored: Scored
    note: str = ""


def comparable(
    champion: RegisteredAdapter, finalist: Scored, rescore: Rescore | None, read_rows: ReadRows
) -> ComparedChampion:
    """Make a champion comparable: scored anew are those of other test rows or another base, without answers, or whose
    texts were read by other rules.

    Where it cannot be, its recorded scores serve if they are on the same rows; otherwise it stays as it is, and the
    rule says that it is not comparable.
    """
    recorded, own = champion.candidate, finalist.candidate
    rows = read_rows(champion) if recorded.test_fingerprint == own.test_fingerprint else None
    is_read_alike = rows is None or finalist.rows is None or rows.read_alike(finalist.rows)
    is_ready = rows is not None and recorded.base_digest == own.base_digest and is_read_alike
    if key(recorded) == key(own) or is_ready:
        return ComparedChampion(champion, Scored(recorded, rows))
    name = f"{champion.task}:{champion.version}"
    reason = "is of another base" if is_read_alike else "has answers that were read by other rules"
    reason = reason if rows is not None else "has no answers to these test rows"
    try:
        if rescore is None:
            raise LoraxsError("nobody here can score it")
        rescored = rescore(champion)
    except LoraxsError as error:
        note = f"the champion {name} {reason} and could not be scored anew: {error.message}"
        return ComparedChampion(champion, Scored(recorded, rows), note)
    rescored_candidate = replace(
        recorded,
        test_metrics=rescored.test_metrics,
        data_fingerprint=rescored.data_fingerprint,
        test_fingerprint=rescored.test_fingerprint,
    )
    note = f"the champion {name} {reason}: it was scored anew"
    return ComparedChampion(champion, Scored(rescored_candidate, rescored.rows), note)


@dataclass(frozen=True, eq=False)
class FinalistComparison:
    """A finalist, the rule that decides on it, and what was decided before.

    Args:
        past: Every decision on the task, oldest first.
        seen: Keys of other finalists that have answered the test rows.
    """

    rule: PromotionRule
    task: Task
    finalist: Scored
    forced: bool
    past: Sequence[Decision]
    seen: Sequence[str] = ()

    def decide(self, champions: Mapping[str, ComparedChampion]) -> Decision:
        """Decide whether the finalist becomes champion of the task, and whether it leads its own base.

        Args:
            champions: Alias to the champion that holds it.
        """
        own = self.finalist.candidate
        earlier = [key(replace(own, trial_id=trial_id)) for trial_id in own.earlier_finalists]
        history = ComparisonHistory(self.past, own.test_fingerprint, [*earlier, *self.seen])
        uncounted, unmet = history.uncounted(key(own)), history.unmet(key(own)) if own.test_metrics else ()
        decision = self._decide(champions, history, uncounted)
        return replace(decision, seen=uncounted if decision.looks else (*uncounted, *unmet))

    def _decide(
        self, champions: Mapping[str, ComparedChampion], history: ComparisonHistory, uncounted: tuple[str, ...]
    ) -> Decision:
        overall, own = champions.get(CHAMPION), base_alias(self.finalist.candidate.base_model)
        decision = self._against(CHAMPION, overall, history, self.forced)
        on_own_base = overall is not None and base_alias(overall.scored.candidate.base_model) == own
        of_base = champions.get(own, overall if on_own_base else None)
        is_one = own == CHAMPION or _version(of_base) == _version(overall)
        if decision.promoted and (is_one or of_base is None or self._is_finalist(of_base)):
            return replace(decision, aliases=tuple(dict.fromkeys((CHAMPION, own))))
        if is_one:
            return decision
        history.take(replace(decision, seen=uncounted))
        second = self._against(own, of_base, history, self.forced and decision.promoted)
        promoted = {CHAMPION: decision.promoted, own: second.promoted}
        return replace(
            second if second.promoted and not decision.promoted else decision,
            aliases=tuple(alias for alias, is_promoted in promoted.items() if is_promoted),
            reasons=(*decision.reasons, f"for {own}:", *second.reasons),
            looks=(*decision.looks, *second.looks),
        )

    def _is_finalist(self, champion: ComparedChampion) -> bool:
        return key(champion.adapter.candidate) == key(self.finalist.candidate)

    def _against(
        self, alias: str, champion: ComparedChampion | None, history: ComparisonHistory, forced: bool
    ) -> Decision:
        finalist = key(self.finalist.candidate)
        other = BASELINES if champion is None else key(champion.scored.candidate)
        setup = ComparisonSetup(
            alias=alias,
            number=history.number(finalist, other),
            level=history.level(finalist, other, 1 - self.rule.confidence),
            reference=self._reference(alias, champion),
            forced=forced,
        )
        decision = decide(self.rule, self.task, self.finalist, champion.scored if champion else None, setup)
        note = champion.note if champion else ""
        return replace(decision, reasons=(note, *decision.reasons)) if note else decision

    def _reference(self, alias: str, champion: ComparedChampion | None) -> ToleranceReference | None:
        criterion, finalist = Criterion.of(self.rule, self.task), self.finalist.candidate
        present = None
        if champion is not None and champion.scored.candidate.test_fingerprint == finalist.test_fingerprint:
            metrics = champion.scored.candidate.test_metrics
            if criterion.fault(metrics, "test") is None:
                present = ToleranceReference(champion.adapter.version, metrics[criterion.metric])
        return find_tolerance_reference(alias, criterion, finalist.test_fingerprint, self.past, present)


def _version(champion: ComparedChampion | None) -> int | None:
    return champion.adapter.version if champion else None
