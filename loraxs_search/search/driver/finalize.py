"""The end of a search: validation rows choose a finalist, only it answers test rows, adapters are sealed.

Finished work is recorded in the study folder item by item, so that after a kill no item is done twice.
"""

from __future__ import annotations

import functools
import logging
import threading
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, field, replace
from types import MappingProxyType
from typing import Any

from loraxs_search.errors import SearchInterruptedError
from loraxs_search.methods._base import Method
from loraxs_search.records.host import Confirmation
from loraxs_search.records.promotion import Candidate, Refit
from loraxs_search.records.trial import TrialRecord, TrialSpec
from loraxs_search.registry.card import model_card, resealed
from loraxs_search.registry.factor_sets import factors_at, install_factors
from loraxs_search.registry.finalist import choose, trial_of
from loraxs_search.registry.manifest import MANIFEST, sealed, verify
from loraxs_search.search.driver.baselines import BaseModelBaseline
from loraxs_search.search.driver.candidates import candidate_trials, make_candidate, make_manifest
from loraxs_search.search.driver.work_items import (
    AdapterWork,
    AnswerWork,
    RefitWork,
    Trained,
    ValidationWork,
    WorkItem,
    class_report,
    joined,
    map_over_hosts,
    refit_spec,
    row_parts,
    slices_of,
)
from loraxs_search.search.hosts.study_actors import StudyActors
from loraxs_search.search_space.space import Space
from loraxs_search.studies.folder import StudyFolder
from loraxs_search.studies.snapshots import read_reports

log = logging.getLogger(__name__)

RunOf = Callable[[str], str | None]


@dataclass(frozen=True)
class Finalization:
    """Finishes one study: trains its best recipes again, chooses the finalist, and has all adapters written.

    Args:
        trials: Completed ones, best first; `promotion.candidates` of those whose method may be promoted, and their
            refits, are candidates.
        stop: Ends the work from outside.
        counted: Called with how much of the present work is done, of how much, in which unit.
        take_commands: Called again and again while hosts work, to answer what people ask.
    """

    actors: StudyActors
    folder: StudyFolder
    space: Space
    trials: Sequence[TrialRecord]
    stop: threading.Event
    counted: Callable[[int, int, str], None] = lambda _, __, ___: None
    take_commands: Callable[[], None] = lambda: None
    _adapters: dict[str, Trained] = field(default_factory=dict)
    _refit_steps: dict[str, int] = field(default_factory=dict)

    @property
    def best(self) -> Sequence[TrialRecord]:
        """The trials that are candidates."""
        able = [record for record in self.trials if self.space.may_be_candidate(self._method(record).name)]
        return candidate_trials(able, self.space.promotion, self.space.task, self.space.search)

    def missing_refits(self) -> list[TrialSpec]:
        """Return the refits of the best trials that are not trained yet; the first of each trial come first."""
        confirmed, each = self.folder.confirmations(), [self._refits(record) for record in self.best]
        wanted = [spec for specs in zip(*each, strict=True) for spec in specs]
        return [spec for spec in wanted if confirmed.refit(spec.trial_id) is None]

    def refit(self, specs: Sequence[TrialSpec], is_late: Callable[[], bool] = lambda: False) -> None:
        """Train refits; once it is late, those that have not ended are left out.

        Raises:
            SearchInterruptedError: stopped from outside.
        """
        self._refit_steps.update({spec.trial_id: self._steps_done(spec) for spec in specs})
        self._count_refits()
        task, every = self.space.task, self.space.search.report_every
        items = [RefitWork(spec, task, every, self.folder, self.reached, is_late) for spec in specs]
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
        trained = [adapter for record in self.best for adapter in self._of_recipe(record)]
        scores = {adapter.trial_id: adapter.validation_metrics for adapter in trained}
        if self._are_scored_anew():
            confirmed = self.folder.confirmations()
            has_score = {a.trial_id: confirmed.validation(a.trial_id) is not None for a in trained}
            trained = sorted(trained, key=lambda adapter: not has_score[adapter.trial_id])
            trained = trained[: max(limit or len(trained), sum(has_score.values()))]
            scores = {adapter.trial_id: {} for adapter in trained}
            missing = [adapter for adapter in trained if not has_score[adapter.trial_id]]
            items = [ValidationWork(adapter, self.space.task) for adapter in missing]
            self._map_over_hosts(items, shared=True, unit="adapters")
            scores = {name: confirmed.validation(name) or {} for name in scores}
        made = [self._candidate(adapter, scores) for adapter in trained]
        task = self.space.task
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
        answers = self._answer_work(name) if untested else []
        kept = [record.trial_id for record in self.trials if self._method(record).has_adapter]
        ids = list(dict.fromkeys((*known, *kept)))
        adapters = [
            AdapterWork(self._trained(i), self.space.task, keep)
            for i in ids
            if not self._is_sealed(i, tested=i == name)
        ]
        self._map_over_hosts([*answers, *adapters], unit="parts")
        if chosen is not None:
            parts, rows = list(confirmed.answers(name).values()), b""
            if untested:
                metrics, answered = joined(parts, self.space.task)
                rows, baselines = answered.to_bytes(), self.folder.baselines() or ()
                chosen = replace(chosen, test_metrics=metrics, baselines=baselines, earlier_finalists=earlier)
            for confirmation in finalist:  # none if it was written before the driver was killed
                samples = tuple(sample for part in parts for sample in part.samples)
                task = self.space.task
                beside = {"samples": samples, "slices": slices_of(parts, task), "by_class": class_report(parts, task)}
                self._write(self._trained(name), confirmation, chosen, run_of, beside)
            self._update_baselines(chosen)
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
        if self.stop.is_set():
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

    def _steps_done(self, spec: TrialSpec) -> int:
        """Return how far a refit has got before now."""
        if self.folder.confirmations().refit(spec.trial_id) is not None:
            return spec.hyperparameters.max_steps
        snapshot = self.folder.snapshots.read(spec.trial_id)
        return read_reports(snapshot)[-1].step if snapshot else 0

    # ---- adapters ----------------------------------------------------------------------------------------------------
    def _method(self, record: TrialRecord) -> Method:
        return self.space.method_of(record.params)

    def _spec(self, record: TrialRecord) -> TrialSpec:
        return self.actors.spec(record.trial_id, record.params)

    def _refits(self, record: TrialRecord) -> list[TrialSpec]:
        spec = self._spec(record)
        return [refit_spec(spec, number) for number in range(1, self.space.promotion.seeds + 1)]

    def _ended_refits(self, trial_id: str) -> dict[str, Refit]:
        """Return the refits of a trial that have been trained, or have failed, by name."""
        confirmed, numbers = self.folder.confirmations(), range(1, self.space.promotion.seeds + 1)
        known = {f"{trial_id}.{number}": confirmed.refit(f"{trial_id}.{number}") for number in numbers}
        return {name: refit for name, refit in known.items() if refit is not None}

    def _answer_work(self, name: str) -> list[AnswerWork]:
        """Return the test rows that an adapter has yet to answer, in parts for all hosts."""
        confirmed, num_rows = self.folder.confirmations(), self.actors.info.num_rows["test"]
        parts = row_parts(num_rows, list(confirmed.answers(name)))
        return [AnswerWork(self._trained(name), rows, self.space.task) for rows in parts]

    def _of_recipe(self, record: TrialRecord) -> list[Trained]:
        """Return a trial and its refits that have not failed."""
        refits = self._ended_refits(record.trial_id)
        names = [record.trial_id, *(name for name, refit in refits.items() if not refit.failed)]
        return [self._trained(name) for name in names]

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

    def _are_scored_anew(self) -> bool:
        """Whether reports scored something else than candidates are compared by, or a part of the validation rows."""
        limit = self.space.task.validation_rows
        if self.space.task.report_metric is not None:
            return True
        return limit is not None and self.actors.info.num_rows["validation"] >= limit

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
        return make_candidate(self.folder, self.actors.info, adapter, scores[adapter.trial_id], others)

    def _is_sealed(self, trial_id: str, *, tested: bool) -> bool:
        """Whether an adapter is written out; a finalist's says what it scores on the test rows.

        One that was sealed as a mere candidate, before the search went on, does not.
        """
        path = self.folder.adapter_path(trial_id)
        return (path / MANIFEST).exists() and (not tested or bool(verify(path).test_metrics))

    def _write(
        self,
        adapter: Trained,
        confirmation: Confirmation,
        candidate: Candidate | None,
        run_of: RunOf,
        beside: Mapping[str, Any] = MappingProxyType({}),
    ) -> None:
        if candidate is not None:
            self._bring_factors(confirmation)
        run_id = run_of(trial_of(adapter.trial_id))
        manifest = make_manifest(self.folder, self.space, self.actors.info, adapter, confirmation, candidate, run_id)
        manifest = replace(manifest, **beside)
        files = {**confirmation.files, "README.md": model_card(manifest).encode()}
        self.folder.write_adapter(adapter.trial_id, sealed(files, manifest))

    def _update_baselines(self, finalist: Candidate) -> None:
        """Have a finalist's folder say what baselines score that were measured after it was sealed."""
        path = self.folder.adapter_path(finalist.trial_id)
        if verify(path).baselines != finalist.baselines:
            self.folder.write_adapter(finalist.trial_id, resealed(path, baselines=finalist.baselines))

    def _bring_factors(self, confirmation: Confirmation) -> None:
        """Copy the adapter's factors into this machine's cache: promotion registers them."""
        task = self.space.task
        for key, checksum in confirmation.factors.items():
            if factors_at(key, checksum) is None:
                read = functools.partial(lambda key, host: host.factor_file.remote(task, key), key)
                install_factors(key, self.actors.pool.ask(read, self.on_loop_step))
