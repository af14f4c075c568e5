"""Our searcher: asks a persistent Optuna study for params and hands Tune's news to the ledger."""

from __future__ import annotations

import time
import warnings
from collections import Counter
from pathlib import Path
from typing import Any

import optuna
from ray.tune.search import Searcher

from loraxs_search.records import Direction, SearchPlan, TrialReport, TrialState, from_json, to_json
from loraxs_search.search.crew import Crew
from loraxs_search.search.ledger import Ledger, live_trial
from loraxs_search.search.scheduler import StudyASHA
from loraxs_search.search.trainable import FAILED, REPORT, RESOURCES, STEP
from loraxs_search.search_space import Space

SAME_FAILURES = 5


def open_optuna_study(path: Path, name: str, direction: Direction) -> optuna.Study:
    """Open the study's SQLite storage, created at the first call."""
    optuna.logging.set_verbosity(optuna.logging.WARNING)
    storage = optuna.storages.RDBStorage(f"sqlite:///{path}", engine_kwargs={"connect_args": {"timeout": 60}})
    return optuna.create_study(storage=storage, study_name=name, direction=direction, load_if_exists=True)


class StudySearcher(Searcher):  # type: ignore[misc]  # ray is untyped
    """Proposes unfinished trials first, then new ones; records how each ends.

    A trial's id is its Optuna number, so study, journal, MLflow and Tune speak of the same trial. Proposals depend on
    the plan's seed, the number and the history only: a resumed search proposes what an undisturbed one would.
    """

    def __init__(
        self,
        study: optuna.Study,
        ledger: Ledger,
        space: Space,
        plan: SearchPlan,
        crew: Crew,
        scheduler: object,
        deadline: float | None,
    ) -> None:
        super().__init__()
        self._study, self._ledger, self._space, self._plan, self._crew = study, ledger, space, plan, crew
        self._scheduler, self._deadline = scheduler, deadline
        self._pending = [record.trial_id for record in ledger.unfinished()]
        self._orphans = [
            t.number for t in study.get_trials(deepcopy=False) if trial_name(t.number) not in ledger.records
        ]
        self._task_json = to_json(space.task)
        self._trial_ids: dict[str, str] = {}
        self._reasons: Counter[str] = Counter()

    def __getstate__(self) -> dict[str, Any]:
        return {}  # Tune pickles its searcher into snapshots that we never read: the study folder is the truth

    @property
    def early_end(self) -> str | None:
        """Why no more trials are proposed although the budget is not used up; None while there is no such reason."""
        for reason, count in self._reasons.items():
            if count >= SAME_FAILURES:
                return f"{count} trials failed for the same reason: {reason}"
        if self._deadline is not None and time.time() >= self._deadline:
            return f"the time budget of {self._plan.time_budget_s:g} s is used up"
        return None

    def set_max_concurrency(self, max_concurrent: int) -> bool:
        return True  # it holds back itself, by what the cluster has room for at the time

    def suggest(self, trial_id: str) -> dict[str, Any] | str | None:
        if self._is_over():
            return str(Searcher.FINISHED)
        if len(self._trial_ids) >= self._crew.census.width:
            return None
        if self._pending:
            ours = self._pending.pop(0)
            params = dict(self._ledger.records[ours].params)
        else:
            ours, params = self._propose()
        spec = self._crew.spec(ours, params)
        self._ledger.started(ours, params, spec.hyperparameters)
        self._trial_ids[trial_id] = ours
        return {
            "spec": to_json(spec),
            "task": self._task_json,
            "metric": self._space.task.metric,
            "report_every": self._plan.report_every,
            "max_failures": self._plan.max_failures,
            RESOURCES: dict(self._crew.census.slots.resources),
            **self._crew.actor_names,
        }

    def on_trial_result(self, trial_id: str, result: dict[str, Any]) -> None:
        if REPORT in result:
            self._ledger.reported(from_json(TrialReport, result[REPORT]))

    def on_trial_complete(self, trial_id: str, result: dict[str, Any] | None = None, error: bool = False) -> None:
        ours = self._trial_ids.pop(trial_id, None)
        if ours is None or (result is None and not error):
            return  # never ran: it stays unfinished and is proposed again on resume
        if error or result is None:
            self._fail(ours, f"its process was lost more than {self._plan.max_failures} times")
        elif FAILED in result:
            self._fail(ours, result[FAILED])
        else:
            self.on_trial_result(trial_id, result)
            self._end(ours, trial_id, result[STEP])

    def save(self, checkpoint_path: str) -> None:
        """Nothing to save: the study folder holds it."""

    def restore(self, checkpoint_path: str) -> None:
        """Never called: a resumed search builds a new searcher from the study folder."""

    # ---- inside ------------------------------------------------------------------------------------------------------
    def _is_over(self) -> bool:
        enough = not self._pending and len(self._ledger.records) >= self._plan.trials
        return enough or self.early_end is not None

    def _propose(self) -> tuple[str, dict[str, Any]]:
        number = self._orphans.pop(0) if self._orphans else None
        if number is None:
            self._study.sampler = self._sampler()
            trial = self._study.ask()
        else:  # asked for by a driver that died before it was recorded: finish asking
            trial = live_trial(self._study, self._study.get_trials(deepcopy=False)[number])
        return trial_name(trial.number), self._space.suggest(trial)

    def _sampler(self) -> optuna.samplers.BaseSampler:
        seed = self._plan.seed * 1_000_003 + len(self._ledger.records)
        with warnings.catch_warnings():
            # `group` is what conditional spaces need; Optuna has called it experimental since 2.8.
            warnings.simplefilter("ignore", optuna.exceptions.ExperimentalWarning)
            return optuna.samplers.TPESampler(multivariate=True, group=True, constant_liar=True, seed=seed)

    def _end(self, ours: str, trial_id: str, step: int) -> None:
        if step >= self._plan.max_steps:
            self._ledger.ended(ours, TrialState.COMPLETE, f"trained all {step} steps")
            return
        reasons = self._scheduler.reasons if isinstance(self._scheduler, StudyASHA) else {}
        reason = reasons.get(trial_id, f"the search's time was up at step {step}")
        self._ledger.ended(ours, TrialState.PRUNED, reason)

    def _fail(self, ours: str, reason: str) -> None:
        self._reasons[reason] += 1
        self._ledger.ended(ours, TrialState.FAIL, reason)


def trial_name(number: int) -> str:
    """Return the trial id of an Optuna number."""
    return f"{number:05d}"
