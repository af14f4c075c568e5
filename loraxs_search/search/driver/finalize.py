"""The end of a search: validation rows choose a finalist, only it answers test rows, adapters are sealed.

Finished work is recorded in the study folder item by item, so that after a kill no item is done twice.
"""

from __future__ import annotations

import functools
from collections.abc import Callable, Iterable, Mapping, Sequence
from dataclasses import dataclass, field, replace
from datetime import UTC, datetime
from types import MappingProxyType
from typing import Any

from loraxs_search.errors import SearchInterruptedError
from loraxs_search.records.adapter import Manifest
from loraxs_search.records.host import Confirmation
from loraxs_search.records.promotion import Candidate, PromotionRule, Refit
from loraxs_search.records.search import CheckpointSelection, SearchPlan
from loraxs_search.records.task import Task
from loraxs_search.records.trial import TrialRecord, TrialSpec, TrialState
from loraxs_search.registry.card import model_card, resealed
from loraxs_search.registry.factor_sets import factors_at, install_factors
from loraxs_search.registry.finalist import NOISE, Criterion, choose, trial_of
from loraxs_search.registry.manifest import MANIFEST, sealed, verify
from loraxs_search.reports.leaderboard import front
from loraxs_search.search.driver.baselines import BaseModelBaseline
from loraxs_search.search.driver.work_items import (
    Trained,
    WorkItem,
    answer_work,
    class_report,
    joined,
    map_over_hosts,
    raised,
    refit_spec,
    refit_work,
    row_parts,
    slices_of,
    validation_work,
)
from loraxs_search.search.hosts.study_actors import StudyActors
from loraxs_search.search_space.space import Space
from loraxs_search.studies.folder import StudyFolder
from loraxs_search.studies.snapshots import read_reports

RunOf = Callable[[str], str | None]


def completed_trials(records: Iterable[TrialRecord], selection: CheckpointSelection) -> list[TrialRecord]:
    """Return the trials that trained all their steps, best first by the report of the step that is kept.

    Ties, which few validation rows often make, go to the smaller adapter, then to the older trial.
    """
    sign = -1.0 if selection.direction == "maximize" else 1.0

    def order(record: TrialRecord) -> tuple[float, int, str]:
        kept = selection.select(record.reports)
        return sign * kept.metrics[selection.metric], kept.size.stored_bytes, record.trial_id

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


@dataclass(frozen=True)
class Finalization:
    """Finishes one study: trains its best recipes again, chooses the finalist, and has all adapters written.

    Args:
        trials: Completed ones, best first; `promotion.candidates` of those whose method may be promoted, and their
            refits, are candidates.
        is_stopped: Whether the work is to end, from outside.
        counted: Called with how much of the present work is done, of how much, in which unit.
        take_commands: Called again and again while hosts work, to answer what people ask.
    """

    actors: StudyActors
    folder: StudyFolder
    space: Space
    trials: Sequence[TrialRecord]
    is_stopped: Callable[[], bool]
    counted: Callable[[int, int, str], None] = lambda _, __, ___: None
    take_commands: Callable[[], None] = lambda: None
    _adapters: dict[str, Trained] = field(default_factory=dict)
    _refit_steps: dict[str, int] = field(default_factory=dict)

    @property
    def best(self) -> Sequence[TrialRecord]:
        """The trials that are candidates."""
        space = self.space
        able = [record for record in self.trials if space.may_be_candidate(space.method_of(record.params).name)]
        return candidate_trials(able, space.promotion, space.task, space.search)

    def missing_refits(self) -> list[TrialSpec]:
        """Return the refits of the best trials that are not trained yet; the first of each trial come first."""
        confirmed, recipes = self.folder.confirmations(), [self._spec(record) for record in self.best]
        numbers = range(1, self.space.promotion.seeds + 1)
        wanted = [refit_spec(recipe, number) for number in numbers for recipe in recipes]
        return [spec for spec in wanted if confirmed.refit(spec.trial_id) is None]

    def refit(self, specs: Sequence[TrialSpec], is_late: Callable[[], bool] = lambda: False) -> None:
        """Train refits; once it is late, those that have not ended are left out.

        Raises:
            SearchInterruptedError: stopped from outside.
        """
        for spec in specs:
            snapshot = self.folder.snapshots.read(spec.trial_id)
            self._refit_steps[spec.trial_id] = read_reports(snapshot)[-1].step if snapshot else 0
        self._count_refits()
        task, every = self.space.task, self.space.search.report_every
        items = [refit_work(spec, task, every, self.folder, self.reached, is_late) for spec in specs]
        self._map_over_hosts(items, shared=True)

    def reached(self, name: str, step: int) -> None:
        """A refit has got to a step, from any thread; a step before the one that is known changes nothing."""
        if step > self._refit_steps.get(name, step):
            self._refit_steps[name] = step
            self._count_refits()

    def _count_refits(self) -> None:
        total = len(self._refit_steps) * self.space.search.max_steps
        self.counted(sum(self._refit_steps.values()), total, "steps")

    def validate(self, limit: int | None = None) -> list[Candidate]:
        """Score the best trials and their refits on all validation rows; return them, best first.

        Args:
            limit: How many there is time to score; those that have a score of all rows count.
        """
        trained = list[Trained]()
        for record in self.best:
            refits = self._ended_refits(record.trial_id)
            names = [record.trial_id, *(name for name, refit in refits.items() if not refit.failed)]
            trained += map(self._trained, names)
        scores = {adapter.trial_id: adapter.validation_metrics for adapter in trained}
        task, rows = self.space.task, self.actors.info.num_rows["validation"]
        # Reports scored something else than candidates are compared by, or a part of the rows.
        if task.report_metric is not None or (task.validation_rows is not None and rows >= task.validation_rows):
            confirmed = self.folder.confirmations()
            has_score = {a.trial_id: confirmed.validation(a.trial_id) is not None for a in trained}
            trained = sorted(trained, key=lambda adapter: not has_score[adapter.trial_id])
            trained = trained[: max(limit or len(trained), sum(has_score.values()))]
            missing = [adapter for adapter in trained if not has_score[adapter.trial_id]]
            self._map_over_hosts([validation_work(a, task) for a in missing], shared=True, unit="adapters")
            scores = {adapter.trial_id: confirmed.validation(adapter.trial_id) or {} for adapter in trained}
        made = [self._candidate(adapter, scores) for adapter in trained]
        sign, worst = (-1.0, float("-inf")) if task.direction == "maximize" else (1.0, float("inf"))
        return sorted(made, key=lambda c: (sign * c.validation_metrics.get(task.metric, worst), c.trial_id))

    def seal(self, candidates: Sequence[Candidate], run_of: RunOf) -> list[Candidate]:
        """Have the finalist answer all test rows and every adapter written out, on all hosts; return the candidates.

        Args:
            run_of: Trial id to its MLflow run.
        """
        confirmed = self.folder.confirmations()
        chosen = choose(self.space.promotion, self.space.task, candidates).finalist
        name = chosen.trial_id if chosen else ""
        # Others may have answered the test rows before the end was interrupted, or before more trials were asked for.
        answered_before = dict.fromkeys((*self.folder.earlier_finalists(), *confirmed.finalists()))
        earlier = tuple(other for other in answered_before if other != name)
        if chosen and (done := confirmed.candidate(name)):
            chosen = replace(done, baselines=self.folder.baselines() or (), earlier_finalists=earlier)
        known, finalist = {c.trial_id: c for c in candidates}, list[Confirmation]()

        def keep(adapter: Trained, confirmation: Confirmation) -> None:
            if adapter.trial_id == name:  # its card has test scores, which may not be there yet
                finalist.append(confirmation)
            else:
                self._write(adapter, confirmation, known.get(adapter.trial_id), run_of)

        untested = chosen is not None and not chosen.test_metrics
        items, task = list[WorkItem[Any]](), self.space.task
        if untested:
            parts_left = row_parts(self.actors.info.num_rows["test"], list(confirmed.answers(name)))
            items += [answer_work(self._trained(name), rows, task) for rows in parts_left]
        kept = [r.trial_id for r in self.trials if self.space.method_of(r.params).has_adapter]
        for own in dict.fromkeys((*known, *kept)):
            path = self.folder.adapter_path(own)
            # One that was sealed as a mere candidate, before the search went on, lacks its test scores.
            if not (path / MANIFEST).exists() or (own == name and not verify(path).test_metrics):
                items.append(self._adapter_work(self._trained(own), keep))
        self._map_over_hosts(items, unit="parts")
        if chosen is not None:
            parts, rows = list(confirmed.answers(name).values()), b""
            if untested:
                metrics, answered = joined(parts, task)
                rows, baselines = answered.to_bytes(), self.folder.baselines() or ()
                chosen = replace(chosen, test_metrics=metrics, baselines=baselines, earlier_finalists=earlier)
            for confirmation in finalist:  # none if it was written before the driver was killed
                samples = tuple(sample for part in parts for sample in part.samples)
                beside = {"samples": samples, "slices": slices_of(parts, task), "by_class": class_report(parts, task)}
                self._write(self._trained(name), confirmation, chosen, run_of, beside)
            path = self.folder.adapter_path(name)
            if verify(path).baselines != chosen.baselines:  # some were measured after it was sealed
                self.folder.write_adapter(name, resealed(path, baselines=chosen.baselines))
            if untested:
                confirmed.write_candidate(chosen, rows)
        return [chosen if chosen is not None and c.trial_id == name else c for c in candidates]

    @property
    def base_baseline(self) -> BaseModelBaseline:
        """The base without an adapter, where the task's kind asks it."""
        spread = functools.partial(self._map_over_hosts, unit="parts")
        return BaseModelBaseline(self.folder, self.actors, self.space.task, spread)

    def on_loop_step(self) -> None:
        """Do what is done again and again while hosts work.

        Raises:
            SearchInterruptedError: stopped from outside.
        """
        self.take_commands()
        if self.is_stopped():
            raise SearchInterruptedError(
                f"Study {self.folder.name!r} was interrupted after its trials, before its candidates were scored.",
                hint=f"go on with `loraxs-search resume {self.folder.name}`",
            )

    def _map_over_hosts(self, items: Sequence[WorkItem[Any]], *, shared: bool = False, unit: str = "") -> None:
        """Have every item done on all hosts.

        Args:
            shared: Pieces share passes where hosts pack.
            unit: What items are called where they are counted; empty where they count themselves.
        """
        pool, at_once = self.actors.pool, self.actors.pool.config.max_trials if shared else 1

        def finished(done: int) -> None:
            if unit:
                self.counted(done, len(items), unit)

        if items:
            finished(0)
        map_over_hosts(pool, items, self.on_loop_step, at_once=at_once, finished=finished)

    # ---- adapters ----------------------------------------------------------------------------------------------------
    def _spec(self, record: TrialRecord) -> TrialSpec:
        return self.actors.spec(record.trial_id, record.params)

    def _ended_refits(self, trial_id: str) -> dict[str, Refit]:
        """Return the refits of a trial that have been trained, or have failed, by name."""
        confirmed, numbers = self.folder.confirmations(), range(1, self.space.promotion.seeds + 1)
        known = {f"{trial_id}.{number}": confirmed.refit(f"{trial_id}.{number}") for number in numbers}
        return {name: refit for name, refit in known.items() if refit is not None}

    def _adapter_work(self, adapter: Trained, keep: Callable[[Trained, Confirmation], None]) -> WorkItem[Confirmation]:
        """Have an adapter written out, and give it to `keep`."""
        task = self.space.task
        return WorkItem(
            lambda host: host.confirm.remote(adapter.spec, adapter.snapshot(), task),
            lambda confirmation: keep(adapter, confirmation),
            raised,
        )

    def _trained(self, trial_id: str) -> Trained:
        """Return a completed trial's adapter, or a refit's."""
        if trial_id not in self._adapters:
            record = next(r for r in self.trials if r.trial_id == trial_of(trial_id))
            refit = self.folder.confirmations().refit(trial_id)
            spec = self._spec(record)
            if refit is not None:
                spec = refit_spec(spec, int(trial_id.rpartition(".")[2]))
            kept = self.folder.checkpoint_selection.select(record.reports)
            metrics = refit.validation_metrics if refit is not None else kept.metrics
            self._adapters[trial_id] = Trained(spec, self.folder, metrics, kept.size, record.lineage)
        return self._adapters[trial_id]

    # ---- records -----------------------------------------------------------------------------------------------------
    def _candidate(self, adapter: Trained, scores: Mapping[str, Mapping[str, float]]) -> Candidate:
        trial_id = trial_of(adapter.trial_id)
        own = Refit(self._trained(trial_id).spec.hyperparameters.seed)
        recipe = {trial_id: own, **self._ended_refits(trial_id)}
        others = [
            replace(refit, validation_metrics=scores.get(name, {}))
            for name, refit in recipe.items()
            if name != adapter.trial_id
        ]
        info, study = self.actors.info, self.folder.info
        return Candidate(
            study=self.folder.name,
            trial_id=adapter.trial_id,
            task=study.task.registered_name,
            test_metrics={},
            validation_metrics=scores[adapter.trial_id],
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
        run_of: RunOf,
        beside: Mapping[str, Any] = MappingProxyType({}),
    ) -> None:
        info = self.actors.info
        if candidate is not None:  # promotion registers its factors: they come into this machine's cache
            for key, checksum in confirmation.factors.items():
                if factors_at(key, checksum) is None:
                    read = functools.partial(lambda key, host: host.factor_file.remote(self.space.task, key), key)
                    install_factors(key, self.actors.pool.ask(read, self.on_loop_step))
        hyper = adapter.spec.hyperparameters
        adapted = [module for module in info.modules if module.name in hyper.target_modules]
        start = self.folder.info.start_from
        manifest = Manifest(
            task=self.space.task,
            base_model=replace(self.space.base_model, revision=info.base.revision or self.space.base_model.revision),
            base_digest=info.base.weight_digest,
            data_fingerprint=info.data_fingerprint,
            study=self.folder.name,
            trial_id=adapter.trial_id,
            params=adapter.spec.params,
            hyperparameters=hyper,
            validation_metrics=candidate.validation_metrics if candidate else adapter.validation_metrics,
            test_metrics=candidate.test_metrics if candidate else {},
            size=adapter.size,
            probe=confirmation.probe,
            versions=info.versions,
            created_at=datetime.now(UTC).isoformat(timespec="seconds"),
            run_id=run_of(trial_of(adapter.trial_id)),
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
        self.folder.write_adapter(adapter.trial_id, sealed(files, manifest))
