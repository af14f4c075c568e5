"""The promotion rule, pure: whether a finalist becomes champion. Test rows decide; `finalist.choose` says who it is."""

from __future__ import annotations

import math
from collections.abc import Mapping
from dataclasses import dataclass, field, replace
from typing import TYPE_CHECKING

from loraxs_search.records import (
    NEGATIVE_FLIPS,
    SLICE_LOSS,
    AnswerFlips,
    Candidate,
    ComparisonRecord,
    Decision,
    KeptAnswers,
    PromotionRule,
    SliceScore,
    Task,
)
from loraxs_search.registry.finalist import NOISE, Criterion, better_when, identity, key, show_bytes
from loraxs_search.registry.test_set_reuse import ToleranceReference

if TYPE_CHECKING:
    from loraxs_search.registry.baselines import BaselineAnswer
    from loraxs_search.registry.scored_rows import ScoredRows
    from loraxs_search.tasks.kinds import Metric

TRY_NEXT = "Try more steps, other target modules or more trials"
_CONSTANT = "with `promotion.require: constant` only the constant answer counts"
BASELINES = "constant"  # whom a first champion is compared with: all baselines
_TINY = 1e-4
_FORCE = "`--force` promotes it all the same"


@dataclass(frozen=True, eq=False)
class Scored:
    """An adapter that was scored on test rows, and its answers to them; None if they were not kept.

    Args:
        alone: A finalist's base without an adapter: its answers to the same rows.
        answers: Those of other baselines of its study, by name.
    """

    candidate: Candidate
    rows: ScoredRows | None = None
    alone: ScoredRows | None = None
    answers: Mapping[str, KeptAnswers] = field(default_factory=dict)


@dataclass(frozen=True)
class ComparisonSetup:
    """How a finalist is compared with a champion.

    Args:
        number: Of this comparison among all on these test rows.
        level: The chance of error that it may have; None for that of its number alone.
        reference: What tolerance is measured from; None turns tolerance off.
        forced: Promote the finalist whatever the champion.
    """

    number: int = 1
    level: float | None = None
    reference: ToleranceReference | None = None
    forced: bool = False


@dataclass(frozen=True)
class _Verdict:
    promoted: bool
    reason: str
    comparison: ComparisonRecord | None = None


@dataclass(frozen=True, eq=False)
class _PromotionTest:
    """A rule, as it is applied to one finalist."""

    rule: PromotionRule
    task: Task
    criterion: Criterion
    setup: ComparisonSetup
    finalist: Scored

    @property
    def level(self) -> float:
        """The chance of error that this comparison may have: those on the same rows share what is allowed."""
        number, level = self.setup.number, self.setup.level
        return (1 - self.rule.confidence) / (number * (number + 1)) if level is None else level

    @property
    def metric(self) -> Metric | None:
        """The metric that decides; None if no kind of task has it."""
        from loraxs_search.tasks.kinds import find_metric  # numpy

        return find_metric(self.criterion.metric, self.task)

    def record(self, opponent: str, p: float | None) -> ComparisonRecord:
        reference, finalist = self.setup.reference, key(self.finalist.candidate)
        known = (None, None) if reference is None else (reference.version, reference.metric)
        confidence = 1 - self.level if self.rule.confidence else 0.0
        return ComparisonRecord(finalist, opponent, self.setup.number, confidence, p, *known)

    def p_value(self, better: ScoredRows | None, worse: ScoredRows | None) -> float | None:
        """Return the chance that `better` is ahead by luck; None if rows cannot tell."""
        if better is None or worse is None:
            return None
        from loraxs_search.registry.significance import p_value  # numpy, where rows are there to compare

        metric = self.metric
        return None if metric is None else p_value(metric, self.criterion.sign, better, worse, self.level)

    def describe_p_value(self, p: float) -> str:
        number = self.setup.number
        tiny = min(_TINY, self.level / 10)
        chance = f"p={p:.3g}" if p >= tiny else f"p<{tiny:.1g}" if tiny < _TINY else f"p<{tiny:f}".rstrip("0")
        return f"{chance}; comparison {number} on these rows, confidence {show_confidence(1 - self.level)}"

    # ---- the two comparisons -----------------------------------------------------------------------------------------
    def compare_with_baselines(self) -> _Verdict:
        """Hold a first champion against each baseline that the rule requires."""
        first, criterion, rows = "there was no champion", self.criterion, self.finalist.rows
        untested = f"{first}, and answers to test rows to hold against the constant answer are missing"
        if rows is None and self.rule.confidence:
            return _Verdict(False, f"{untested}: {_FORCE}")
        baselines = self._baselines()
        if not baselines and rows is None:
            return _Verdict(True, untested)
        if not baselines:
            return _Verdict(False, f"{criterion.metric} of the constant answer cannot be computed: {_FORCE}")
        held = [(each, self.p_value(rows, each.rows) if self.rule.confidence else None) for each in baselines]
        for baseline, p in held:
            if self.rule.confidence and p is None and baseline.rows is not None:
                why = f"{baseline.name}, whose answers are to other rows, or of other tokens"
                return _Verdict(False, f"{first} to beat but {why}: {_FORCE}")
        comparison = self.record(BASELINES, max((p for _, p in held if p is not None), default=None))
        unbeaten = [
            (one, p) for one, p in held if self._gain_over(one) <= NOISE or (p is not None and p > self.level + NOISE)
        ]
        strongest_baseline, p = min(unbeaten or held, key=lambda it: self._gain_over(it[0]))
        gain = self._gain_over(strongest_baseline)
        scored = f"{strongest_baseline.name} ({criterion.metric} {strongest_baseline.score:.4f})"
        against = f"{first}; {_beside(gain, scored)}"
        described = f" ({self.describe_p_value(p)})" if p is not None else ""
        if unbeaten:
            unsure = ", not significantly better" if gain > NOISE else ""
            return _Verdict(False, f"{against}{unsure}{described}. {TRY_NEXT}; {_CONSTANT}; {_FORCE}", comparison)
        return _Verdict(True, f"{against}{', significant' if p is not None else ''}{described}", comparison)

    def beaten_by_baseline(self) -> str:
        """Say which baseline scores higher than the finalist; empty where none does."""
        better = [each for each in self._baselines() if self._gain_over(each) < -NOISE]
        if not better:
            return ""
        best = min(better, key=self._gain_over)
        scored = f"{best.name} ({self.criterion.metric} {best.score:.4f})"
        return f"{-self._gain_over(best):.4f} worse than {scored}. {TRY_NEXT}; {_CONSTANT}; {_FORCE}"

    def unready(self) -> str:
        """Say why nothing can be decided on these test rows, and what to do; empty where it can."""
        finalist, rows, rule = self.finalist, self.finalist.rows, self.rule
        if rows is None and rule.confidence:
            return ""  # which the comparison says
        from loraxs_search.registry.baselines import unlike_rows, unmeasured
        from loraxs_search.registry.significance import MIN_ROWS

        if rule.confidence and rows is not None and len(rows.labels) < MIN_ROWS:
            few = f"at least {MIN_ROWS} test rows are needed to tell a gain from luck, but there are {len(rows.labels)}"
            return f"{few}: add test rows and search anew; {_FORCE}"
        candidate, has_alone = finalist.candidate, finalist.alone is not None
        if why := unmeasured(rule, self.task, candidate.baselines, has_alone=has_alone):
            study = candidate.study
            return f"{why}. `loraxs-search resume {study}` asks it again; {_CONSTANT}; {_FORCE}"
        if why := unlike_rows(rule, finalist.candidate, finalist.answers, rows):
            return f"{why}: {_CONSTANT}; {_FORCE}"
        if unscored := next((each for each in self._baselines() if not math.isfinite(each.score)), None):
            metric = self.criterion.metric
            return f"{metric} of {unscored.name} must be finite, but is {unscored.score}: {_CONSTANT}; {_FORCE}"
        return ""

    def _baselines(self) -> list[BaselineAnswer]:
        from loraxs_search.registry.baselines import baseline_answers

        if (metric := self.metric) is None:
            return []
        finalist = self.finalist
        of_study = (finalist.candidate.baselines, finalist.alone, finalist.answers)
        return baseline_answers(self.rule, self.task, metric, self.criterion.sign, finalist.rows, *of_study)

    def _gain_over(self, baseline: BaselineAnswer) -> float:
        finalist = self.criterion.value(self.finalist.candidate.test_metrics)
        return finalist - self.criterion.sign * baseline.score

    def compare_with_champion(self, champion: Scored) -> _Verdict:
        """Hold the finalist against the champion, on the same test rows."""
        criterion, champion_scores, name = self.criterion, champion.candidate.test_metrics, key(champion.candidate)
        if fault := self._incomparable(champion):
            return _Verdict(False, f"not comparable: {fault}")
        p = self.p_value(self.finalist.rows, champion.rows) if self.rule.confidence else None
        if self.rule.confidence and p is None:
            return _Verdict(False, f"not comparable: answers to test rows are missing; {_FORCE}")
        comparison = self.record(name, p)
        if violated := self._violated_guard(champion):
            return _Verdict(False, violated, comparison)
        gain = criterion.value(self.finalist.candidate.test_metrics) - criterion.value(champion_scores)
        scores = f"{criterion.show(champion_scores)}, {show_bytes(champion.candidate)}"
        against = _beside(gain, f"the champion {identity(champion.candidate)} ({scores})")
        described = f" ({self.describe_p_value(p)})" if p is not None else ""
        if gain > NOISE and gain >= self.rule.min_gain - NOISE:
            if p is None or p <= self.level + NOISE:
                return _Verdict(True, f"{against}, at least min_gain={self.rule.min_gain:g}{described}", comparison)
            shortfall = f", not significant{described}"
        else:
            shortfall = f", less than min_gain={self.rule.min_gain:g}" if gain > NOISE else ""
        tolerated, why = self._tolerated(champion)
        return _Verdict(tolerated, against + (f", {why}" if tolerated else shortfall + why), comparison)

    # ---- inside ------------------------------------------------------------------------------------------------------
    def _incomparable(self, champion: Scored) -> str:
        """Say why a champion's scores and answers cannot be held against the finalist's; empty where they can."""
        own, other = self.finalist.candidate.test_fingerprint, champion.candidate.test_fingerprint
        if own != other:
            return f"the champion was scored on other test rows ({other[:12]}, not {own[:12]})"
        if fault := self.criterion.fault(champion.candidate.test_metrics, "test"):
            return f"the champion has no finite test {self.criterion.metric} ({fault})"
        return self._unlike(champion)

    def _unlike(self, champion: Scored) -> str:
        """Say why answers to the same rows are unlike: texts were read otherwise, or the metric is of other tokens.

        Tokens are others by another tokenizer, or where answers are written so.
        """
        rows, others = self.finalist.rows, champion.rows
        if rows is None or others is None:
            return ""
        if not rows.read_alike(others):
            return f"answers were read by the rules of two versions; {_FORCE}"
        if rows.counts is None or others.counts is None:
            return ""
        metric = self.metric
        if metric is None or metric.column == "predictions" or rows.same_tokens(others):
            return ""
        counted = f"{metric.name} is a mean over tokens, and the champion's rows have others"
        return f"{counted}; compare by another metric, or {_FORCE}"

    def _tolerated(self, champion: Scored) -> tuple[bool, str]:
        """Say whether a smaller finalist replaces the champion although its gain is not significant."""
        reference, rule = self.setup.reference, self.rule
        if self.finalist.candidate.stored_bytes >= champion.candidate.stored_bytes:
            return False, ""
        if reference is None:
            return False, ", smaller but there is no score that tolerance could count from"
        loss = self.criterion.sign * reference.metric - self.criterion.value(self.finalist.candidate.test_metrics)
        if loss > rule.tolerance + NOISE:
            return False, f", smaller but {loss:.4f} below version {reference.version}, which tolerance counts from"
        p = self.p_value(champion.rows, self.finalist.rows) if rule.confidence else None
        if p is not None and p <= 1 - rule.confidence + NOISE:
            return False, ", smaller but significantly worse"
        return True, f"within tolerance={rule.tolerance:g} of version {reference.version}, and smaller"

    def flips(self, champion: Scored) -> AnswerFlips | None:
        """Return what the finalist changes of a champion's answers; None if answers cannot be compared."""
        rows, others = self.finalist.rows, champion.rows
        return None if rows is None or others is None else rows.flips_from(others)

    def slices(self, champion: Scored | None) -> tuple[SliceScore, ...]:
        """Return the scores on each slice of the finalist's rows, and the champion's where both can be compared."""
        rows = self.finalist.rows
        if rows is None or not rows.slices:
            return ()
        from loraxs_search.registry.scored_rows import slice_scores

        metric = self.metric
        others = None if champion is None or self._incomparable(champion) else champion.rows
        return () if metric is None else slice_scores(metric, self.criterion.sign, rows, others)

    def _violated_guard(self, champion: Scored) -> str | None:
        """Say which guarded metric falls too far."""
        finalist = self.finalist.candidate
        for name, allowed in sorted(self.rule.guards.items()):
            if name == NEGATIVE_FLIPS:
                flips = self.flips(champion)
                if flips is None:
                    return f"guard: {name} needs answers of both to the test rows, but they cannot be compared"
                if flips.negative_share > allowed + NOISE:
                    return f"guard: {name} is {flips.negative_share:.4f}, and may be at most {allowed:g}"
                continue
            if name == SLICE_LOSS:
                from loraxs_search.registry.scored_rows import losing_slice

                if fault := losing_slice(self.slices(champion), allowed):
                    return fault
                continue
            new, old = finalist.test_metrics.get(name), champion.candidate.test_metrics.get(name)
            if new is None or old is None:
                return f"guard: {name} must be known of both, but one has none"
            sign = 1.0 if better_when(name, "maximize") == "maximize" else -1.0
            if not sign * (old - new) <= allowed + NOISE:  # NaN is a fall
                return f"guard: {name} would go from {old:.4f} to {new:.4f}, and may fall by {allowed:g}"
        return None


def decide(
    rule: PromotionRule, task: Task, finalist: Scored, champion: Scored | None, setup: ComparisonSetup | None = None
) -> Decision:
    """Say whether a finalist becomes champion.

    Without a champion it must significantly beat each baseline that the rule requires; by score alone where the study
    has not kept the baseline's answers. With one it is promoted when it gains at least `min_gain` over it, more than
    nothing, and significantly; or when it stores strictly fewer bytes, is at most `tolerance` worse than the best
    champion there was, and not significantly worse than the champion. Not when a guarded metric falls by more than it
    may, nor when a required baseline scores higher.
    "Significantly" is a paired test over the test rows; all comparisons on them together are held to `confidence`
    (`ComparisonHistory`),
    and fewer than ten rows decide nothing. With a confidence of 0 numbers are taken as they stand. A champion that was
    measured on other test rows is not comparable, and stays.

    Args:
        rule: `metric` defaults to the task's.
        champion: The current champion as it was scored on these test rows; None when there is none.
        setup: By default this is the first comparison, and tolerance is off.
    """
    from loraxs_search.registry.baselines import left_out

    criterion, setup = Criterion.of(rule, task), setup or ComparisonSetup()
    candidate = finalist.candidate
    applied = _PromotionTest(rule, task, criterion, setup, finalist)
    forcible, flips, slices = True, None, tuple[SliceScore, ...]()
    if fault := criterion.fault(candidate.test_metrics, "test"):
        verdict, forcible = _Verdict(False, f"{candidate.trial_id} cannot be judged: {fault}"), False
    elif champion is not None and key(candidate) == key(champion.candidate):
        verdict, forcible = _Verdict(False, f"{identity(candidate)} already is the champion"), False
    elif why := applied.unready():
        verdict = _Verdict(False, why)
    elif champion is None:
        verdict, slices = applied.compare_with_baselines(), applied.slices(None)
    else:
        verdict, flips = applied.compare_with_champion(champion), applied.flips(champion)
        slices = applied.slices(champion)
        if verdict.promoted and (why := applied.beaten_by_baseline()):
            verdict = replace(verdict, promoted=False, reason=f"{verdict.reason}, but {why}")
    forced = setup.forced and forcible and not verdict.promoted
    score = "" if fault else f"scored on the test rows: {_show(criterion, candidate)}"
    changed, by_force = _describe_changes(flips, slices), "promoted by force" if forced else ""
    reasons = (score, *left_out(rule, candidate.baselines), *changed, verdict.reason, by_force)
    return Decision(
        task=task.registered_name,
        study=candidate.study,
        promoted=verdict.promoted or forced,
        winner=candidate.trial_id,
        winner_metric=candidate.test_metrics.get(criterion.metric),
        champion_metric=champion.candidate.test_metrics.get(criterion.metric) if champion else None,
        metric=criterion.metric,
        reasons=tuple(filter(None, reasons)),
        forced=forced,
        champion=identity(champion.candidate) if champion else None,
        p_value=verdict.comparison.p_value if verdict.comparison else None,
        test_fingerprint=candidate.test_fingerprint,
        comparisons=(verdict.comparison,) if verdict.comparison else (),
        flips=flips,
        slices=slices,
    )


def show_confidence(confidence: float) -> str:
    """Return a confidence with as many digits as tell it from certainty: 0.9917, 0.999995."""
    error = max(1 - confidence, 1e-15)
    return f"{confidence:.{max(4, 1 - math.floor(math.log10(error)))}f}".rstrip("0").rstrip(".")


def _describe_changes(flips: AnswerFlips | None, slices: tuple[SliceScore, ...]) -> list[str]:
    if flips is None and not slices:
        return []
    from loraxs_search.registry.scored_rows import describe_flips, describe_slices

    return [describe_flips(flips) if flips else "", describe_slices(slices)]


def _beside(gain: float, other: str) -> str:
    """Say how a finalist compares with another answer to the test rows."""
    if gain > NOISE:
        return f"gain {gain:+.4f} over {other}"
    return f"{-gain:.4f} worse than {other}" if gain < -NOISE else f"no better than {other}"


def _show(criterion: Criterion, candidate: Candidate) -> str:
    return f"{candidate.trial_id} ({criterion.show(candidate.test_metrics)}, {show_bytes(candidate)})"
