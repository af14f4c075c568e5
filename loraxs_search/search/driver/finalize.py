"""The end of a search: validation rows choose a finalist, only it answers test rows, adapters are sealed.

Finished work is recorded in the study folder item by item, so that after a kill no item is done twice.
"""

from __future__ import annotations

import functools
import logging
import math
from collections.abc import Callable, Iterator, Mapping, Sequence
from dataclasses import dataclass, replace
from datetime import UTC, datetime
from pathlib import Path
from types import MappingProxyType
from typing import Any

import numpy as np
from ray.exceptions import RayTaskError

from loraxs_search.errors import LoraxsError, StudyError, TrialDivergedError, counted
from loraxs_search.log.events import RowsScored
from loraxs_search.manifest import MANIFEST, Manifest, sealed, verify
from loraxs_search.operating_points import measure
from loraxs_search.records.adapter import NUM_WRONG_ROWS, Answers, ClassReport, ClassScores, Confirmation
from loraxs_search.records.codec import Split, sign_of
from loraxs_search.records.search import (
    Candidate,
    CheckpointSelection,
    OperatingPoint,
    PromotionRule,
    Refit,
    SearchPlan,
    SliceScore,
)
from loraxs_search.records.task import Task
from loraxs_search.records.trial import AdapterSize, TrialRecord, TrialSpec, TrialState
from loraxs_search.registry.card import model_card
from loraxs_search.registry.evidence import ScoredRows, slice_scores
from loraxs_search.registry.factor_sets import factors_at, install_factors
from loraxs_search.registry.finalist import NOISE, Criterion, choose, trial_of
from loraxs_search.reports.leaderboard import front
from loraxs_search.search.driver.work_items import BaseModelBaseline, WorkItem, joined, map_over_hosts, reason_of
from loraxs_search.search.hosts.answers import advance, on_host
from loraxs_search.search.hosts.pool import StudyActors
from loraxs_search.search.tune.time_budget import TimeBudget
from loraxs_search.search_space.space import Space
from loraxs_search.steering import SteeredStudy
from loraxs_search.studies.snapshots import read_reports
from loraxs_search.tasks.kinds import kind_of

_SEED_STRIDE = 1 << 32  # the seeds of a study's trials lie closer together than that
# Test rows of an item; one of fewer takes as long, since it puts the adapter on the base. Files of answers are named by
# their parts: with another size, a search that continues would answer rows twice.
_PART = 128
_logger = logging.getLogger(__name__)


def candidate_trials(
    trials: Sequence[TrialRecord], rule: PromotionRule, task: Task, plan: SearchPlan
) -> Sequence[TrialRecord]:
    """Return the trials that are candidates: by default the best ones that are within `max_bytes`.

    If the rule chooses the smallest, trials that no other beats in score and stored bytes together come first, one of
    each size: the best, which tolerance counts from, and then the smallest within tolerance of it; where reports were
    scored by another metric than the rule's, trials that are spread over the sizes. Where all trials are above
    `max_bytes`, they are candidates, and the rule says why none is promoted.

    Args:
        trials: Complete ones, best first.
    """
    selection, limit = CheckpointSelection.of(task, plan), rule.max_bytes
    fitting = [r for r in trials if limit is None or selection.select(r.reports).size.stored_bytes <= limit]
    small = fitting or list(trials)
    if rule.choose == "best":
        return small[: rule.candidates]
    score = {r.trial_id: selection.select(r.reports).metrics[selection.metric] for r in small}
    # Of each size one; more bytes, and a better score, first.
    sized = {selection.select(r.reports).size.stored_bytes: r for r in reversed(front(small, selection))}
    best_first = list(sized.values())
    if Criterion.of(rule, task).metric == selection.metric:
        best = score[best_first[0].trial_id] if best_first else 0.0
        is_within = [abs(best - score[r.trial_id]) <= rule.tolerance + NOISE for r in best_first]
        within = [r for r, is_one in zip(best_first, is_within, strict=True) if is_one]
        first = [*best_first[:1], *reversed(within[1:])]
    else:
        places = max(1, rule.candidates - 1)
        spread = {round(number * (len(best_first) - 1) / places) for number in range(places + 1)}
        first = [best_first[place] for place in sorted(spread)] if best_first else []
    chosen = {r.trial_id: r for r in (*first, *best_first, *small)}
    return list(chosen.values())[: rule.candidates]


def _refit_spec(spec: TrialSpec, number: int) -> TrialSpec:
    """Return the recipe of a trial with its `number`-th fresh seed, 1 for the first."""
    hyper = replace(spec.hyperparameters, seed=spec.hyperparameters.seed + number * _SEED_STRIDE)
    return replace(spec, trial_id=f"{spec.trial_id}.{number}", hyperparameters=hyper)


@dataclass(frozen=True)
class _Trained:
    """An adapter that has trained all its steps: a trial's, or a refit's.

    Args:
        validation_metrics: Of the report of the step that is kept.
        kept_step: The step that it is of, where the study keeps the best one.
        lineage: The trial whose params its recipe was added with.
    """

    spec: TrialSpec
    validation_metrics: Mapping[str, float]
    size: AdapterSize
    kept_step: int | None
    lineage: str


class Finalization:
    """Finishes one study: trains its best recipes again, chooses the finalist, and has all adapters written.

    Args:
        on_loop_step: Called several times a second while hosts work; raises when the search was stopped from outside.
    Attributes:
        trials: Completed ones, best first by the report of the step that is kept. Ties, which few validation rows often
            make, go to the smaller adapter, then to the older trial.
        best: The trials that are candidates, as are their refits: `promotion.candidates` of those whose method may be
            promoted.
    """

    def __init__(
        self, study: SteeredStudy, space: Space, actors: StudyActors, on_loop_step: Callable[[], None]
    ) -> None:
        self._folder, self._log, self._confirmed = study.folder, study.journal, study.folder.confirmed
        self._space, self._actors, self._on_loop_step = space, actors, on_loop_step
        selection = self._folder.checkpoint_selection
        sign = sign_of(selection.direction)

        def order(record: TrialRecord) -> tuple[float, int, str]:
            kept = selection.select(record.reports)
            return -sign * kept.metrics[selection.metric], kept.size.stored_bytes, record.trial_id

        complete = [r for r in study.journal.records.values() if r.state is TrialState.COMPLETE]
        self.trials = sorted(complete, key=order)
        able = [r for r in self.trials if space.may_be_candidate(space.method_of(r.params).name)]
        self.best = candidate_trials(able, space.promotion, space.task, space.search)
        spread = functools.partial(self._map_over_hosts, unit="parts")
        self.base_baseline = BaseModelBaseline(self._folder, self._actors, space.task, spread)
        self._adapters: dict[str, _Trained] = {}
        self._refit_steps: dict[str, int] = {}

    # ---- validation rows ---------------------------------------------------------------------------------------------
    def validate(self, budget: TimeBudget) -> list[Candidate]:
        """Train the best recipes again, and return all candidates, scored on all validation rows, best first.

        What the time budget has no room for is left out, and said.

        Raises:
            SearchInterruptedError: stopped from outside.
        """
        confirmed, task, seeds = self._confirmed, self._space.task, self._space.promotion.seeds
        specs = [self._actors.spec(record.trial_id, record.params) for record in self.best]
        wanted = [_refit_spec(spec, number) for number in range(1, seeds + 1) for spec in specs]
        missing, limit = [spec for spec in wanted if not confirmed.refit(spec.trial_id).path.exists()], None
        fitting = missing  # the first of each trial come first
        if (room := budget.fitting(len(self.best), len(missing))) is not None:
            limit, fitting = sum(room), missing[: room[1]]
        if fitting:
            trials = counted(len(self.best), "trial")
            self._log.phase(f"training the best {trials} again from {counted(seeds, 'fresh seed')}")
            for spec in fitting:
                snapshot = self._folder.snapshots.read(spec.trial_id)
                self._refit_steps[spec.trial_id] = read_reports(snapshot)[-1].step if snapshot else 0
            self._count_refits()
            self._map_over_hosts([self._refit(spec, budget) for spec in fitting], shared=True)
        if left_out := [spec for spec in missing if not confirmed.refit(spec.trial_id).path.exists()]:
            _logger.warning(
                "The time budget has no room for %d of %s.", len(left_out), counted(seeds * len(self.best), "refit")
            )

        self._log.phase("scoring the candidates on all validation rows")
        names = [name for r in self.best for name, refit in self._recipe(r.trial_id).items() if not refit.failed]
        scores = {name: self._trained(name).validation_metrics for name in names}
        rows = self._actors.info.num_rows["validation"]
        # Reports scored something else than candidates are compared by, or a part of the rows.
        if task.report_metric is not None or (task.validation_rows is not None and rows >= task.validation_rows):
            has_score = {name: confirmed.validation(name).path.exists() for name in names}
            names.sort(key=lambda name: not has_score[name])
            names = names[: max(limit or len(names), sum(has_score.values()))]
            items = [self._score(name) for name in names if not has_score[name]]
            self._map_over_hosts(items, shared=True, unit="adapters")
            scores = {name: confirmed.validation(name).read() or {} for name in names}
        if (unscored := len(self.best) - len(set(map(trial_of, names)))) > 0:
            _logger.warning("The time budget has no room to score %d of %d candidates.", unscored, len(self.best))
        sign = sign_of(task.direction)
        names.sort(key=lambda name: (-sign * scores[name].get(task.metric, -sign * math.inf), name))
        for name in names:
            self._log.say(RowsScored(what="candidate", name=name, split="validation", metrics=scores[name]))
        return [self._candidate(name, scores) for name in names]

    def _refit(self, spec: TrialSpec, budget: TimeBudget) -> WorkItem:
        """Train a recipe to its last step, and keep its state after each report; left out where time runs out."""
        name, snapshots, task = spec.trial_id, self._folder.snapshots, self._space.task
        last, seed = spec.hyperparameters.max_steps, spec.hyperparameters.seed
        step = -1
        while step < last:
            if step >= 0 and budget.left_s == 0.0:
                return
            snapshot = snapshots.read(name)
            step = read_reports(snapshot)[-1].step if snapshot else 0
            until = min(step + self._space.search.report_every, last)
            try:
                report, state = yield advance(spec, until, snapshot, task)
            except (LoraxsError, RayTaskError) as error:
                self._confirmed.refit(name).write(Refit(seed, {}, failed=reason_of(error)))
                self.reached({name: last})  # it has no more to do
                return
            snapshots.write(name, state)
            step = report.step
            self.reached({name: step})
        metrics = self._folder.checkpoint_selection.select(read_reports(state)).metrics
        self._confirmed.refit(name).write(Refit(seed, metrics))

    def _score(self, name: str) -> WorkItem:
        """Score an adapter on all validation rows, in the passes that score trials."""
        snapshot = self._snapshot(name)
        step = read_reports(snapshot)[-1].step  # a trial that is at its step already is scored without training
        metrics = dict[str, float]()
        try:
            task = self._space.task.for_candidates
            report, _ = yield advance(self._trained(name).spec, step, snapshot, task)
            metrics = dict(report.metrics)
        except TrialDivergedError:  # that it has no finite score is a result
            pass
        self._confirmed.validation(name).write(metrics)

    def reached(self, steps: Mapping[str, int]) -> None:
        """Refits have got to these steps, from any thread; a step before the one that is known changes nothing."""
        further = {name: step for name, step in steps.items() if step > self._refit_steps.get(name, step)}
        if further:
            self._refit_steps |= further
            self._count_refits()

    def _count_refits(self) -> None:
        total = len(self._refit_steps) * self._space.search.max_steps
        self._log.phase(done=sum(self._refit_steps.values()), total=total, unit="steps")

    # ---- test rows ---------------------------------------------------------------------------------------------------
    def seal(self, candidates: Sequence[Candidate]) -> list[Candidate]:
        """Have the finalist answer all test rows and every adapter written out, on all hosts; return the candidates."""
        confirmed, folder, task = self._confirmed, self._folder, self._space.task
        chosen = choose(self._space.promotion, task, candidates)[0]
        name = chosen.trial_id if chosen else ""
        # Others may have answered the test rows before the end was interrupted, or before more trials were asked for.
        answered_before = dict.fromkeys((*folder.earlier_finalists(), *confirmed.finalists()))
        earlier = tuple(other for other in answered_before if other != name)
        if chosen and (done := confirmed.finalist(name)):
            chosen = replace(done, baselines=folder.baselines() or (), earlier_finalists=earlier)
        known, finalist = {c.trial_id: c for c in candidates}, list[Confirmation]()

        def answer(rows: range, split: Split) -> WorkItem:
            spec, snapshot, asked = self._trained(name).spec, self._snapshot(name), task.for_candidates
            try:
                found = yield on_host(lambda host: host.answer(spec, snapshot, rows, asked, split), task, spec)
            except TrialDivergedError:
                found = Answers((), (), math.nan)
            confirmed.write_answers(name, rows, found, split)

        def write(own: str) -> WorkItem:
            spec, snapshot = self._trained(own).spec, self._snapshot(own)
            confirmation = yield on_host(lambda host: host.confirm(spec, snapshot, task), task, spec)
            if own == name:  # its card has test scores, which may not be there yet
                finalist.append(confirmation)
            else:
                self._write(own, confirmation, known.get(own))

        untested, items = chosen is not None and not chosen.test_metrics, list[WorkItem]()
        if untested:
            items += [answer(rows, split) for rows, split in self._unanswered(name)]
        kept = [r.trial_id for r in self.trials if self._space.method_of(r.params).has_adapter]
        for own in dict.fromkeys((*known, *kept)):
            path = folder.adapter_path(own)
            # One that was sealed as a mere candidate, before the search went on, lacks its test scores.
            if not (path / MANIFEST).exists() or (own == name and not verify(path).test_metrics):
                items.append(write(own))
        self._map_over_hosts(items, unit="parts")
        if chosen is None:
            return list(candidates)
        answers, answered = list(confirmed.answers(name).values()), b""
        if untested:
            metrics, scored = joined(answers, task)
            answered, baselines = scored.to_bytes(), folder.baselines() or ()
            points = operating_points(list(confirmed.answers(name, "validation").values()), scored, task)
            made: dict[str, Any] = {"test_metrics": metrics, "baselines": baselines, "operating_points": points}
            chosen = replace(chosen, **made, earlier_finalists=earlier)
        for confirmation in finalist:  # none if it was written before the driver was killed
            slices: tuple[SliceScore, ...] = ()
            if task.slices and all(part.predictions for part in answers):  # no champion, no sign
                slices = slice_scores(kind_of(task).metrics[task.metric], 1.0, joined(answers, task)[1])
            beside = {"slices": slices, "by_class": class_report(answers, task)}
            self._write(name, confirmation, chosen, beside)
        path = folder.adapter_path(name)
        if verify(path).baselines != chosen.baselines:  # some were measured after it was sealed
            folder.write_adapter(name, _resealed(path, replace(verify(path), baselines=chosen.baselines)))
        if untested:
            confirmed.keep_finalist(chosen, answered)
        return [chosen if c.trial_id == name else c for c in candidates]

    # ---- inside ------------------------------------------------------------------------------------------------------
    def _map_over_hosts(self, items: Sequence[WorkItem], *, shared: bool = False, unit: str = "") -> None:
        """Have every item done on all hosts.

        Args:
            shared: Items share passes where hosts pack.
            unit: What items are called where they are counted; empty where they count themselves.
        """

        def finished(done: int) -> None:
            if unit and items:
                self._log.phase(done=done, total=len(items), unit=unit)

        finished(0)
        pool = self._actors.pool
        at_once = pool.config.max_trials if shared else 1
        map_over_hosts(pool, items, self._on_loop_step, at_once=at_once, finished=finished)

    def _unanswered(self, finalist: str) -> Iterator[tuple[range, Split]]:
        """Yield the test rows that the finalist has not answered yet, in parts; of validation rows those that choose
        thresholds."""
        info, task = self._actors.info, self._space.task
        num_rows = {**info.num_rows, **info.data.num_rows}  # of whole splits
        splits: tuple[Split, ...] = ("test", "validation")
        for split in splits if task.operating_points and kind_of(task).gives_confidences else splits[:1]:
            rows, answered = range(num_rows[split]), self._confirmed.answers(finalist, split)
            parts = (rows[start : start + _PART] for start in range(0, len(rows), _PART))
            yield from ((part, split) for part in parts if part not in answered)

    def _recipe(self, trial_id: str) -> dict[str, Refit]:
        """Return a trial and its refits that have been trained, or have failed, by name."""
        seed = self._trained(trial_id).spec.hyperparameters.seed
        names = [f"{trial_id}.{number}" for number in range(1, self._space.promotion.seeds + 1)]
        known = {name: refit for name in names if (refit := self._confirmed.refit(name).read()) is not None}
        return {trial_id: Refit(seed), **known}

    def _snapshot(self, name: str) -> bytes:
        """Return the state that is kept of an adapter: its last one, or the best.

        Raises:
            StudyError: the snapshot is missing.
        """
        snapshot = self._folder.snapshots.read_kept(name)
        if snapshot is None:
            raise StudyError(f"A completed trial must have a snapshot, but {self._folder.path} has none of {name}.")
        return snapshot

    def _trained(self, name: str) -> _Trained:
        """Return a completed trial's adapter, or a refit's."""
        if name not in self._adapters:
            record = next(r for r in self.trials if r.trial_id == trial_of(name))
            refit, spec = self._confirmed.refit(name).read(), self._actors.spec(record.trial_id, record.params)
            selection = self._folder.checkpoint_selection
            kept = selection.select(record.reports)
            metrics = kept.metrics
            if refit is not None:
                spec, metrics = _refit_spec(spec, int(name.rpartition(".")[2])), refit.validation_metrics
            step = None if selection.checkpoint == "last" else read_reports(self._snapshot(name))[-1].step
            self._adapters[name] = _Trained(spec, metrics, kept.size, step, record.lineage)
        return self._adapters[name]

    def _candidate(self, name: str, scores: Mapping[str, Mapping[str, float]]) -> Candidate:
        adapter, info, study = self._trained(name), self._actors.info, self._folder.info
        others = [
            replace(refit, validation_metrics=scores.get(other, {}))
            for other, refit in self._recipe(trial_of(name)).items()
            if other != name
        ]
        return Candidate(
            study=self._folder.name,
            trial_id=name,
            task=study.task.registered_name,
            test_metrics={},
            validation_metrics=scores[name],
            stored_bytes=adapter.size.stored_bytes,
            data_fingerprint=info.data_fingerprint,
            base_digest=info.base.weight_digest,
            base_model=study.base_model.id,
            refits=tuple(others),
            study_id=study.study_id,
            test_fingerprint=info.test_fingerprint,
            kept_step=adapter.kept_step,
        )

    def _write(
        self,
        name: str,
        confirmation: Confirmation,
        candidate: Candidate | None,
        beside: Mapping[str, Any] = MappingProxyType({}),
    ) -> None:
        """Seal an adapter in the study's folder; a candidate's factors come into this machine's cache."""
        info, adapter = self._actors.info, self._trained(name)
        if candidate is not None:  # promotion registers them
            for key, checksum in confirmation.factors.items():
                if factors_at(key, checksum) is None:
                    read = functools.partial(lambda key, host: host.factor_file(key), key)
                    ask = on_host(read, self._space.task)
                    install_factors(key, self._actors.pool.ask(ask, self._on_loop_step))
        hyper = adapter.spec.hyperparameters
        adapted = [module for module in info.modules if module.name in hyper.target_modules]
        start = self._folder.info.start_from
        manifest = Manifest(
            task=self._space.task,
            base_model=replace(self._space.base_model, revision=info.base.revision or self._space.base_model.revision),
            base_digest=info.base.weight_digest,
            data_fingerprint=info.data_fingerprint,
            study=self._folder.name,
            trial_id=name,
            params=adapter.spec.params,
            hyperparameters=hyper,
            validation_metrics=candidate.validation_metrics if candidate else adapter.validation_metrics,
            test_metrics=candidate.test_metrics if candidate else {},
            size=adapter.size,
            probe=confirmation.probe,
            versions=info.versions,
            created_at=datetime.now(UTC).isoformat(timespec="seconds"),
            refits=candidate.refits if candidate else (),
            base_bytes=info.base_bytes,
            lora_parameters=sum(hyper.rank * (m.in_features + m.out_features) for m in adapted),
            factors=confirmation.factors,
            ends=confirmation.ends,
            baselines=candidate.baselines if candidate else (),
            kept_step=adapter.kept_step,
            start_from={"name": start.name, "digest": start.digest} if start and hyper.start_from else None,
            lineage=adapter.lineage,
            setup=info.base.setup,
            operating_points=candidate.operating_points if candidate else (),
        )
        manifest = replace(manifest, **beside)
        files = {**confirmation.files, "README.md": model_card(manifest).encode()}
        self._folder.write_adapter(name, sealed(files, manifest))


def operating_points(validation: Sequence[Answers], test: ScoredRows, task: Task) -> tuple[OperatingPoint, ...]:
    """Return a finalist's operating points by its answers to all validation and test rows; none without confidences."""
    chosen_on, measured_on = joined(validation, task)[1].answered if validation else None, test.answered
    return () if chosen_on is None or measured_on is None else measure(task.operating_points, chosen_on, measured_on)


def class_report(parts: Sequence[Answers], task: Task) -> ClassReport | None:
    """Return how a classifier's answers to all test rows do by class; None if answers are not labels.

    Where rows have several labels, there is no confusion matrix.
    """
    answers = np.array([value for part in parts for value in part.predictions])
    labels = np.array([value for part in parts for value in part.labels])
    kind, count, confusion = kind_of(task), len(task.labels), np.zeros((0, 0), np.int64)
    if not count or len(answers) != len(labels):
        return None
    if labels.dtype.kind == "i":
        confusion = np.bincount(labels * count + answers, minlength=count * count).reshape(count, count)
        counts = [confusion.diagonal(), confusion.sum(0), confusion.sum(1)]
    elif not kind.is_exclusive:
        true, said = (kind.targets(side) > 0 for side in (labels, answers))
        counts = [(true & said).sum(0), said.sum(0), true.sum(0)]
    else:
        return None

    def share(part: int, whole: int) -> float | None:
        return float(part / whole) if whole else None

    classes = [
        ClassScores(label, n, share(k, m), share(k, n), share(2 * k, n + m))
        for label, k, m, n in zip(task.labels, *(own.tolist() for own in counts), strict=True)
    ]
    wrong = [sample for part in parts for sample in part.wrong][:NUM_WRONG_ROWS]
    return ClassReport(tuple(classes), tuple(map(tuple, confusion.tolist())), tuple(wrong))


def _resealed(folder: Path, manifest: Manifest) -> dict[str, bytes]:
    """Return the files of a sealed adapter folder with this manifest, and a card that follows it."""
    files = {path.name: path.read_bytes() for path in folder.iterdir() if path.name != MANIFEST}
    return sealed(files | {"README.md": model_card(manifest).encode()}, manifest)
