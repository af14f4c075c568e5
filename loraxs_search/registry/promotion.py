"""The promotion rule, pure: whether a finalist becomes champion. Test rows decide; `finalist.choose` says who it is.

The more often adapters were compared on the same rows, the surer a gain must be. Tolerance is measured from the best
champion there was on them: each smaller champion may be a little worse, and measured from the champion before, such
losses would add up.
"""

from __future__ import annotations

import functools
import hashlib
import math
from collections.abc import Collection, Mapping, Sequence
from dataclasses import dataclass, field, replace
from functools import cached_property

import numpy as np

from loraxs_search.errors import counted
from loraxs_search.records.codec import sign_of
from loraxs_search.records.search import (
    COVERAGE,
    MIN_SLICE_ROWS,
    NEGATIVE_FLIPS,
    SLICE_LOSS,
    AnswerFlips,
    Baseline,
    Candidate,
    ComparisonRecord,
    Decision,
    PromotionRule,
    SliceScore,
)
from loraxs_search.records.task import Task
from loraxs_search.registry.evidence import MIN_ROWS, ScoredRows, loss_bound, p_value, score_of, slice_scores
from loraxs_search.registry.finalist import NOISE, Criterion, better_when
from loraxs_search.tasks.baselines import BASELINES as KNOWN_BASELINES
from loraxs_search.tasks.baselines import fitting_baselines
from loraxs_search.tasks.kinds import Metric, find_metric, kind_of

TRY_NEXT = "Try more steps, other target modules or more trials"
SHARE_MARGIN = 0.01  # `promotion.margin` of accuracy and other shares
CONSTANT = "constant"
BASELINES = CONSTANT  # whom a first champion is compared with: all baselines
MAX_SEEN = 200  # that a record has room for
_ONLY_CONSTANT = "with `--require constant` only the constant answer counts"
_FORCE = "`--force` promotes it all the same"
_TINY = 1e-4
_LISTED = 5  # slices that a sentence names


# ---- uses of the same test rows --------------------------------------------------------------------------------------
def _comparison_share(
    past: Sequence[Decision], test_rows: str, finalist: str, opponent: str, error: float, seen: Sequence[str]
) -> tuple[int, float, tuple[str, ...]]:
    """Return the number of a comparison on test rows, and the chance of error that it may have.

    Each finalist that was scored on the rows counts once. The same finalist and opponent again are the same comparison.
    All comparisons together have the error that one may have: the n-th has the share 1 / (n (n + 1)) of it, and one
    that finds a significant gain hands its own share on to the next (an online fallback procedure: Tian and Ramdas,
    arXiv 1910.04900).

    Args:
        past: Every decision on the task, oldest first.
        test_rows: Their fingerprint; other rows have their own count.
        finalist, opponent: Their keys.
        error: What all comparisons may have together.
        seen: Keys of finalists that have answered these rows, whether or not anything was decided on them.
    Returns:
        Last, the digests of other finalists that were seen and that no decision has counted yet.
    """
    made: dict[tuple[str, str], ComparisonRecord] = {}
    last, counted_before = 0, set[str]()
    for decision in past:
        if decision.test_fingerprint != test_rows:
            continue
        if not decision.comparisons:
            last += len(set(decision.seen) - counted_before)
        counted_before.update(decision.seen)
        for each in decision.comparisons:  # whose number is that of those seen before, too
            made.setdefault((each.finalist, each.opponent), each)
            last = max(last, each.number)
    own, compared = _digest_of(finalist), {_digest_of(known) for known, _ in made}
    known = counted_before | compared | {own}
    uncounted = tuple(digest for digest in dict.fromkeys(map(_digest_of, seen)) if digest not in known)
    same, newest = made.get((finalist, opponent)), next(reversed(made.values()), None)
    number = same.number if same else 1 + last + len(uncounted) - (own in counted_before - compared)
    if same is not None and same.confidence:
        return number, 1 - same.confidence, uncounted
    handed_on = 0.0
    # Between two that do not follow each other, the share is one of the finalists' between, maybe worse ones.
    if newest is not None and newest.p_value is not None and number == last + 1:
        found = newest.p_value <= 1 - newest.confidence + NOISE
        handed_on = 1 - newest.confidence if found else 0.0
    return number, min(error, error / (number * (number + 1)) + handed_on), uncounted


@functools.cache
def _digest_of(finalist: str) -> str:
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
    rows: ScoredRows | None = field(default=None, compare=False)
    fault: str = field(default="", compare=False)


# ---- baselines -------------------------------------------------------------------------------------------------------
@dataclass(frozen=True, eq=False)
class _BaselineAnswer:
    """A baseline's score on the test rows, the finalist's gain over it, and its answers; None if none were kept."""

    name: str  # as people read it
    score: float
    gain: float
    rows: ScoredRows | None


def _always(rows: ScoredRows, answer: float | str) -> ScoredRows:
    return ScoredRows(np.full(len(rows.labels), answer, rows.labels.dtype), rows.labels)


def unmeasured(
    task: Task, baselines: Sequence[Baseline], answered: Collection[str], *, has_untouched: bool
) -> tuple[str, bool] | None:
    """Return which baseline of a task was not measured, and whether measuring again can help; None if all were.

    Args:
        answered: Names of simple models whose answers to the test rows the study has kept.
        has_untouched: Whether it has those of the untouched base.
    """
    kind, known = kind_of(task), {one.name: one for one in baselines}
    fitting, installed = fitting_baselines(kind), KNOWN_BASELINES.names()
    for one in known.values():
        if one.is_unmeasured and (one.name in fitting or one.name not in installed):
            name = f"the untouched base ({one.name})" if one.is_untouched else one.name
            return f"{name} was not measured: {one.failed}", one.applies
        if not (one.failed or one.answer is not None or one.is_untouched or one.name in (*answered, CONSTANT)):
            return f"the answers of {one.name} to the test rows are missing", True
    if missing := [name for name in fitting if name not in known]:
        return f"{missing[0]} was not measured", True
    if has_untouched or not (kind.shots or any(one.is_untouched for one in baselines)):
        return None
    measured = next((one for one in baselines if one.is_untouched and one.test_metrics), None)
    asked = f"the answers of the untouched base ({measured.name}) to the test rows are missing" if measured else ""
    return asked or "the untouched base was not asked", True


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
    rows: ScoredRows | None = None
    untouched: ScoredRows | None = None
    answers: Mapping[str, Baseline] = field(default_factory=dict)
    note: str = ""


_Verdict = tuple[bool, str, ComparisonRecord | None]  # whether it is promoted, why, and what was compared


class PromotionTest:
    """A rule, as it is applied to one finalist; what answers say is computed once, however often it decides."""

    def __init__(self, rule: PromotionRule, task: Task, finalist: Scored) -> None:
        self.rule, self.task, self.criterion = rule, task, Criterion.of(rule, task)
        self.metric: Metric | None = find_metric(self.criterion.metric, task)  # None if no kind of task has it
        self.finalist = self._by_answers(finalist)
        self._p_values: dict[int, tuple[ScoredRows, float | None]] = {}

    def decide(
        self,
        champion: Scored | None,
        past: Sequence[Decision] = (),
        *,
        seen: Sequence[str] = (),
        reference: ToleranceReference | None = None,
        forced: bool = False,
    ) -> Decision:
        """Say whether the finalist becomes champion.

        Without a champion it must significantly beat each baseline that the rule requires. With one it is promoted when
        it gains at least `min_gain` over it, more than nothing, and significantly; or when it stores strictly fewer
        bytes, and "worse than the best champion there was by `margin` or more" is rejected. Not when a guarded metric
        falls by more than it may, nor when a required baseline scores higher.
        Both are paired tests over the test rows; all comparisons on them together are held to `confidence`, and fewer
        than ten rows decide nothing. With a confidence of 0 numbers are taken as they stand. A champion that was
        measured on other test rows is not comparable, and stays. Answers that are missing decide nothing.

        Args:
            champion: The current champion as it was scored on these test rows; None when there is none.
            past: Every decision on the task, oldest first.
            seen: Keys of other finalists that have answered the test rows: each counts as a comparison on them.
            reference: What a smaller finalist may be worse than; None if nothing on these rows can be that.
            forced: Promote the finalist whatever the champion.
        """
        criterion, candidate = self.criterion, self.finalist.candidate
        champion = None if champion is None else self._by_answers(champion)
        earlier = [replace(candidate, trial_id=trial_id).key for trial_id in candidate.earlier_finalists]
        opponent = BASELINES if champion is None else champion.candidate.key
        test_rows, error = candidate.test_fingerprint, 1 - self.rule.confidence
        number, level, uncounted = _comparison_share(past, test_rows, candidate.key, opponent, error, [*earlier, *seen])
        held = self._comparison(opponent, number, level, reference)
        promoted, forcible, made = False, True, None
        flips, slices = None, tuple[SliceScore, ...]()
        if fault := criterion.fault(candidate.test_metrics, "test"):
            why, forcible = f"{candidate.trial_id} cannot be judged: {fault}", False
        elif champion is not None and candidate.key == champion.candidate.key:
            why, forcible = f"{candidate.name} already is the champion", False
        elif why := self._unready():
            pass
        else:
            rows, others = self.finalist.rows, None if champion is None else champion.rows
            if rows is not None and self.metric is not None:
                comparable = None if champion is None or self._incomparable(champion) else others
                slices = slice_scores(self.metric, criterion.sign, rows, comparable)
            if champion is None:
                promoted, sentence, made = self._against_baselines(held)
                why = f"there was no champion; {sentence}"
            else:
                flips = None if rows is None or others is None else rows.flips_from(others)
                promoted, why, made = self._against_champion(champion, held, reference, flips, slices)
                best = min(self.baselines, key=lambda each: each.gain, default=None)
                if promoted and best is not None and best.gain < -NOISE:
                    scored = f"{-best.gain:.4f} worse than {best.name} ({criterion.metric} {best.score:.4f})"
                    promoted, why = False, f"{why}, but {scored}. {TRY_NEXT}; {_ONLY_CONSTANT}; {_FORCE}"
        forced = forced and forcible and not promoted
        reasons = [
            champion.note if champion else "",
            "" if fault else f"scored on the test rows: {criterion.describe(candidate, 'test')}",
            *self._not_required(),
            *(f"sure {each}" for each in candidate.operating_points),
            *_describe_changes(flips, slices),
            why,
            "promoted by force" if forced else "",
        ]
        counted_now = uncounted[:MAX_SEEN]  # the others count again in the next decision, so never too seldom
        met = {it.finalist for known in past if known.test_fingerprint == test_rows for it in known.comparisons}
        if candidate.test_metrics and made is None and candidate.key not in met:
            counted_now += (_digest_of(candidate.key),)
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
            p_value=made.p_value if made else None,
            test_fingerprint=test_rows,
            comparisons=(made,) if made else (),
            seen=counted_now,
            flips=flips,
            slices=slices,
        )

    def _by_answers(self, scored: Scored) -> Scored:
        """Return an adapter with the metrics that this rule looks at as its answers have them, not as a tag says."""
        if scored.rows is None:
            return scored
        metrics = dict(scored.candidate.test_metrics)
        for name in {self.criterion.metric, *self.rule.guards}:
            metric = find_metric(name, self.task)
            if metric is not None and (score := score_of(metric, scored.rows)) is not None:
                metrics[name] = score
        return replace(scored, candidate=replace(scored.candidate, test_metrics=metrics))

    def reference(
        self, past: Sequence[Decision], champion: Scored | None, version: int | None
    ) -> ToleranceReference | None:
        """Return the best version that was champion on the finalist's test rows.

        Versions that were rolled back, removed or force-promoted do not count. The present champion counts as it was
        scored on these rows, anew where they are new to it.

        Args:
            past: Every decision on the task, oldest first.
            champion: The present one, which is `version`.
        """
        criterion, rows = self.criterion, self.finalist.candidate.test_fingerprint
        scores, left, forced, holder = dict[int, float](), set[int](), set[int](), None
        for decision in past:
            held = decision.version
            is_here = decision.test_fingerprint == rows and decision.metric == criterion.metric
            for made in decision.comparisons if is_here else ():
                if made.reference_version is not None and made.reference_metric is not None:
                    scores.setdefault(made.reference_version, made.reference_metric)
            if held is None:
                continue
            if decision.action == "remove":
                left.add(held)
            elif decision.promoted:
                if decision.action == "rollback" and holder is not None:
                    left.add(holder)
                left.discard(held)
                if decision.action == "promote" and is_here and decision.winner_metric is not None:
                    scores[held] = decision.winner_metric
                    (forced.add if decision.forced else forced.discard)(held)
                holder = held
        if champion is not None and version is not None:
            present = self._by_answers(champion).candidate
            if present.test_fingerprint == rows and criterion.fault(present.test_metrics, "test") is None:
                scores.setdefault(version, present.test_metrics[criterion.metric])
        usable = [ToleranceReference(v, metric) for v, metric in scores.items() if v not in left | forced]
        return max(usable, key=lambda one: (criterion.sign * one.metric, -one.version), default=None)

    # ---- numbers -----------------------------------------------------------------------------------------------------
    def _luck(self, others: ScoredRows | None) -> float | None:
        """Return the chance that the finalist is ahead of others by luck; None if rows cannot tell."""
        rows, metric = self.finalist.rows, self.metric
        if rows is None or others is None or metric is None:
            return None
        if id(others) not in self._p_values:
            self._p_values[id(others)] = others, p_value(metric, self.criterion.sign, rows, others)
        return self._p_values[id(others)][1]

    def _comparison(
        self, opponent: str, number: int, level: float, reference: ToleranceReference | None = None
    ) -> ComparisonRecord:
        """Return a comparison that may have a chance of error of `level`, before its p-value is known."""
        known = (None, None) if reference is None else (reference.version, reference.metric)
        confidence = 1 - level if self.rule.confidence else 0.0
        return ComparisonRecord(self.finalist.candidate.key, opponent, number, confidence, None, *known)

    # ---- baselines ---------------------------------------------------------------------------------------------------
    @cached_property
    def baselines(self) -> list[_BaselineAnswer]:
        """The baselines that the rule requires, as far as they have a score.

        Their answers are scored as the finalist's are. If the finalist's were not kept, recorded scores serve.
        """
        finalist, metric = self.finalist, self.metric
        rows, of_study = finalist.rows, finalist.candidate.baselines
        if metric is None:
            return []
        constant = next((each for each in of_study if each.name == CONSTANT), None)
        said: list[tuple[str, ScoredRows | None, Baseline | None]] = []  # name, answers, what is recorded
        if rows is None:
            said.append(("the constant answer", None, constant))
        else:
            said.append(("the constant answer", self._constant(metric, rows, constant), None))
        if self.rule.require != "constant":
            measured = next((one for one in of_study if one.is_untouched and one.test_metrics), None)
            name = f"the untouched base{f' ({measured.name})' if measured else ''}"
            said.append((name, finalist.untouched, measured))
            for each in of_study:
                if each.name == CONSTANT or each.is_untouched:
                    continue
                kept, own = finalist.answers.get(each.name), None
                if rows is not None and each.answer is not None:
                    own = _always(rows, each.answer)
                elif rows is not None and kept is not None and len(kept.test_answers) == len(rows.labels):
                    own = ScoredRows(np.asarray(kept.test_answers, rows.labels.dtype), rows.labels)
                said.append((each.name, own, each))
        found, own_value = list[_BaselineAnswer](), self.criterion.value(finalist.candidate.test_metrics)
        for name, answers, recorded in said:
            score = recorded.test_metrics.get(metric.name) if answers is None and recorded else None
            score = score if answers is None else score_of(metric, answers)
            if score is not None:
                found.append(_BaselineAnswer(name, score, own_value - self.criterion.sign * score, answers))
        return found

    def _constant(self, metric: Metric, rows: ScoredRows, measured: Baseline | None) -> ScoredRows | None:
        """Return the constant answer to the finalist's rows; None if it has no such score.

        It is the study's own, the best one for the task's metric on the train rows. Where the study has none, or
        another metric decides, it is the best one on the test rows themselves, which is harder to beat.
        """
        if metric.column != "predictions":
            return None
        known = measured.answer if measured is not None and not measured.failed else None
        if known is not None and metric.name == self.task.metric:
            return _always(rows, known)
        kind = kind_of(self.task)
        answers = [*kind.constants(rows.labels), *([] if known is None else [known])]
        return max(
            (_always(rows, answer) for answer in answers),
            key=lambda said: self.criterion.sign * metric.score(said.predictions, said.labels),
        )

    def _not_required(self) -> list[str]:
        """Say which baselines the rule would require, but cannot: they cannot exist here, or have no such metric."""
        if self.rule.require != "all":
            return []
        metric, of_study = self.criterion.metric, self.finalist.candidate.baselines
        others = [one for one in of_study if one.name != CONSTANT and not one.is_unmeasured]
        impossible = [f"{one.name} is not required: {one.failed}" for one in others if one.failed]
        unscored = [one.name for one in others if one.test_metrics and metric not in one.test_metrics]
        return [*impossible, *(f"{name} is not compared: it has no {metric}" for name in unscored)]

    def _unready(self) -> str:
        """Say why nothing can be decided on these test rows, and what to do; empty where it can."""
        finalist, rule = self.finalist, self.rule
        candidate, rows, known = finalist.candidate, finalist.rows, finalist.candidate.baselines
        if rule.confidence and rows is None:
            return f"the answers of {candidate.trial_id} to the test rows are missing: {_FORCE}"
        if rule.confidence and rows is not None and (num_rows := len(rows.labels)) < MIN_ROWS:
            needed = f"at least {MIN_ROWS} test rows are needed to tell a gain from luck, but there are {num_rows}"
            return f"{needed}: add test rows and search anew; {_FORCE}"
        if rule.require == "all":
            answered = finalist.answers if rule.confidence else [one.name for one in known]
            if found := unmeasured(self.task, known, answered, has_untouched=finalist.untouched is not None):
                again = f". `loraxs-search resume {candidate.study}` measures it again" if found[1] else ""
                return f"{found[0]}{again}; {_ONLY_CONSTANT}; {_FORCE}"
            for name, said in finalist.answers.items():
                others, num_answers = "", len(said.test_answers)
                if said.test_rows not in ("", candidate.test_fingerprint):
                    others = f"test rows with fingerprint {said.test_rows[:16]}"
                elif rows is not None and num_answers != len(rows.labels):
                    others = f"{num_answers} test rows, but there are {len(rows.labels)}"
                if others:
                    return f"the answers of {name} are to {others}: {_ONLY_CONSTANT}; {_FORCE}"
        unscored = next((each for each in self.baselines if not math.isfinite(each.score)), None)
        if unscored is None:
            return ""
        metric = self.criterion.metric
        return f"{metric} of {unscored.name} must be finite, but is {unscored.score}: {_ONLY_CONSTANT}; {_FORCE}"

    def judge(self, number: int = 1) -> tuple[bool, str]:
        """Say whether the finalist beats every baseline that the rule requires, as `number`th on these rows, and why.

        The same sentence stands at the end of a search, in its report and in a decision on a first champion.
        """
        if why := self.criterion.fault(self.finalist.candidate.test_metrics, "test") or self._unready():
            return False, why
        level = (1 - self.rule.confidence) / (number * (number + 1))
        return self._against_baselines(self._comparison(BASELINES, number, level))[:2]

    def _against_baselines(self, held: ComparisonRecord) -> _Verdict:
        if not self.baselines:
            return False, f"{self.criterion.metric} of the constant answer cannot be computed: {_FORCE}", None
        needs_test = bool(self.rule.confidence)
        found = [(each, self._luck(each.rows) if needs_test else None) for each in self.baselines]
        made = replace(held, p_value=max((p for _, p in found if p is not None), default=None))
        unbeaten = [
            (each, p)
            for each, p in found
            if each.gain <= NOISE or (needs_test and (p is None or p > 1 - held.confidence + NOISE))
        ]
        strongest, p = min(unbeaten or found, key=lambda it: it[0].gain)
        gain = strongest.gain
        against = _beside(gain, f"{strongest.name} ({self.criterion.metric} {strongest.score:.4f})")
        described = _describe_p_value(p, held)
        if not unbeaten:
            return True, f"{against}{', significant' if p is not None else ''}{described}", made
        unsure = ", not significantly better" if gain > NOISE else ""
        if needs_test and p is None:
            unsure = ", whose answers are to other rows, or of other tokens"
        return False, f"{against}{unsure}{described}. {TRY_NEXT}; {_ONLY_CONSTANT}; {_FORCE}", made

    # ---- the champion ------------------------------------------------------------------------------------------------
    def _against_champion(
        self,
        champion: Scored,
        held: ComparisonRecord,
        reference: ToleranceReference | None,
        flips: AnswerFlips | None,
        slices: Sequence[SliceScore],
    ) -> _Verdict:
        """Hold the finalist against the champion, on the same test rows."""
        criterion, own, other = self.criterion, self.finalist.candidate, champion.candidate
        if fault := self._incomparable(champion):
            return False, f"not comparable: {fault}", None
        p = self._luck(champion.rows) if self.rule.confidence else None
        if self.rule.confidence and p is None:
            return False, f"not comparable: the champion's answers to the test rows are missing; {_FORCE}", None
        made = replace(held, p_value=p)
        if violated := self._violated_guard(champion, flips, slices):
            return False, violated, made
        gain = criterion.value(own.test_metrics) - criterion.value(other.test_metrics)
        scores = f"{criterion.show(other.test_metrics)}, {other.stored_bytes:,} bytes"
        against = _beside(gain, f"the champion {other.name} ({scores})")
        described = _describe_p_value(p, held)
        if gain > NOISE and gain >= self.rule.min_gain - NOISE:
            if p is None or p <= 1 - held.confidence + NOISE:
                return True, f"{against}, at least min_gain={self.rule.min_gain:g}{described}", made
            against += f", not significant{described}"
        elif gain > NOISE:
            against += f", less than min_gain={self.rule.min_gain:g}"
        if own.stored_bytes >= other.stored_bytes:
            return False, against, made
        promoted, why = self._not_worse(held, reference)
        return promoted, f"{against}; it is smaller, {why}", made

    def _not_worse(self, held: ComparisonRecord, reference: ToleranceReference | None) -> tuple[bool, str]:
        """Say whether rows show that the finalist is less than `margin` worse than the best champion there was."""
        rows, margin = self.finalist.rows, self.rule.margin
        if margin is None:
            margin = SHARE_MARGIN if self.metric is not None and self.metric.is_share else 0.0
        if not margin:
            return False, "and `promotion.margin` does not say how much worse it may be"
        if reference is None:
            return False, "but no champion has answers to these test rows that it could be compared with"
        of = f"version {reference.version}"
        if not self.rule.confidence:
            loss = self.criterion.sign * reference.metric - self.criterion.value(self.finalist.candidate.test_metrics)
            return loss < margin - NOISE, f"and {max(loss, 0.0):.4f} worse than {of} (margin={margin:g})"
        bound = None
        if rows is not None and reference.rows is not None and self.metric is not None:
            bound = loss_bound(self.metric, self.criterion.sign, rows, reference.rows, 1 - held.confidence)
        if bound is None:
            return False, f"but its answers cannot be compared with those of {of}: {reference.fault or 'they differ'}"
        shown, is_enough = f"less than {bound:.4f} worse than {of}", bound <= margin + NOISE
        found = "and these rows show that it is" if is_enough else "but these rows show only that it is"
        return is_enough, f"{found} {shown} (margin={margin:g}; {_held_to(held)})"

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

    def _violated_guard(self, champion: Scored, flips: AnswerFlips | None, slices: Sequence[SliceScore]) -> str | None:
        """Say which guarded metric falls too far."""
        finalist = self.finalist.candidate
        for name, allowed in sorted(self.rule.guards.items()):
            if name == NEGATIVE_FLIPS:
                if flips is None:
                    return f"guard: {name} needs answers of both to the test rows, but they cannot be compared"
                if flips.negative_share > allowed + NOISE:
                    return f"guard: {name} is {flips.negative_share:.4f}, and may be at most {allowed:g}"
                continue
            if name in (SLICE_LOSS, COVERAGE):
                of_slice = name == SLICE_LOSS
                fault = (
                    _losing_slice(slices, allowed) if of_slice else _losing_coverage(self.finalist, champion, allowed)
                )
                if fault:
                    return fault
                continue
            new, old = finalist.test_metrics.get(name), champion.candidate.test_metrics.get(name)
            if new is None or old is None:
                return f"guard: {name} must be known of both, but one has none"
            sign = sign_of(better_when(name, "maximize"))
            if not sign * (old - new) <= allowed + NOISE:  # NaN is a fall
                return f"guard: {name} would go from {old:.4f} to {new:.4f}, and may fall by {allowed:g}"
        return None


def _describe_changes(flips: AnswerFlips | None, slices: Sequence[SliceScore]) -> list[str]:
    """Say what the finalist changes of the champion's answers, and which slices lose; nothing where none compare."""
    said = list[str]()
    if flips is not None:
        said.append(
            f"of {flips.num_rows:,} test rows, {flips.negative:,} ({flips.negative_share:.1%}) that the champion"
            f" answers right become wrong, and {flips.positive:,} that it answers wrong become right"
        )
    if compared := [(each.loss, each) for each in slices if each.loss is not None]:
        losing = sorted([it for it in compared if it[0] > NOISE], key=lambda it: -it[0])
        named = [f"{each.name} by {loss:.4f} ({counted(each.num_rows, 'row')})" for loss, each in losing[:_LISTED]]
        more = [f"{len(losing) - _LISTED} more"] if len(losing) > _LISTED else []
        said.append(", ".join([f"slices that lose: {len(losing) or 'none'} of {len(compared)}", *named, *more]))
    return said


def _losing_slice(slices: Sequence[SliceScore], allowed: float) -> str:
    """Say which slice of enough rows loses more than it may, or why that is not known; empty where none does."""
    large = [each for each in slices if each.num_rows >= MIN_SLICE_ROWS]
    seen = {each.column for each in large}
    if unseen := [f" of `{each.column}`" for each in slices if each.column not in seen] or [""] * (not slices):
        return (
            f"guard: {SLICE_LOSS} needs a slice{unseen[0]} with {MIN_SLICE_ROWS} test rows or more, but there is none"
        )
    worst = max(large, key=lambda each: math.inf if each.loss is None else each.loss)
    if worst.loss is None:
        return f"guard: {SLICE_LOSS} needs the scores of both on {worst.name}, but they cannot be compared"
    if worst.loss <= allowed + NOISE:
        return ""
    scores = f"{worst.champion_score:.4f} to {worst.score:.4f} on {counted(worst.num_rows, 'row')}"
    return f"guard: {SLICE_LOSS} of {worst.name} is {worst.loss:.4f} ({scores}), and may be at most {allowed:g}"


def _losing_coverage(finalist: Scored, champion: Scored, allowed: float) -> str:
    """Say at which point the finalist answers too few test rows, or why that is not known; empty at none.

    Each answers by its own thresholds; one that has none for a point answers nothing there.
    """
    covered = list[dict[float, float]]()
    for each in (finalist, champion):
        points, confidences = each.candidate.operating_points, None if each.rows is None else each.rows.confidences
        if not points or confidences is None:
            return (
                f"guard: {COVERAGE} needs operating points of both on the test rows, but {each.candidate.name} has none"
            )
        least = {point.point: math.inf if point.threshold is None else point.threshold for point in points}
        covered.append({point: float(np.mean(confidences >= own)) for point, own in least.items()})
    losses = {point: old - covered[0].get(point, 0.0) for point, old in covered[1].items()}
    point = max(losses, key=losses.__getitem__)
    if losses[point] <= allowed + NOISE:
        return ""
    new, old = covered[0].get(point, 0.0), covered[1][point]
    return f"guard: {COVERAGE} at {point:g} would go from {old:.4f} to {new:.4f}, and may fall by {allowed:g}"


def _beside(gain: float, other: str) -> str:
    """Say how a finalist compares with another answer to the test rows."""
    if gain > NOISE:
        return f"gain {gain:+.4f} over {other}"
    return f"{-gain:.4f} worse than {other}" if gain < -NOISE else f"no better than {other}"


def _held_to(comparison: ComparisonRecord) -> str:
    """Return the number and confidence of a comparison, with as many digits as tell it from certainty: 0.999995."""
    confidence = comparison.confidence
    digits = max(4, 1 - math.floor(math.log10(max(1 - confidence, 1e-15))))
    shown = f"{confidence:.{digits}f}".rstrip("0").rstrip(".")
    return f"comparison {comparison.number} on these rows, confidence {shown}"


def _describe_p_value(p: float | None, comparison: ComparisonRecord) -> str:
    if p is None:
        return ""
    tiny = min(_TINY, (1 - comparison.confidence) / 10)
    chance = f"p={p:.3g}" if p >= tiny else f"p<{tiny:.1g}" if tiny < _TINY else f"p<{tiny:f}".rstrip("0")
    return f" ({chance}; {_held_to(comparison)})"
