"""The promotion rule, pure: whether a finalist becomes champion. Test rows decide; `finalist.choose` says who it is."""

from __future__ import annotations

from dataclasses import dataclass
from typing import TYPE_CHECKING

from loraxs_search.records import Candidate, Decision, Look, PromotionRule, Task, alone_yardstick
from loraxs_search.registry.anchor import Anchor
from loraxs_search.registry.criterion import NOISE, Criterion, better_when
from loraxs_search.registry.finalist import identity, key, show_bytes
from loraxs_search.registry.names import CHAMPION

if TYPE_CHECKING:
    from loraxs_search.registry.test_predictions import ScoredRows

YARDSTICK = "constant"  # whom a first champion is compared with, whichever of the yardsticks that is
_TINY = 1e-4
_FORCE = "`--force` promotes it all the same"


@dataclass(frozen=True, eq=False)
class Scored:
    """An adapter that was scored on test rows, and its answers to them; None where they were not kept.

    Args:
        alone: A finalist's base without an adapter: its answers to the same rows.
    """

    candidate: Candidate
    rows: ScoredRows | None = None
    alone: ScoredRows | None = None


@dataclass(frozen=True)
class Terms:
    """On what terms a finalist meets a champion.

    Args:
        alias: The championship that it is about.
        look: The number of this comparison among all on these test rows.
        anchor: What tolerance counts from; None turns tolerance off.
        forced: Promote the finalist whatever the champion.
    """

    alias: str = CHAMPION
    look: int = 1
    anchor: Anchor | None = None
    forced: bool = False


@dataclass(frozen=True)
class _Verdict:
    promoted: bool
    reason: str
    look: Look | None = None


@dataclass(frozen=True, eq=False)
class _AppliedRule:
    """A rule, as it is applied to one finalist on stated terms."""

    rule: PromotionRule
    task: Task
    criterion: Criterion
    terms: Terms
    finalist: Scored

    @property
    def level(self) -> float:
        """The chance of error that this look may have: looks at the same rows share what is allowed."""
        return (1 - self.rule.confidence) / self.terms.look

    def look(self, opponent: str, p: float | None) -> Look:
        anchor, finalist = self.terms.anchor, key(self.finalist.candidate)
        known = (None, None) if anchor is None else (anchor.version, anchor.metric)
        confidence = 1 - self.level if self.rule.confidence else 0.0
        return Look(self.terms.alias, finalist, opponent, self.terms.look, confidence, p, *known)

    def p_value(self, better: ScoredRows | None, worse: ScoredRows | None) -> float | None:
        """Return the chance that `better` is ahead by luck; None where rows cannot tell."""
        if better is None or worse is None:
            return None
        from loraxs_search.registry.significance import p_value  # numpy, where rows are there to compare

        return p_value(self.criterion.metric, self.criterion.sign, better, worse, self.level)

    def sureness(self, p: float) -> str:
        number = self.terms.look
        chance = f"p={p:.3g}" if p >= _TINY else f"p<{_TINY:f}".rstrip("0")
        return f"{chance}; decision {number} on these rows, confidence {1 - self.level:.4g}"

    # ---- the two comparisons -----------------------------------------------------------------------------------------
    def with_yardstick(self) -> _Verdict:
        """Hold a first champion against the better of the constant answer and the base alone."""
        rows, criterion, alone = self.finalist.rows, self.criterion, self.finalist.alone
        yardsticks = self.finalist.candidate.yardsticks
        if rows is None:
            untested = "there was no champion, and answers to test rows to hold against the constant answer are missing"
            return _Verdict(not self.rule.confidence, untested if not self.rule.confidence else f"{untested}: {_FORCE}")
        if alone is None and (measured := alone_yardstick(yardsticks)):
            return _Verdict(False, f"there was no champion, and the answers of {measured.name} are missing: {_FORCE}")
        from loraxs_search.registry.yardstick_answer import hardest_answer
        from loraxs_search.tasks.kinds import find_metric

        metric = find_metric(criterion.metric)
        hardest = None
        if metric is not None:
            hardest = hardest_answer(self.task, metric, criterion.sign, rows, yardsticks, alone)
        if hardest is None:
            return _Verdict(False, f"{criterion.metric} of the constant answer cannot be computed: {_FORCE}")
        gain = criterion.value(self.finalist.candidate.test_metrics) - criterion.sign * hardest.score
        over = f"{hardest.name} ({criterion.metric} {hardest.score:.4f})"
        against = f"there was no champion; {_beside(gain, over)}"
        if not self.rule.confidence:
            return _Verdict(gain > NOISE, against, self.look(YARDSTICK, None))
        p = self.p_value(rows, hardest.rows)
        if p is None:
            return _Verdict(False, f"{against}, whose answers are to other rows, or of other tokens: {_FORCE}")
        promoted = gain > NOISE and p <= self.level + NOISE
        unsure = ", not significantly better" if gain > NOISE else ""
        no_use = f"{unsure}: the search found nothing that can be shown to be of use"
        verdict = ", significant" if promoted else no_use
        return _Verdict(promoted, f"{against}{verdict} ({self.sureness(p)})", self.look(YARDSTICK, p))

    def with_champion(self, champion: Scored) -> _Verdict:
        """Hold the finalist against the champion, on the same test rows."""
        criterion, held, name = self.criterion, champion.candidate.test_metrics, key(champion.candidate)
        if fault := _incomparable(criterion, self.finalist.candidate, champion.candidate):
            return _Verdict(False, f"not comparable: {fault}")
        if self._other_tokens(champion):
            counted = f"{criterion.metric} is a mean over tokens, and the champion's rows have others"
            return _Verdict(False, f"not comparable: {counted}; compare by another metric, or {_FORCE}")
        p = self.p_value(self.finalist.rows, champion.rows) if self.rule.confidence else None
        if self.rule.confidence and p is None:
            return _Verdict(False, f"not comparable: answers to test rows are missing; {_FORCE}")
        look = self.look(name, p)
        if fallen := self._fallen(champion.candidate):
            return _Verdict(False, fallen, look)
        gain = criterion.value(self.finalist.candidate.test_metrics) - criterion.value(held)
        scores = f"{criterion.show(held)}, {show_bytes(champion.candidate)}"
        against = _beside(gain, f"the champion {identity(champion.candidate)} ({scores})")
        sureness = f" ({self.sureness(p)})" if p is not None else ""
        if gain > NOISE and gain >= self.rule.min_gain - NOISE:
            if p is None or p <= self.level + NOISE:
                return _Verdict(True, f"{against}, at least min_gain={self.rule.min_gain:g}{sureness}", look)
            shortfall = f", not significant{sureness}"
        else:
            shortfall = f", less than min_gain={self.rule.min_gain:g}" if gain > NOISE else ""
        tolerated, why = self._tolerated(champion)
        return _Verdict(tolerated, against + (f", {why}" if tolerated else shortfall + why), look)

    # ---- inside ------------------------------------------------------------------------------------------------------
    def _other_tokens(self, champion: Scored) -> bool:
        """Whether the metric is of tokens, and these are others: of another tokenizer, or of answers written so."""
        rows, held = self.finalist.rows, champion.rows
        if rows is None or held is None or rows.counts is None or held.counts is None:
            return False
        from loraxs_search.tasks.kinds import find_metric

        metric = find_metric(self.criterion.metric)
        return metric is not None and metric.column != "predictions" and not rows.same_tokens(held)

    def _tolerated(self, champion: Scored) -> tuple[bool, str]:
        """Say whether a smaller finalist replaces the champion although its gain is not significant."""
        anchor, rule = self.terms.anchor, self.rule
        if self.finalist.candidate.stored_bytes >= champion.candidate.stored_bytes:
            return False, ""
        if anchor is None:
            return False, ", smaller but there is no score that tolerance could count from"
        loss = self.criterion.sign * anchor.metric - self.criterion.value(self.finalist.candidate.test_metrics)
        if loss > rule.tolerance + NOISE:
            return False, f", smaller but {loss:.4f} below version {anchor.version}, which tolerance counts from"
        p = self.p_value(champion.rows, self.finalist.rows) if rule.confidence else None
        if p is not None and p <= 1 - rule.confidence + NOISE:
            return False, ", smaller but significantly worse"
        return True, f"within tolerance={rule.tolerance:g} of version {anchor.version}, and smaller"

    def _fallen(self, champion: Candidate) -> str | None:
        """Say which guarded metric falls too far."""
        finalist = self.finalist.candidate
        for name, allowed in sorted(self.rule.guards.items()):
            new, old = finalist.test_metrics.get(name), champion.test_metrics.get(name)
            if new is None or old is None:
                return f"guard: {name} must be known of both, but one has none"
            sign = 1.0 if better_when(name, "maximize") == "maximize" else -1.0
            if not sign * (old - new) <= allowed + NOISE:  # NaN is a fall
                return f"guard: {name} would go from {old:.4f} to {new:.4f}, and may fall by {allowed:g}"
        return None


def decide(
    rule: PromotionRule, task: Task, finalist: Scored, champion: Scored | None, terms: Terms | None = None
) -> Decision:
    """Say whether a finalist becomes champion.

    Without a champion it must significantly beat the constant answer, and the base alone where that was asked. With one
    it is promoted when it gains at least `min_gain` over it, more than nothing, and significantly; or when it stores
    strictly fewer bytes, is at most `tolerance` worse than the anchor, and not significantly worse than the champion.
    Not when a guarded metric falls by more than it may.
    "Significantly" is a paired test over the test rows at `confidence`, the n-th look at 1 - (1 - confidence) / n;
    with a confidence of 0 numbers are taken as they stand. A champion that was measured on other test rows is not
    comparable, and stays.

    Args:
        rule: `metric` defaults to the task's.
        champion: The current champion as it was scored on these test rows; None when there is none.
        terms: By default this is the first look, without anchor.
    """
    criterion, terms = Criterion.of(rule, task), terms or Terms()
    candidate = finalist.candidate
    applied = _AppliedRule(rule, task, criterion, terms, finalist)
    forcible = True
    if fault := criterion.fault(candidate.test_metrics, "test"):
        verdict, forcible = _Verdict(False, f"{candidate.trial_id} cannot be judged: {fault}"), False
    elif champion is None:
        verdict = applied.with_yardstick()
    elif key(candidate) == key(champion.candidate):
        verdict, forcible = _Verdict(False, f"{identity(candidate)} already is the champion"), False
    else:
        verdict = applied.with_champion(champion)
    forced = terms.forced and forcible and not verdict.promoted
    score = "" if fault else f"scored on the test rows: {_show(criterion, candidate)}"
    return Decision(
        task=task.name,
        study=candidate.study,
        promoted=verdict.promoted or forced,
        winner=candidate.trial_id,
        winner_metric=candidate.test_metrics.get(criterion.metric),
        champion_metric=champion.candidate.test_metrics.get(criterion.metric) if champion else None,
        metric=criterion.metric,
        reasons=tuple(filter(None, (score, verdict.reason, "promoted by force" if forced else ""))),
        forced=forced,
        champion=identity(champion.candidate) if champion else None,
        p_value=verdict.look.p_value if verdict.look else None,
        test_fingerprint=candidate.test_fingerprint,
        looks=(verdict.look,) if verdict.look else (),
    )


def _incomparable(criterion: Criterion, finalist: Candidate, champion: Candidate) -> str | None:
    if finalist.test_fingerprint != champion.test_fingerprint:
        both = f"{champion.test_fingerprint[:12]}, not {finalist.test_fingerprint[:12]}"
        return f"the champion was scored on other test rows ({both})"
    if fault := criterion.fault(champion.test_metrics, "test"):
        return f"the champion has no finite test {criterion.metric} ({fault})"
    return None


def _beside(gain: float, other: str) -> str:
    """Say how a finalist compares with another answer to the test rows."""
    if gain > NOISE:
        return f"gain {gain:+.4f} over {other}"
    return f"{-gain:.4f} worse than {other}" if gain < -NOISE else f"no better than {other}"


def _show(criterion: Criterion, candidate: Candidate) -> str:
    return f"{candidate.trial_id} ({criterion.show(candidate.test_metrics)}, {show_bytes(candidate)})"
