"""Check a space against its base model, and its data; nothing is trained but a few measured steps, where asked for.

What a search will take on this machine is the measured time of a few steps, times the steps that early stopping
leaves. No Ray: the host that would train is built in this process.
"""

from __future__ import annotations

import math
import random
import time
from collections.abc import Mapping, Sequence
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass, replace
from typing import TYPE_CHECKING

from loraxs_search.base_model.layers import linear_modules, parameter_shapes
from loraxs_search.base_model.locate import locate
from loraxs_search.base_model.reading import resolved_pooling
from loraxs_search.base_model.tokenizer import load_tokenizer
from loraxs_search.errors import BaseModelError, LoraxsError, TaskDataError, UsageError
from loraxs_search.records.base import LinearModule
from loraxs_search.records.host import HostInfo
from loraxs_search.records.literals import Pooling, Split
from loraxs_search.records.promotion import PromotionRule
from loraxs_search.records.search import SearchPlan
from loraxs_search.records.task import DataReport, Task
from loraxs_search.records.trial import AdapterSize, TrialReport, TrialSpec
from loraxs_search.schedulers import make_scheduler
from loraxs_search.search.cluster.placement import PackSize, choose_pack_size, unshared
from loraxs_search.search.hosts.host_config import host_config, training_host
from loraxs_search.search.tune.time_budget import EndTime
from loraxs_search.search_space.load import Overrides, SpaceSource, open_space
from loraxs_search.search_space.space import Space, SpaceDescription, describe
from loraxs_search.tasks.kinds import kind_of
from loraxs_search.tasks.prepared import first_rows, load_data, prepare
from loraxs_search.tasks.report import data_warnings

if TYPE_CHECKING:
    from loraxs_search.packing.host import TrialHost

_MEASURED_S = 4.0  # of steps, about
_MARGIN = 0.2  # what a machine's speed varies by, from minute to minute and from trial to trial
_SIMULATED = 20  # searches with scores drawn at random
_SCORED_ROWS = 32  # of validation rows; what a scoring takes grows with their number
_FEW_ROWS = 2  # of a task that writes or chooses: its base takes seconds for a batch, by the tokens in it


@dataclass(frozen=True)
class Measured:
    """How fast this machine is with the trials of a space.

    Args:
        at_once: Trials that train side by side. All are measured, or where a row takes long, one with a row a step.
        num_steps: Of each of them.
        step_s: Seconds of the device for a step of one of them, while the others train.
        scoring_s: For a scoring of one of them, on the rows of a report.
        answer_s: For an answer to one row, where answers are written or chosen at the end; 0 elsewhere.
        start_s: Seconds to load base and data, and to the end of the first step.
    """

    device: str
    at_once: int
    num_steps: int
    step_s: float
    scoring_s: float
    answer_s: float
    start_s: float


@dataclass(frozen=True)
class _SearchEstimate:
    """About how long a search takes on this machine; a range, since neither scores nor speed are known.

    Args:
        least_s: And `most_s`: from the start of `launch` to its end, refits and scoring included.
        least_device_hours: And `most_device_hours`: of the one device here.
        num_trials: And `num_refits`, at most.
        step_share: What early stopping leaves of all steps of all trials.
        parts_s: Seconds in the middle of the range, by what they go into.
    """

    least_s: float
    most_s: float
    least_device_hours: float
    most_device_hours: float
    num_trials: int
    num_refits: int
    step_share: tuple[float, float]
    parts_s: dict[str, float]
    measured: Measured


def _estimate(space: Space) -> _SearchEstimate:
    """Measure a few steps of drawn trials on this machine, and return what the whole search would take.

    Raises:
        UsageError: its trials start from what a search makes first.
        LoraxsError: base or data are not here, or a drawn trial cannot be trained.
    """
    if space.start_from is not None:
        raise UsageError("trials start from an adapter that a search brings first, so there is nothing to measure yet.")
    began = time.monotonic()
    import torch  # a search loads it, too

    scored, most = space.task.validation_rows, _FEW_ROWS if kind_of(space.task).shots else _SCORED_ROWS
    few = replace(space.task, validation_rows=most if scored is None else min(scored, most))
    host = training_host(host_config([space]), few, torch.get_num_threads())
    try:
        info = host.info(few)
        measured = _measure(host, info, replace(space, task=few), began)
    finally:
        host.close()
    rows = info.data.num_rows["validation"] if scored is None else min(scored, info.data.num_rows["validation"])
    times = rows / max(1, info.num_rows["validation"])
    info = replace(info, num_rows={**info.num_rows, "validation": rows})
    measured = replace(measured, scoring_s=measured.scoring_s * times)
    return add_up(space.search, space.promotion, space.task, info, measured)


def add_up(plan: SearchPlan, rule: PromotionRule, task: Task, info: HostInfo, measured: Measured) -> _SearchEstimate:
    """Return what a search takes at the measured speed."""
    simulated, reports = simulated_steps(plan, measured.at_once)
    steps = sum(simulated) / len(simulated)
    all_steps, reports_each = plan.trials * plan.max_steps, math.ceil(plan.max_steps / plan.report_every)
    candidates = min(rule.candidates, plan.trials)
    refits = rule.num_refits(plan.trials)
    step_s, scoring_s = measured.step_s, measured.scoring_s
    trials_s = steps * step_s + reports * scoring_s
    trial_s = plan.max_steps * step_s + reports_each * scoring_s
    end = EndTime.of(task, info, trial_s=trial_s, scoring_s=scoring_s, answer_s=measured.answer_s)
    limit_s = math.inf
    if plan.time_budget is not None:  # as a search divides it
        left_s = plan.time_budget - measured.start_s
        limit_s = max(0.0, left_s - min(end.total_s(candidates, refits), plan.time_budget / 2))
        candidates, refits = end.fitting(left_s - min(trials_s, limit_s), candidates, refits)
    parts = {
        "start": measured.start_s,
        "trials": min(trials_s, limit_s),
        "refits": refits * trial_s,
        "candidates": end.total_s(candidates + refits, 0),
    }
    fewer, more = min(simulated) / (steps or 1.0) - _MARGIN, max(simulated) / (steps or 1.0) + _MARGIN
    fixed = parts["refits"] + parts["candidates"]
    least = min(trials_s * fewer, limit_s) + fixed * (1 - _MARGIN)
    most = min(trials_s * more, limit_s) + fixed * (1 + _MARGIN)
    return _SearchEstimate(
        least_s=least + parts["start"] * (1 - _MARGIN),
        most_s=most + parts["start"] * (1 + _MARGIN),
        least_device_hours=least / 3600,
        most_device_hours=most / 3600,
        num_trials=plan.trials,
        num_refits=refits,
        step_share=(min(simulated) / all_steps, max(simulated) / all_steps),
        parts_s=parts,
        measured=measured,
    )


def simulated_steps(plan: SearchPlan, at_once: int) -> tuple[list[int], float]:
    """Return the steps of all trials together, of each simulated search, and the mean number of their reports.

    Their trials have scores drawn at random, and the plan's scheduler stops them. A trial keeps its score, so early
    stopping is right about it; the better a sampler gets, the fewer it stops.
    """
    steps, num_reports = [0] * _SIMULATED, 0
    for search in range(_SIMULATED):
        draw, scheduler = random.Random(search), make_scheduler(plan, "maximize")
        waiting, running = list(range(plan.trials)), dict[int, int]()
        scores = [draw.random() for _ in waiting]
        while waiting or running:
            while waiting and len(running) < at_once:
                running[waiting.pop(0)] = 0
            for trial in running:
                step = min(running[trial] + plan.report_every, plan.max_steps)
                steps[search] += step - running[trial]
                running[trial] = step
            together = {f"{trial}": (step, scores[trial]) for trial, step in running.items()}
            for trial, step in list(running.items()):
                num_reports += 1
                peers = {name: at for name, at in together.items() if name != f"{trial}"}
                scored = {"score": scores[trial]}
                report = TrialReport(f"{trial}", step, scored, 0.0, 0.0, 0, AdapterSize(1, 1, 1), peers)
                if scheduler.report(report, "score") is not None or step >= plan.max_steps:
                    del running[trial]
    return steps, num_reports / _SIMULATED


# ---- measuring -------------------------------------------------------------------------------------------------------
def _measure(host: TrialHost, info: HostInfo, space: Space, began: float) -> Measured:
    """Time a few steps of trials that are drawn from the space, and a scoring."""
    import optuna

    plan = space.search
    size = choose_pack_size(
        plan.pack_size, fits=info.num_slots, fills=info.full_slots, num_trials=plan.trials, num_devices=1
    ).size
    has_few, n = bool(kind_of(space.task).shots), min(size, plan.trials)
    optuna.logging.set_verbosity(optuna.logging.WARNING)
    study = optuna.create_study(sampler=optuna.samplers.RandomSampler(seed=plan.seed))
    specs, rows = list[TrialSpec](), 1
    for number in range(1 if has_few else n):  # the same each time
        params = space.suggest(study.ask())
        hyper = space.hyperparameters(params, info.modules, plan.trial_seed(number))
        specs.append(TrialSpec(f"{number:05d}", params, hyper, study="estimate"))
    if has_few:
        rows = max(1, specs[0].hyperparameters.batch_size)
        specs = [replace(specs[0], hyperparameters=replace(specs[0].hyperparameters, batch_size=1))]
    snapshots: list[bytes | None] = [None] * len(specs)

    def advance(until: int) -> float:
        """Advance all trials side by side, as a search does; return the seconds."""
        nonlocal snapshots
        since = time.monotonic()
        with ThreadPoolExecutor(len(specs), "measured") as threads:
            answers = threads.map(lambda spec, state: host.advance(spec, until, state, space.task), specs, snapshots)
            snapshots = [state for _, state in answers]
        return time.monotonic() - since

    advance(1)  # factors, kernels: not again
    start_s = time.monotonic() - began
    scoring_s, steps, done = advance(1), 1, 1
    step_s = max(advance(done + steps) - scoring_s, 1e-4) / steps
    if (more := min(int(_MEASURED_S / step_s), plan.max_steps - done - steps)) > steps:
        done, steps = done + steps, more
        step_s = max(advance(done + steps) - scoring_s, 1e-4) / steps
    answer_s, asked, state = 0.0, range(min(_FEW_ROWS, info.num_rows["test"])), snapshots[0]
    if has_few and asked and state is not None:
        asked_at = time.monotonic()
        host.answer(specs[0], state, asked, space.task.for_candidates)
        answer_s = (time.monotonic() - asked_at) / len(asked)
    each = len(specs)
    return Measured(info.device, n, steps, rows * step_s / each, scoring_s / each, answer_s, start_s)


@dataclass(frozen=True)
class CheckedSpace:
    """What was seen of a valid space; `check --json` prints it.

    Args:
        space: Its name.
        base_digest: Of the base's weights.
        rows: The number of rows of each split, of validation those that are scored; None if no data was read.
        data: Of the rows: repeated ones, and those that splits share; None if no data was read.
        pack_size: How many trials would share this machine; None if no data was read, or it has an accelerator.
        warnings: What of the data may make scores look better than they are.
        first_rows: Two train rows as the model sees them; empty if no data was read.
        description: Combinations, module groups, the smallest and the largest adapter.
        estimate: What a search would take here, where that was asked for.
        no_estimate: Why that cannot be said.
        pooling: Which states heads read; `auto` of a space is resolved here.
    """

    space: str
    base_digest: str
    rows: dict[Split, int] | None
    data: DataReport | None
    pack_size: PackSize | None
    warnings: list[str]
    description: SpaceDescription
    estimate: _SearchEstimate | None
    no_estimate: str
    pooling: Pooling = "class"
    first_rows: Sequence[Mapping[str, str]] = ()


def check(space: SpaceSource, *, data: bool = False, estimate: bool = False, overrides: Overrides = ()) -> CheckedSpace:
    """Check a space against its base model.

    Args:
        space: A space file, the name of a shipped one, its sections as a mapping (paths start in the working
            directory), or a loaded `Space`.
        data: Read the task's rows as well.
        estimate: Measure a few steps of drawn trials here, in some 20 s; reads the rows too.
        overrides: As `launch` takes them.
    Raises:
        SpaceError: the space has faults; the message has all of them.
        BaseModelError: its base cannot be found, or does not fit the task; with the faults of the rows, where these are
            read.
        UsageError: its module groups do not fit the base; with the faults of the rows, too.
        TaskDataError: the rows are not what the task says.
    """
    loaded = open_space(space, overrides)
    reads = data or estimate
    try:
        base, model = locate(loaded.base_model), kind_of(loaded.task).model
        modules = linear_modules(base, model)
        heads, body = parameter_shapes(base, model)
        description = describe(loaded, modules, heads=heads, body=body)
    except (BaseModelError, UsageError) as error:
        try:
            if reads:
                load_data(loaded.task)
        except TaskDataError as other:  # the user sees the faults of both
            raise type(error)(f"{error}\n{other}", hint="; ".join(filter(None, (error.hint, other.hint)))) from error
        raise
    rows, report, pack_size, warnings, shown = None, None, None, list[str](), list[dict[str, str]]()
    if reads:
        load_data(loaded.task)  # its faults before those of the tokenizer
        prepared = prepare(loaded.task, load_tokenizer(base))
        rows, report = prepared.num_scored, prepared.report
        mean_length = float(prepared.lengths("train").mean())
        pack_size = _expected_pack_size(loaded, modules, description.largest.size.head_parameters, mean_length)
        warnings, shown = data_warnings(report, rows, loaded.task.metric), first_rows(prepared, 2)
    found, unknown = None, ""
    if estimate:
        try:
            found = _estimate(loaded)
        except LoraxsError as error:
            unknown = error.message
    facts = (rows, report, pack_size, warnings, description, found, unknown)
    return CheckedSpace(loaded.name, base.weight_digest, *facts, resolved_pooling(loaded.task.pooling, base), shown)


def _expected_pack_size(
    space: Space, modules: Sequence[LinearModule], head_parameters: int, row_tokens: float
) -> PackSize | None:
    """Choose as a search on this machine would; None on an accelerator, which is timed with the base on it.

    Args:
        head_parameters: Of the largest head that a trial may train.
        row_tokens: Mean length of a train row.
    """
    import torch

    from loraxs_search.engine.passes import workers_for
    from loraxs_search.packing.capacity import fitting_slots, full_slots, slot_bytes, token_budget

    if not space.is_packable:
        return unshared(space.methods)
    if torch.cuda.is_available():
        return None
    device = torch.device("cpu")
    largest, (num_workers, _) = space.largest(), workers_for(device)
    budget = token_budget(modules, torch.float32, device)
    fills = full_slots(device, budget, num_workers, largest.batch_size * row_tokens)
    asked = space.search.pack_size
    wanted = fills if asked == "auto" else asked
    slots = fitting_slots(wanted, slot_bytes(modules, largest, head_parameters, num_workers), device)
    return choose_pack_size(asked, fits=slots, fills=fills, num_trials=space.search.trials, num_devices=1)
