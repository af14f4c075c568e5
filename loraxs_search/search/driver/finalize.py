"""The end of a search: validation rows choose a finalist, only it answers test rows, adapters are sealed.

Finished work is recorded in the study folder item by item, so that after a kill no item is done twice.
"""

from __future__ import annotations

import functools
import logging
import math
from collections.abc import Callable, Iterable, Mapping, Sequence
from dataclasses import replace
from datetime import UTC, datetime
from types import MappingProxyType
from typing import Any

from loraxs_search.errors import SearchInterruptedError, counted
from loraxs_search.log.events import CandidateScored
from loraxs_search.records.adapter import Manifest
from loraxs_search.records.host import Confirmation
from loraxs_search.records.literals import sign_of
from loraxs_search.records.promotion import Candidate, PromotionRule, Refit
from loraxs_search.records.search import CheckpointSelection, SearchPlan
from loraxs_search.records.task import Task
from loraxs_search.records.trial import TrialRecord, TrialState
from loraxs_search.registry.card import model_card, resealed
from loraxs_search.registry.factor_sets import factors_at, install_factors
from loraxs_search.registry.finalist import NOISE, Criterion, choose, trial_of
from loraxs_search.registry.manifest import MANIFEST, sealed, verify
from loraxs_search.reports.leaderboard import front
from loraxs_search.search.driver.open_study import OpenStudy
from loraxs_search.search.driver.time_budget import TimeBudget
from loraxs_search.search.driver.work_items import (
    BaseModelBaseline,
    Trained,
    WorkItem,
    answer_work,
    class_report,
    joined,
    map_over_hosts,
    refit_spec,
    refit_work,
    row_parts,
    slices_of,
    validation_work,
)
from loraxs_search.studies.snapshots import read_reports

_logger = logging.getLogger(__name__)


def completed_trials(records: Iterable[TrialRecord], selection: CheckpointSelection) -> list[TrialRecord]:
    """Return the trials that trained all their steps, best first by the report of the step that is kept.

    Ties, which few validation rows often make, go to the smaller adapter, then to the older trial.
    """
    sign = sign_of(selection.direction)

    def order(record: TrialRecord) -> tuple[float, int, str]:
        kept = selection.select(record.reports)
        return -sign * kept.metrics[selection.metric], kept.size.stored_bytes, record.trial_id

    return sorted((record for record in records if record.state is TrialState.COMPLETE), key=order)


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


class Finalization:
    """Finishes one study: trains its best recipes again, chooses the finalist, and has all adapters written.

    Args:
        hear: Called again and again while hosts work, to answer what people ask.
    Attributes:
        trials: Completed ones, best first.
        best: The trials that are candidates, as are their refits: `promotion.candidates` of those whose method may be
            promoted.
    """

    def __init__(self, opened: OpenStudy, hear: Callable[[], None]) -> None:
        self._actors, self._space, self._log = opened.actors, opened.space, opened.study.journal
        self._folder, self._is_stopped, self._run_of = opened.study.folder, opened.is_stopped, opened.run_of
        self._hear, space = hear, opened.space
        self.trials = completed_trials(opened.study.records.values(), self._folder.checkpoint_selection)
        able = [r for r in self.trials if space.may_be_candidate(space.method_of(r.params).name)]
        self.best = candidate_trials(able, space.promotion, space.task, space.search)
        self.base_baseline = BaseModelBaseline(
            self._folder, self._actors, space.task, functools.partial(self._map_over_hosts, unit="parts")
        )
        self._adapters: dict[str, Trained] = {}
        self._refit_steps: dict[str, int] = {}

    def reached(self, steps: Mapping[str, int]) -> None:
        """Refits have got to these steps, from any thread; a step before the one that is known changes nothing."""
        further = {name: step for name, step in steps.items() if step > self._refit_steps.get(name, step)}
        if further:
            self._refit_steps |= further
            self._count_refits()

    def _count_refits(self) -> None:
        total = len(self._refit_steps) * self._space.search.max_steps
        self._log.counted(sum(self._refit_steps.values()), total, "steps")

    def validate(self, budget: TimeBudget) -> list[Candidate]:
        """Train the best recipes again, and return all candidates, scored on all validation rows, best first.

        What the time budget has no room for is left out, and said.

        Raises:
            SearchInterruptedError: stopped from outside.
        """
        folder, log, task, seeds = self._folder, self._log, self._space.task, self._space.promotion.seeds
        confirmed, every, left_s = folder.confirmed, self._space.search.report_every, budget.deadline.left_s
        specs = [self._actors.spec(record.trial_id, record.params) for record in self.best]
        wanted = [refit_spec(spec, number) for number in range(1, seeds + 1) for spec in specs]
        missing, limit = [spec for spec in wanted if not confirmed.refit(spec.trial_id).path.exists()], None
        fitting = missing  # the first of each trial come first
        if budget.end is not None and left_s is not None:
            num_best, num_refits = budget.end.fitting(left_s, len(self.best), len(missing))
            limit, fitting = num_best + num_refits, missing[:num_refits]
        if fitting:
            trials = counted(len(self.best), "trial")
            log.phase(f"training the best {trials} again from {counted(seeds, 'fresh seed')}")
            for spec in fitting:
                snapshot = folder.snapshots.read(spec.trial_id)
                self._refit_steps[spec.trial_id] = read_reports(snapshot)[-1].step if snapshot else 0
            self._count_refits()
            items = [refit_work(spec, task, every, folder, self.reached, budget.is_used_up) for spec in fitting]
            self._map_over_hosts(items, shared=True)
        if left_out := [spec for spec in missing if not confirmed.refit(spec.trial_id).path.exists()]:
            _logger.warning(
                "The time budget has no room for %d of %s.", len(left_out), counted(seeds * len(self.best), "refit")
            )

        log.phase("scoring the candidates on all validation rows")
        names = [name for r in self.best for name, refit in self._recipe(r.trial_id).items() if not refit.failed]
        scores = {name: self._trained(name).validation_metrics for name in names}
        rows = self._actors.info.num_rows["validation"]
        # Reports scored something else than candidates are compared by, or a part of the rows.
        if task.report_metric is not None or (task.validation_rows is not None and rows >= task.validation_rows):
            has_score = {name: confirmed.validation(name).path.exists() for name in names}
            names.sort(key=lambda name: not has_score[name])
            names = names[: max(limit or len(names), sum(has_score.values()))]
            items = [validation_work(self._trained(name), task) for name in names if not has_score[name]]
            self._map_over_hosts(items, shared=True, unit="adapters")
            scores = {name: confirmed.validation(name).read() or {} for name in names}
        if (unscored := len(self.best) - len(set(map(trial_of, names)))) > 0:
            _logger.warning("The time budget has no room to score %d of %d candidates.", unscored, len(self.best))
        sign = sign_of(task.direction)
        names.sort(key=lambda name: (-sign * scores[name].get(task.metric, -sign * math.inf), name))
        for name in names:
            log.say(CandidateScored(trial=name, split="validation", metrics=scores[name]))
        return [self._candidate(self._trained(name), scores) for name in names]

    def seal(self, candidates: Sequence[Candidate]) -> list[Candidate]:
        """Have the finalist answer all test rows and every adapter written out, on all hosts; return the candidates."""
        confirmed, task = self._folder.confirmed, self._space.task
        chosen = choose(self._space.promotion, task, candidates).finalist
        name = chosen.trial_id if chosen else ""
        # Others may have answered the test rows before the end was interrupted, or before more trials were asked for.
        answered_before = dict.fromkeys((*self._folder.earlier_finalists(), *confirmed.finalists()))
        earlier = tuple(other for other in answered_before if other != name)
        if chosen and (done := confirmed.finalist(name)):
            chosen = replace(done, baselines=self._folder.baselines() or (), earlier_finalists=earlier)
        known, finalist = {c.trial_id: c for c in candidates}, list[Confirmation]()

        def keep(adapter: Trained, confirmation: Confirmation) -> None:
            if adapter.spec.trial_id == name:  # its card has test scores, which may not be there yet
                finalist.append(confirmation)
            else:
                self._write(adapter, confirmation, known.get(adapter.spec.trial_id))

        def adapter_work(adapter: Trained) -> WorkItem[Confirmation]:
            return WorkItem(
                lambda host: host.confirm.remote(adapter.spec, adapter.snapshot(), task),
                lambda confirmation: keep(adapter, confirmation),
            )

        untested, items = chosen is not None and not chosen.test_metrics, list[WorkItem[Any]]()
        if untested:
            parts_left = row_parts(self._actors.info.num_rows["test"], list(confirmed.answers(name)))
            items += [answer_work(self._trained(name), rows, task) for rows in parts_left]
        kept = [r.trial_id for r in self.trials if self._space.method_of(r.params).has_adapter]
        for own in dict.fromkeys((*known, *kept)):
            path = self._folder.adapter_path(own)
            # One that was sealed as a mere candidate, before the search went on, lacks its test scores.
            if not (path / MANIFEST).exists() or (own == name and not verify(path).test_metrics):
                items.append(adapter_work(self._trained(own)))
        self._map_over_hosts(items, unit="parts")
        if chosen is not None:
            parts, rows = list(confirmed.answers(name).values()), b""
            if untested:
                metrics, answered = joined(parts, task)
                rows, baselines = answered.to_bytes(), self._folder.baselines() or ()
                chosen = replace(chosen, test_metrics=metrics, baselines=baselines, earlier_finalists=earlier)
            for confirmation in finalist:  # none if it was written before the driver was killed
                samples = tuple(sample for part in parts for sample in part.samples)
                beside = {"samples": samples, "slices": slices_of(parts, task), "by_class": class_report(parts, task)}
                self._write(self._trained(name), confirmation, chosen, beside)
            path = self._folder.adapter_path(name)
            if verify(path).baselines != chosen.baselines:  # some were measured after it was sealed
                self._folder.write_adapter(name, resealed(path, baselines=chosen.baselines))
            if untested:
                confirmed.keep_finalist(chosen, rows)
        return [chosen if chosen is not None and c.trial_id == name else c for c in candidates]

    def on_loop_step(self) -> None:
        """Do what is done again and again while hosts work.

        Raises:
            SearchInterruptedError: stopped from outside.
        """
        self._hear()
        if self._is_stopped():
            raise SearchInterruptedError(
                f"Study {self._folder.name!r} was interrupted after its trials, before its candidates were scored.",
                hint=f"go on with `loraxs-search resume {self._folder.name}`",
            )

    # ---- inside ------------------------------------------------------------------------------------------------------
    def _map_over_hosts(self, items: Sequence[WorkItem[Any]], *, shared: bool = False, unit: str = "") -> None:
        """Have every item done on all hosts.

        Args:
            shared: Items share passes where hosts pack.
            unit: What items are called where they are counted; empty where they count themselves.
        """

        def finished(done: int) -> None:
            if unit and items:
                self._log.counted(done, len(items), unit)

        finished(0)
        pool = self._actors.pool
        at_once = pool.config.max_trials if shared else 1
        map_over_hosts(pool, items, self.on_loop_step, at_once=at_once, finished=finished)

    def _recipe(self, trial_id: str) -> dict[str, Refit]:
        """Return a trial and its refits that have been trained, or have failed, by name."""
        confirmed, seed = self._folder.confirmed, self._trained(trial_id).spec.hyperparameters.seed
        names = [f"{trial_id}.{number}" for number in range(1, self._space.promotion.seeds + 1)]
        known = {name: refit for name in names if (refit := confirmed.refit(name).read()) is not None}
        return {trial_id: Refit(seed), **known}

    def _trained(self, trial_id: str) -> Trained:
        """Return a completed trial's adapter, or a refit's."""
        if trial_id not in self._adapters:
            record = next(r for r in self.trials if r.trial_id == trial_of(trial_id))
            refit = self._folder.confirmed.refit(trial_id).read()
            spec = self._actors.spec(record.trial_id, record.params)
            kept = self._folder.checkpoint_selection.select(record.reports)
            metrics = kept.metrics
            if refit is not None:
                spec, metrics = refit_spec(spec, int(trial_id.rpartition(".")[2])), refit.validation_metrics
            self._adapters[trial_id] = Trained(spec, self._folder, metrics, kept.size, record.lineage)
        return self._adapters[trial_id]

    def _candidate(self, adapter: Trained, scores: Mapping[str, Mapping[str, float]]) -> Candidate:
        own, info, study = adapter.spec.trial_id, self._actors.info, self._folder.info
        others = [
            replace(refit, validation_metrics=scores.get(name, {}))
            for name, refit in self._recipe(trial_of(own)).items()
            if name != own
        ]
        return Candidate(
            study=self._folder.name,
            trial_id=own,
            task=study.task.registered_name,
            test_metrics={},
            validation_metrics=scores[own],
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
        adapter: Trained,
        confirmation: Confirmation,
        candidate: Candidate | None,
        beside: Mapping[str, Any] = MappingProxyType({}),
    ) -> None:
        info = self._actors.info
        if candidate is not None:  # promotion registers its factors: they come into this machine's cache
            for key, checksum in confirmation.factors.items():
                if factors_at(key, checksum) is None:
                    read = functools.partial(lambda key, host: host.factor_file.remote(self._space.task, key), key)
                    install_factors(key, self._actors.pool.ask(read, self.on_loop_step))
        hyper = adapter.spec.hyperparameters
        adapted = [module for module in info.modules if module.name in hyper.target_modules]
        start = self._folder.info.start_from
        manifest = Manifest(
            task=self._space.task,
            base_model=replace(self._space.base_model, revision=info.base.revision or self._space.base_model.revision),
            base_digest=info.base.weight_digest,
            data_fingerprint=info.data_fingerprint,
            study=self._folder.name,
            trial_id=adapter.spec.trial_id,
            params=adapter.spec.params,
            hyperparameters=hyper,
            validation_metrics=candidate.validation_metrics if candidate else adapter.validation_metrics,
            test_metrics=candidate.test_metrics if candidate else {},
            size=adapter.size,
            probe=confirmation.probe,
            versions=info.versions,
            created_at=datetime.now(UTC).isoformat(timespec="seconds"),
            run_id=self._run_of(trial_of(adapter.spec.trial_id)),
            refits=candidate.refits if candidate else (),
            base_bytes=info.base_bytes,
            lora_parameters=sum(hyper.rank * (m.in_features + m.out_features) for m in adapted),
            factors=confirmation.factors,
            ends=confirmation.ends,
            baselines=candidate.baselines if candidate else (),
            kept_step=adapter.kept_step,
            start_from=start.adapter if start and hyper.start_from else None,
            lineage=adapter.lineage,
            setup=info.base.setup,
        )
        manifest = replace(manifest, **beside)
        files = {**confirmation.files, "README.md": model_card(manifest).encode()}
        self._folder.write_adapter(adapter.spec.trial_id, sealed(files, manifest))
