"""What a report is of: a study, read once; what its search found, in sentences and key numbers."""

from __future__ import annotations

import contextlib
import math
import time
from collections.abc import Iterable, Iterator, Sequence
from dataclasses import dataclass

from loraxs_search.errors import IntegrityError, both, counted
from loraxs_search.log.study_log import StudyLog
from loraxs_search.manifest import read_manifest
from loraxs_search.records.adapter import ClassReport
from loraxs_search.records.codec import sign_of
from loraxs_search.records.search import Baseline, Candidate
from loraxs_search.records.task import Task
from loraxs_search.records.trial import TrialRecord, TrialState
from loraxs_search.registry.finalist import choose, seed_statistics
from loraxs_search.registry.promotion import TRY_NEXT, PromotionTest, Scored
from loraxs_search.reports.leaderboard import LeaderboardRow, leaderboard, score_warnings, shown_baselines
from loraxs_search.reports.study_status import Progress
from loraxs_search.steering import steered
from loraxs_search.studies.folder import StudyFolder
from loraxs_search.studies.record_files import StudyInfo, uses

_WORDS = {
    TrialState.COMPLETE: "complete",
    TrialState.RUNNING: "running",
    TrialState.PRUNED: "stopped early",
    TrialState.FAIL: "failed",
}


@dataclass(frozen=True)
class ReportFacts:
    """A study as it stood at one moment.

    Args:
        state: `running`, `finished` or `interrupted`.
        read_at: That moment, seconds since 1970.
        journal: As it was then.
        candidates: Best first; none before the search has ended.
        baselines: Without test metrics before the search has ended.
        records: Every trial, in the order they were started; `complete` are those that trained all their steps.
        rows: The leaderboard.
        metric: What trials are compared by; `sign` turns a score so that more is better.
        varied: The params that are not the same in all trials, in the order of the space.
        best: The best trial that trained all its steps, or else the best of the others; None before the first score.
        finalist: The candidate that was scored on the test rows.
        by_class: The finalist's scores by class; None if its task has no labels, or its files are gone.
    """

    folder: StudyFolder
    info: StudyInfo
    task: Task
    state: str
    read_at: float
    journal: StudyLog
    candidates: tuple[Candidate, ...]
    baselines: tuple[Baseline, ...]
    records: tuple[TrialRecord, ...]
    complete: list[TrialRecord]
    rows: list[LeaderboardRow]
    counts: Progress
    metric: str
    sign: float
    varied: list[str]
    best: LeaderboardRow | None
    finalist: Candidate | None
    by_class: ClassReport | None

    @classmethod
    def of(cls, folder: StudyFolder) -> ReportFacts:
        """Read a study as it stands now, also while it runs.

        Raises:
            StudyError: a file of it is damaged.
        """
        candidates = folder.candidates()  # first: what they are of is in the journal
        journal, finished, info = folder.journal(), candidates is not None, folder.info
        records, task = tuple(journal.records.values()), info.task
        rows = leaderboard(records, task, candidates or (), info.search.checkpoint)
        names = dict.fromkeys(name for record in records for name in record.params)
        finalist, by_class = next((each for each in candidates or () if each.test_metrics), None), None
        if finalist is not None:
            with contextlib.suppress(IntegrityError):
                by_class = read_manifest(folder.adapter_path(finalist.trial_id)).by_class
        return cls(
            folder=folder,
            info=info,
            task=task,
            # The driver at work on a study with candidates has only records to bring to MLflow.
            state="finished" if finished else folder.state(),
            read_at=time.time(),
            journal=journal,
            candidates=tuple(candidates or ()),
            baselines=tuple(shown_baselines(folder.baselines(), finished=finished)),
            records=records,
            complete=[record for record in records if record.state is TrialState.COMPLETE],
            rows=rows,
            counts=Progress.of(records, steered(folder, journal).whole_plan),
            metric=task.search_metric,
            sign=sign_of(task.search_direction),
            varied=[name for name in names if len({record.params.get(name) for record in records}) > 1],
            best=next((row for row in rows if row.score is not None), None),
            finalist=finalist,
            by_class=by_class,
        )

    def word(self, state: TrialState) -> str:
        """Return how a trial's state is shown."""
        return "not ended" if state is TrialState.RUNNING and self.state != "running" else _WORDS[state]

    def score(self, record: TrialRecord) -> float:
        """Return the score of a trial that trained all its steps."""
        return self.folder.checkpoint_selection.select(record.reports).metrics[self.metric]

    @staticmethod
    def device_s(records: Iterable[TrialRecord]) -> float:
        """Return the computation that trials took, each to its last report, without final scores and refits."""
        return sum(record.reports[-1].device_s for record in records if record.reports)


def duration(seconds: float) -> str:
    """Return a time shown to users: hours from two hours on, minutes from two minutes on, else seconds."""
    for least, unit_s, name in ((7200.0, 3600.0, "h"), (120.0, 60.0, "min")):
        if seconds >= least:
            return f"{seconds / unit_s:,.1f} {name}"
    return f"{seconds:.1f} s"


# ---- in sentences and key numbers, as the end of `launch`, the report and `status` show it ----
_VISIBLE = 5e-5  # a smaller gain does not show in four digits
_STATES = {"running": "The search is running", "interrupted": "The search was interrupted"}


@dataclass(frozen=True)
class _Result:
    """The best that a search has, and what it is to be compared with.

    Args:
        name: A trial's id, or a refit's.
        rows: What the score is of, as shown.
        test: Whether that is the test rows.
    """

    name: str
    metric: str
    score: float
    rows: str
    test: bool
    stored_bytes: int | None
    calibration_error: float | None = None


@dataclass(frozen=True)
class Summary:
    """The head of a report.

    Args:
        found: What the search found.
        verdict: Whether that beats the baselines, and what to try if not; empty where nothing can be compared.
        is_beaten: Whether a baseline scores higher.
        against: Baselines, each with its score beside the result's, and what the result is better by in the metric's
            unit; None where one of the two has no such score.
        numbers: Each with its label, and a note that may be empty.
        never: Which classes the finalist never answers; empty where it answers each.
        notes: What a reader should know of the study.
    """

    found: str
    verdict: str
    is_beaten: bool
    result: _Result | None
    against: tuple[tuple[Baseline, float | None, float | None], ...]
    numbers: tuple[tuple[str, str, str], ...]
    never: str
    notes: tuple[str, ...]

    @property
    def opening(self) -> tuple[str, ...]:
        """What was found, the verdict, and what is never answered: that a baseline wins comes first."""
        head = (self.verdict, self.found) if self.is_beaten else (self.found, self.verdict)
        return tuple(filter(None, (*head, self.never)))


def summary(facts: ReportFacts) -> Summary:
    """Summarize a study as it stands."""
    result, against = _result(facts), list[tuple[Baseline, float | None, float | None]]()
    found = f"No trial has a score{' yet' if facts.state != 'finished' else ''}: nothing was found."
    if result is not None:
        size = "" if result.stored_bytes is None else f", in {result.stored_bytes:,} bytes"
        best = "The finalist" if result.test else "The best candidate" if facts.candidates else "The best so far"
        what = f"{best}, {'refit' if '.' in result.name else 'trial'} {result.name}, reaches {result.metric}"
        error = "" if result.calibration_error is None else f" (calibration error {result.calibration_error:.4f})"
        found = f"{what} {result.score:.4f}{error} on {result.rows}{size}."
    for baseline in facts.baselines:
        score = gain = None
        if result is not None:
            score = (baseline.test_metrics if result.test else baseline.validation_metrics).get(result.metric)
            sign = facts.sign if result.metric == facts.metric else sign_of(facts.task.direction)
            gain = None if score is None else sign * (result.score - score)
        against.append((baseline, score, gain))
    is_beaten, verdict = any(gain is not None and gain < 0 for _, _, gain in against), _verdict(result, against)
    if facts.finalist is not None:
        beats, sentence = _judge(facts.folder, facts.finalist)
        is_beaten, verdict = not beats, f"By the rule of promotion: {sentence}."
    elif facts.candidates:
        chosen, reasons = choose(facts.info.promotion, facts.task, facts.candidates)
        verdict = verdict if chosen else f"There is no finalist: {'; '.join(reasons)}."
    unanswered = []  # classes that rows are of and no answer is
    if facts.by_class is not None:
        unanswered = [each.label for each in facts.by_class.classes if each.rows and each.precision is None]
    return Summary(
        found=found,
        verdict=verdict,
        is_beaten=is_beaten,
        result=result,
        against=tuple(against),
        numbers=tuple(_numbers(facts, result)),
        never=f"It never answers {both(unanswered)}." if unanswered else "",
        notes=tuple(_notes(facts)),
    )


def _judge(folder: StudyFolder, finalist: Candidate) -> tuple[bool, str]:
    """Say whether a finalist beats its study's baselines by the rule, and in which words.

    It is held to what earlier finalists leave that have answered the same test rows on this machine.
    """
    from loraxs_search.registry.evidence import ScoredRows  # numpy

    info, kept = folder.info, folder.confirmed
    own, base = (
        ScoredRows.from_bytes(path.read_bytes()) if path.is_file() else None
        for path in (kept.rows_path(finalist.trial_id), kept.base_rows_path)
    )
    test = PromotionTest(info.promotion, info.task, Scored(finalist, own, base, folder.baseline_answers()))
    used = uses(info.task.registered_name, finalist.test_fingerprint)
    number = 1 + (used.index(finalist.key) if finalist.key in used else len(used))
    return test.judge(number)


# ---- what was found --------------------------------------------------------------------------------------------------
def _result(facts: ReportFacts) -> _Result | None:
    """Return the finalist on the test rows, else the best candidate on all validation rows, else the best trial."""
    metric = facts.task.metric
    candidate = next(iter(facts.candidates), None)
    for own, rows, test in ((facts.finalist, "the test rows", True), (candidate, "all validation rows", False)):
        scores = {} if own is None else own.test_metrics if test else own.validation_metrics
        if own is not None and math.isfinite(score := scores.get(metric, math.nan)):
            error = scores.get("calibration_error")
            return _Result(own.trial_id, metric, score, rows, test, own.stored_bytes, error)
    best = facts.best
    if best is None or best.score is None:
        return None
    limit = facts.task.validation_rows
    rows = "the validation rows" if limit is None else f"at most {limit:,} validation rows"
    return _Result(best.trial_id, facts.metric, best.score, rows, False, best.stored_bytes, best.calibration_error)


def _verdict(result: _Result | None, against: Sequence[tuple[Baseline, float | None, float | None]]) -> str:
    marked = [(f"{baseline.name} ({score:.4f})", gain) for baseline, score, gain in against if gain is not None]
    if result is None or not marked:
        return ""
    where = f"{result.metric} {result.score:.4f} on {result.rows}"
    better = [(name, gain) for name, gain in marked if gain <= -_VISIBLE]
    worse = [(name, gain) for name, gain in marked if gain >= _VISIBLE]
    as_good = [name for name, gain in marked if abs(gain) < _VISIBLE]
    if not better and not as_good:
        nearest, gain = min(worse, key=lambda item: item[1])
        return f"It beats every baseline on {result.rows}; the nearest, {nearest}, by {gain:.4f}."
    parts = [f"{-gain:.4f} worse than {name}" for name, gain in better]
    parts += [f"as good as {name}" for name in as_good]
    if worse:
        parts.append(f"better than {both([name for name, _ in worse])}")
    head, advice = ("A baseline wins", f" {TRY_NEXT}.") if better else ("No gain over every baseline", "")
    return f"{head}: {where} is {'; '.join(parts)}.{advice}"


# ---- numbers and notes -----------------------------------------------------------------------------------------------
def _numbers(facts: ReportFacts, result: _Result | None) -> Iterator[tuple[str, str, str]]:
    if result is not None:
        yield (f"{'test ' if result.test else ''}{result.metric}", f"{result.score:.4f}", f"on {result.rows}")
        of_candidate = next((c for c in facts.candidates if c.trial_id == result.name), None)
        over = seed_statistics(of_candidate).get(facts.task.metric) if of_candidate is not None else None
        if over is not None and over.deviation is not None:
            spread = f"± {over.deviation:.4f}, {over.count} seeds, validation rows"
            yield ("mean over seeds", f"{over.mean:.4f}", spread)
        if result.stored_bytes is not None:
            yield ("stored", f"{result.stored_bytes:,} B", "adapter and head")
    counts, device_s = facts.counts, facts.device_s(facts.records)
    ended = f"{counts.complete} complete, {counts.pruned} stopped early, {counts.failed} failed"
    yield ("trials ended", f"{counts.ended} of {counts.num_trials}", ended)
    hours = f"{device_s / 3600:,.3g} device hours for trials, without refits and final scores"
    yield ("device time", duration(device_s), hours)
    yield ("wall time", duration(facts.journal.spent_s), "while a driver was at work")


def _notes(facts: ReportFacts) -> Iterator[str]:
    if facts.state in _STATES:
        counts = facts.counts
        begun = "running" if facts.state == "running" else "begun"
        rest = f"{counts.running} {begun}, {max(0, counts.num_trials - counts.ended - counts.running)} to come"
        yield f"{_STATES[facts.state]}: {counts.ended} of {counted(counts.num_trials, 'trial')} ended, {rest}."
    if facts.journal.notice:
        yield f"It ended before its budget: {facts.journal.notice}"
    yield from score_warnings(facts.rows, facts.task)
