"""The promotion rule, pure: whether a finalist becomes champion. Test rows decide; `finalist.choose` says who it is.

The more often adapters were compared on the same rows, the surer a gain must be. Tolerance is measured from the best
champion there was on them: each smaller champion may be a little worse, and measured from the champion before, such
losses would add up.
"""

from __future__ import annotations

import functools
import hashlib
import math
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass, field, replace
from functools import cached_property

from loraxs_search.records.literals import sign_of
from loraxs_search.records.promotion import (
    NEGATIVE_FLIPS,
    SLICE_LOSS,
    AnswerFlips,
    Candidate,
    ComparisonRecord,
    Decision,
    KeptAnswers,
    PromotionRule,
    SliceScore,
)
from loraxs_search.records.task import Task
from loraxs_search.registry import evidence
from loraxs_search.registry.finalist import NOISE, Criterion, better_when, show_bytes, show_confidence
from loraxs_search.tasks.kinds import Metric, find_metric

TRY_NEXT = "Try more steps, other target modules or more trials"
SHARE_MARGIN = 0.01  # `promotion.margin` of accuracy and other shares
_CONSTANT = "with `--require constant` only the constant answer counts"
BASELINES = "constant"  # whom a first champion is compared with: all baselines
_TINY = 1e-4
_FORCE = "`--force` promotes it all the same"
MAX_SEEN = 200  # that a record has room for


# ---- uses of the same test rows --------------------------------------------------------------------------------------
class ComparisonHistory:
    """Comparisons on the same test rows, and finalists that were scored there: each finalist counts once.

    The same finalist and opponent again are the same comparison. All comparisons together have the error that one may
    have: the n-th has the share 1 / (n (n + 1)) of it, and one that finds a significant gain hands its own share on to
    the next (an online fallback procedure: Tian and Ramdas, arXiv 1910.04900).

    Args:
        past: Every decision on the task, oldest first.
        test_rows: Their fingerprint; other rows have their own count.
        seen: Keys of finalists that have answered these rows, whether or not anything was decided on them.
    """

    def __init__(self, past: Iterable[Decision], test_rows: str, seen: Iterable[str] = ()) -> None:
        self._test_rows = test_rows
        self._made: dict[tuple[str, str], ComparisonRecord] = {}
        self._last = 0
        self._counted: set[str] = set()  # digests of finalists
        for decision in past:
            self.take(decision)
        self._seen = list(dict.fromkeys(map(digest_of, seen)))

    def take(self, decision: Decision) -> None:
        """Count the comparisons and finalists of a decision."""
        if decision.test_fingerprint != self._test_rows:
            return
        if not decision.comparisons:
            self._last += len(set(decision.seen) - self._counted)
        self._counted.update(decision.seen)
        for made in decision.comparisons:  # whose number is that of those seen before, too
            self._made.setdefault((made.finalist, made.opponent), made)
            self._last = max(self._last, made.number)

    def number(self, finalist: str, opponent: str) -> int:
        """Return the number of a comparison: its own where it was made before, else the next one."""
        if (known := self._made.get((finalist, opponent))) is not None:
            return known.number
        is_counted = digest_of(finalist) in self._counted - self._compared
        return 1 + self._last + len(self.uncounted(finalist)) - is_counted

    def level(self, finalist: str, opponent: str, error: float) -> float:
        """Return the chance of error that a comparison may have, of `error` for all together."""
        known, number = self._made.get((finalist, opponent)), self.number(finalist, opponent)
        if known is not None and known.confidence:
            return 1 - known.confidence
        last = next(reversed(self._made.values()), None)
        found = last is not None and last.p_value is not None and last.p_value <= 1 - last.confidence + NOISE
        found = found and number == self._last + 1  # else the share is one of the finalists' between, maybe worse ones
        handed_on = 1 - last.confidence if last is not None and found else 0.0
        return min(error, error / (number * (number + 1)) + handed_on)

    def uncounted(self, finalist: str) -> tuple[str, ...]:
        """Return digests of other finalists that were seen and that no decision has counted yet."""
        known = self._counted | self._compared | {digest_of(finalist)}
        return tuple(digest for digest in self._seen if digest not in known)

    def unmet(self, finalist: str) -> tuple[str, ...]:
        """Return the digest of a finalist that was compared with nobody so far."""
        digest = digest_of(finalist)
        return () if digest in self._compared else (digest,)

    @property
    def _compared(self) -> set[str]:
        return {digest_of(finalist) for finalist, _ in self._made}


@functools.cache
def digest_of(finalist: str) -> str:
    """Return the short digest of a finalist's key, as records of what was seen have it."""
    return hashlib.sha256(finalist.encode()).hexdigest()[:8]


@dataclass(frozen=True)
class ToleranceReference:
    """A version of the task's adapters, and its score on the test rows.

    Args:
        rows: Its answers to them.
        fault: Why there are none.
    """

    version: int
    metric: float
    rows: evidence.ScoredRows | None = field(default=None, compare=False)
    fault: str = field(default="", compare=False)


def find_tolerance_reference(
    criterion: Criterion, test_rows: str, past: Sequence[Decision], champion: ToleranceReference | None
) -> ToleranceReference | None:
    """Return the best version that was champion on these test rows.

    Versions that were rolled back, removed or force-promoted do not count. The present champion counts as it was scored
    on these rows, anew where they are new to it.

    Args:
        past: Every decision on the task, oldest first.
        champion: The present one; None when there is none that could be scored on these rows.
    """
    scores, left, forced, holder = dict[int, float](), set[int](), set[int](), None
    for decision in past:
        version = decision.version
        is_here = decision.test_fingerprint == test_rows and decision.metric == criterion.metric
        for made in decision.comparisons if is_here else ():
            if made.reference_version is not None and made.reference_metric is not None:
                scores.setdefault(made.reference_version, made.reference_metric)
        if version is None:
            continue
        if decision.action == "remove":
            left.add(version)
        elif decision.promoted:
            if decision.action == "rollback" and holder is not None:
                left.add(holder)
            left.discard(version)
            if decision.action == "promote" and is_here and decision.winner_metric is not None:
                scores[version] = decision.winner_metric
                (forced.add if decision.forced else forced.discard)(version)
            holder = version
    if champion is not None:
        scores.setdefault(champion.version, champion.metric)
    usable = [ToleranceReference(v, metric) for v, metric in scores.items() if v not in left | forced]
    return max(usable, key=lambda one: (criterion.sign * one.metric, -one.version), default=None)


# ---- the rule --------------------------------------------------------------------------------------------------------
@dataclass(frozen=True, eq=False)
class Scored:
    """An adapter that was scored on test rows, and its answers to them; None if they were not kept.

    Args:
        untouched: A finalist's base without an adapter: its answers to the same rows.
        answers: Those of other baselines of its study, by name.
        note: How a champion's scores came about, where they are not the recorded ones; shown to users.
    """

    candidate: Candidate
    rows: evidence.ScoredRows | None = None
    untouched: evidence.ScoredRows | None = None
    answers: Mapping[str, KeptAnswers] = field(default_factory=dict)
    note: str = ""


@dataclass(frozen=True)
class ComparisonSetup:
    """How a finalist is compared.

    Args:
        number: Of this comparison among all on these test rows.
        level: The chance of error that it may have; None for that of its number alone.
        reference: What a smaller finalist may be worse than; None if nothing on these rows can be that.
        forced: Promote the finalist whatever the champion.
    """

    number: int = 1
    level: float | None = None
    reference: ToleranceReference | None = None
    forced: bool = False


_Verdict = tuple[bool, str, ComparisonRecord | None]  # whether it is promoted, why, and what was compared


class PromotionTest:
    """A rule, as it is applied to one finalist; what answers say is computed once, however often it decides."""

    def __init__(self, rule: PromotionRule, task: Task, finalist: Scored) -> None:
        self.rule, self.task, self.criterion = rule, task, Criterion.of(rule, task)
        self.finalist = self.by_answers(finalist)
        self._p_values: dict[int, tuple[evidence.ScoredRows, float | None]] = {}

    def decide(self, champion: Scored | None, setup: ComparisonSetup | None = None) -> Decision:
        """Say whether the finalist becomes champion.

        Without a champion it must significantly beat each baseline that the rule requires. With one it is promoted when
        it gains at least `min_gain` over it, more than nothing, and significantly; or when it stores strictly fewer
        bytes, and "worse than the best champion there was by `margin` or more" is rejected. Not when a guarded metric
        falls by more than it may, nor when a required baseline scores higher.
        Both are paired tests over the test rows; all comparisons on them together are held to `confidence`
        (`ComparisonHistory`), and fewer than ten rows decide nothing. With a confidence of 0 numbers are taken as they
        stand. A champion that was measured on other test rows is not comparable, and stays. Answers that are missing
        decide nothing.

        Args:
            champion: The current champion as it was scored on these test rows; None when there is none.
            setup: By default this is the first comparison, and no finalist wins by its size.
        """
        criterion, candidate, setup = self.criterion, self.finalist.candidate, setup or ComparisonSetup()
        champion = None if champion is None else self.by_answers(champion)
        promoted, forcible, comparison, said_of_flips = False, True, None, ""
        flips, slices = None, tuple[SliceScore, ...]()
        if fault := criterion.fault(candidate.test_metrics, "test"):
            why, forcible = f"{candidate.trial_id} cannot be judged: {fault}", False
        elif champion is not None and candidate.key == champion.candidate.key:
            why, forcible = f"{candidate.name} already is the champion", False
        elif why := self.unready():
            pass
        elif champion is None:
            promoted, sentence = self.judge(setup)
            p_values = [p for each in self.baselines if (p := self.luck(each.rows)) is not None]
            p = max(p_values, default=None) if self.rule.confidence else None
            comparison = self._record(BASELINES, p, setup) if self.baselines else None
            why, slices = f"there was no champion; {sentence}", self._slices(None)
        else:
            promoted, why, comparison = self._against_champion(champion, setup)
            flips, slices = self._flips(champion), self._slices(champion)
            if flips is not None:
                said_of_flips = (
                    f"of {flips.num_rows:,} test rows, {flips.negative:,} ({flips.negative_share:.1%}) that the"
                    f" champion answers right become wrong, and {flips.positive:,} that it answers wrong become right"
                )
            best = min(self.baselines, key=self._gain_over, default=None)
            if promoted and best is not None and (gain := self._gain_over(best)) < -NOISE:
                scored = f"{-gain:.4f} worse than {best.name} ({criterion.metric} {best.score:.4f})"
                promoted, why = False, f"{why}, but {scored}. {TRY_NEXT}; {_CONSTANT}; {_FORCE}"
        forced = setup.forced and forcible and not promoted
        reasons = [
            champion.note if champion else "",
            "" if fault else f"scored on the test rows: {criterion.describe(candidate, 'test')}",
            *evidence.left_out(self.rule, candidate.baselines, criterion.metric),
            said_of_flips,
            evidence.describe_slices(slices),
            why,
            "promoted by force" if forced else "",
        ]
        return Decision(
            task=self.task.registered_name,
            study=candidate.study,
            promoted=promoted or forced,
            winner=candidate.trial_id,
            winner_metric=candidate.test_metrics.get(criterion.metric),
            champion_metric=champion.candidate.test_metrics.get(criterion.metric) if champion else None,
            metric=criterion.metric,
            reasons=tuple(filter(None, reasons)),
            forced=forced,
            champion=champion.candidate.name if champion else None,
            p_value=comparison.p_value if comparison else None,
            test_fingerprint=candidate.test_fingerprint,
            comparisons=(comparison,) if comparison else (),
            flips=flips,
            slices=slices,
        )

    def decide_after(
        self,
        past: Sequence[Decision],
        champion: Scored | None,
        *,
        seen: Sequence[str] = (),
        reference: ToleranceReference | None = None,
        forced: bool = False,
    ) -> Decision:
        """Decide as `decide` does, held to what earlier comparisons on the same test rows leave.

        Args:
            past: Every decision on the task, oldest first.
            seen: Keys of other finalists that have answered the test rows: each counts as a comparison on them.
        """
        own = self.finalist.candidate
        earlier = [replace(own, trial_id=trial_id).key for trial_id in own.earlier_finalists]
        history = ComparisonHistory(past, own.test_fingerprint, [*earlier, *seen])
        uncounted, unmet = history.uncounted(own.key), history.unmet(own.key) if own.test_metrics else ()
        other = BASELINES if champion is None else champion.candidate.key
        level = history.level(own.key, other, 1 - self.rule.confidence)
        setup = ComparisonSetup(history.number(own.key, other), level, reference, forced)
        decision = self.decide(champion, setup)
        kept = uncounted[:MAX_SEEN]  # the others count again in the next decision, so never too seldom
        return replace(decision, seen=kept if decision.comparisons else (*kept, *unmet))

    def by_answers(self, scored: Scored) -> Scored:
        """Return an adapter with the metrics that this rule looks at as its answers have them, not as a tag says."""
        if scored.rows is None:
            return scored
        metrics = dict(scored.candidate.test_metrics)
        for name in {self.criterion.metric, *self.rule.guards}:
            metric = find_metric(name, self.task)
            if metric is not None and (score := evidence.score_of(metric, scored.rows)) is not None:
                metrics[name] = score
        return replace(scored, candidate=replace(scored.candidate, test_metrics=metrics))

    def best(self, past: Sequence[Decision], champion: Scored | None, version: int | None) -> ToleranceReference | None:
        """Return the best champion there was on the finalist's test rows, the present one as it is scored there."""
        rows, present = self.finalist.candidate.test_fingerprint, None
        if champion is not None and version is not None:
            champion = self.by_answers(champion)
            metrics = champion.candidate.test_metrics
            if champion.candidate.test_fingerprint == rows and self.criterion.fault(metrics, "test") is None:
                present = ToleranceReference(version, metrics[self.criterion.metric], champion.rows)
        return find_tolerance_reference(self.criterion, rows, past, present)

    # ---- numbers -----------------------------------------------------------------------------------------------------
    @cached_property
    def metric(self) -> Metric | None:
        """The metric that decides; None if no kind of task has it."""
        return find_metric(self.criterion.metric, self.task)

    @cached_property
    def baselines(self) -> list[evidence.BaselineAnswer]:
        """The baselines that the rule requires, as far as they have a score."""
        finalist = self.finalist
        if self.metric is None:
            return []
        of_study = (finalist.candidate.baselines, finalist.untouched, finalist.answers)
        return evidence.baseline_answers(
            self.rule, self.task, self.metric, self.criterion.sign, finalist.rows, *of_study
        )

    @property
    def margin(self) -> float:
        """How much worse a smaller finalist may be; 0 if it may not."""
        if self.rule.margin is not None:
            return self.rule.margin
        return SHARE_MARGIN if self.metric is not None and self.metric.is_share else 0.0

    def luck(self, others: evidence.ScoredRows | None) -> float | None:
        """Return the chance that the finalist is ahead of others by luck; None if rows cannot tell."""
        rows, metric = self.finalist.rows, self.metric
        if rows is None or others is None or metric is None:
            return None
        if id(others) not in self._p_values:
            self._p_values[id(others)] = others, evidence.p_value(metric, self.criterion.sign, rows, others)
        return self._p_values[id(others)][1]

    def _level(self, setup: ComparisonSetup) -> float:
        """Return the chance of error that a comparison may have: those on the same rows share what is allowed."""
        number = setup.number
        return (1 - self.rule.confidence) / (number * (number + 1)) if setup.level is None else setup.level

    def _record(self, opponent: str, p: float | None, setup: ComparisonSetup) -> ComparisonRecord:
        reference = setup.reference
        known = (None, None) if reference is None else (reference.version, reference.metric)
        confidence = 1 - self._level(setup) if self.rule.confidence else 0.0
        return ComparisonRecord(self.finalist.candidate.key, opponent, setup.number, confidence, p, *known)

    def _held_to(self, setup: ComparisonSetup) -> str:
        return f"comparison {setup.number} on these rows, confidence {show_confidence(1 - self._level(setup))}"

    def _describe_p_value(self, p: float, setup: ComparisonSetup) -> str:
        tiny = min(_TINY, self._level(setup) / 10)
        chance = f"p={p:.3g}" if p >= tiny else f"p<{tiny:.1g}" if tiny < _TINY else f"p<{tiny:f}".rstrip("0")
        return f" ({chance}; {self._held_to(setup)})"

    def _gain_over(self, baseline: evidence.BaselineAnswer) -> float:
        finalist = self.criterion.value(self.finalist.candidate.test_metrics)
        return finalist - self.criterion.sign * baseline.score

    # ---- baselines ---------------------------------------------------------------------------------------------------
    def unready(self) -> str:
        """Say why nothing can be decided on these test rows, and what to do; empty where it can."""
        finalist, rule = self.finalist, self.rule
        candidate, rows, known = finalist.candidate, finalist.rows, finalist.candidate.baselines
        if rule.confidence and rows is None:
            return f"the answers of {candidate.trial_id} to the test rows are missing: {_FORCE}"
        if rule.confidence and rows is not None and (num_rows := len(rows.labels)) < evidence.MIN_ROWS:
            needed = (
                f"at least {evidence.MIN_ROWS} test rows are needed to tell a gain from luck, but there are {num_rows}"
            )
            return f"{needed}: add test rows and search anew; {_FORCE}"
        if rule.require == "all":
            answered = finalist.answers if rule.confidence else [one.name for one in known]
            if found := evidence.unmeasured(self.task, known, answered, has_untouched=finalist.untouched is not None):
                again = f". `loraxs-search resume {candidate.study}` measures it again" if found[1] else ""
                return f"{found[0]}{again}; {_CONSTANT}; {_FORCE}"
            for name, said in finalist.answers.items():
                about, others = (said.task or candidate.task, said.test_rows or candidate.test_fingerprint), ""
                if about != (candidate.task, candidate.test_fingerprint):
                    others = f"test rows of {about[0]} with fingerprint {about[1][:16]}"
                elif rows is not None and len(said.values) != len(rows.labels):
                    others = f"{len(said.values)} test rows, but there are {len(rows.labels)}"
                if others:
                    return f"the answers of {name} are to {others}: {_CONSTANT}; {_FORCE}"
        unscored = next((each for each in self.baselines if not math.isfinite(each.score)), None)
        if unscored is None:
            return ""
        metric = self.criterion.metric
        return f"{metric} of {unscored.name} must be finite, but is {unscored.score}: {_CONSTANT}; {_FORCE}"

    def judge(self, setup: ComparisonSetup) -> tuple[bool, str]:
        """Say whether the finalist beats every baseline that the rule requires, significantly, and in which words.

        The same sentence stands at the end of a search, in its report and in a decision on a first champion.
        """
        metrics, metric = self.finalist.candidate.test_metrics, self.criterion.metric
        if why := self.criterion.fault(metrics, "test") or self.unready():
            return False, why
        if not self.baselines:
            return False, f"{metric} of the constant answer cannot be computed: {_FORCE}"
        held = [(each, self.luck(each.rows) if self.rule.confidence else None) for each in self.baselines]
        unbeaten = [
            (each, p)
            for each, p in held
            if self._gain_over(each) <= NOISE
            or (self.rule.confidence and (p is None or p > self._level(setup) + NOISE))
        ]
        strongest, p = min(unbeaten or held, key=lambda it: self._gain_over(it[0]))
        gain = self._gain_over(strongest)
        against = _beside(gain, f"{strongest.name} ({self.criterion.metric} {strongest.score:.4f})")
        described = self._describe_p_value(p, setup) if p is not None else ""
        if not unbeaten:
            return True, f"{against}{', significant' if p is not None else ''}{described}"
        unsure = ", not significantly better" if gain > NOISE else ""
        if self.rule.confidence and p is None:
            unsure = ", whose answers are to other rows, or of other tokens"
        return False, f"{against}{unsure}{described}. {TRY_NEXT}; {_CONSTANT}; {_FORCE}"

    # ---- the champion ------------------------------------------------------------------------------------------------
    def _against_champion(self, champion: Scored, setup: ComparisonSetup) -> _Verdict:
        """Hold the finalist against the champion, on the same test rows."""
        criterion, own, other = self.criterion, self.finalist.candidate, champion.candidate
        if fault := self._incomparable(champion):
            return False, f"not comparable: {fault}", None
        p = self.luck(champion.rows) if self.rule.confidence else None
        if self.rule.confidence and p is None:
            return False, f"not comparable: the champion's answers to the test rows are missing; {_FORCE}", None
        comparison = self._record(other.key, p, setup)
        if violated := self._violated_guard(champion):
            return False, violated, comparison
        gain = criterion.value(own.test_metrics) - criterion.value(other.test_metrics)
        scores = f"{criterion.show(other.test_metrics)}, {show_bytes(other)}"
        against = _beside(gain, f"the champion {other.name} ({scores})")
        described = self._describe_p_value(p, setup) if p is not None else ""
        if gain > NOISE and gain >= self.rule.min_gain - NOISE:
            if p is None or p <= self._level(setup) + NOISE:
                return True, f"{against}, at least min_gain={self.rule.min_gain:g}{described}", comparison
            against += f", not significant{described}"
        elif gain > NOISE:
            against += f", less than min_gain={self.rule.min_gain:g}"
        if own.stored_bytes >= other.stored_bytes:
            return False, against, comparison
        promoted, why = self._not_worse(setup)
        return promoted, f"{against}; it is smaller, {why}", comparison

    def _not_worse(self, setup: ComparisonSetup) -> tuple[bool, str]:
        """Say whether rows show that the finalist is less than `margin` worse than the best champion there was."""
        reference, rows, margin = setup.reference, self.finalist.rows, self.margin
        if not margin:
            return False, "and `promotion.margin` does not say how much worse it may be"
        if reference is None:
            return False, "but no champion has answers to these test rows that it could be compared with"
        of, level = f"version {reference.version}", self._level(setup)
        if not self.rule.confidence:
            loss = self.criterion.sign * reference.metric - self.criterion.value(self.finalist.candidate.test_metrics)
            return loss < margin - NOISE, f"and {max(loss, 0.0):.4f} worse than {of} (margin={margin:g})"
        bound = None
        if rows is not None and reference.rows is not None and self.metric is not None:
            bound = evidence.loss_bound(self.metric, self.criterion.sign, rows, reference.rows, level)
        if bound is None:
            return False, f"but its answers cannot be compared with those of {of}: {reference.fault or 'they differ'}"
        shown, is_enough = f"less than {bound:.4f} worse than {of}", bound <= margin + NOISE
        found = "and these rows show that it is" if is_enough else "but these rows show only that it is"
        return is_enough, f"{found} {shown} (margin={margin:g}; {self._held_to(setup)})"

    def _incomparable(self, champion: Scored) -> str:
        """Say why a champion's scores and answers cannot be held against the finalist's; empty where they can."""
        own, other = self.finalist.candidate.test_fingerprint, champion.candidate.test_fingerprint
        if own != other:
            return f"the champion was scored on other test rows ({other[:12]}, not {own[:12]})"
        if fault := self.criterion.fault(champion.candidate.test_metrics, "test"):
            return f"the champion has no finite test {self.criterion.metric} ({fault})"
        rows, others, metric = self.finalist.rows, champion.rows, self.metric
        if rows is None or others is None:
            return ""
        if not rows.read_alike(others):
            return f"answers were read by the rules of two versions; {_FORCE}"
        # Tokens are others by another tokenizer, or where answers are written so.
        has_both = rows.counts is not None and others.counts is not None
        if not has_both or metric is None or metric.column == "predictions" or rows.same_tokens(others):
            return ""
        counted = f"{metric.name} is a mean over tokens, and the champion's rows have others"
        return f"{counted}; compare by another metric, or {_FORCE}"

    def _flips(self, champion: Scored) -> AnswerFlips | None:
        """Return what the finalist changes of a champion's answers; None if answers cannot be compared."""
        rows, others = self.finalist.rows, champion.rows
        return None if rows is None or others is None else rows.flips_from(others)

    def _slices(self, champion: Scored | None) -> tuple[SliceScore, ...]:
        """Return the scores on each slice of the finalist's rows, and the champion's where both can be compared."""
        rows = self.finalist.rows
        if rows is None or not rows.slices:
            return ()
        metric = self.metric
        others = None if champion is None or self._incomparable(champion) else champion.rows
        return () if metric is None else evidence.slice_scores(metric, self.criterion.sign, rows, others)

    def _violated_guard(self, champion: Scored) -> str | None:
        """Say which guarded metric falls too far."""
        finalist = self.finalist.candidate
        for name, allowed in sorted(self.rule.guards.items()):
            if name == NEGATIVE_FLIPS:
                flips = self._flips(champion)
                if flips is None:
                    return f"guard: {name} needs answers of both to the test rows, but they cannot be compared"
                if flips.negative_share > allowed + NOISE:
                    return f"guard: {name} is {flips.negative_share:.4f}, and may be at most {allowed:g}"
                continue
            if name == SLICE_LOSS:
                if fault := evidence.losing_slice(self._slices(champion), allowed):
                    return fault
                continue
            new, old = finalist.test_metrics.get(name), champion.candidate.test_metrics.get(name)
            if new is None or old is None:
                return f"guard: {name} must be known of both, but one has none"
            sign = sign_of(better_when(name, "maximize"))
            if not sign * (old - new) <= allowed + NOISE:  # NaN is a fall
                return f"guard: {name} would go from {old:.4f} to {new:.4f}, and may fall by {allowed:g}"
        return None


def _beside(gain: float, other: str) -> str:
    """Say how a finalist compares with another answer to the test rows."""
    if gain > NOISE:
        return f"gain {gain:+.4f} over {other}"
    return f"{-gain:.4f} worse than {other}" if gain < -NOISE else f"no better than {other}"
