"""MO-ASHA decides as the definition of fronts does, keeps the small end, and is fast with many trials behind it."""

from __future__ import annotations

import itertools
import math
import time
from collections.abc import Mapping
from dataclasses import replace
from typing import Any

from hypothesis import given
from hypothesis import strategies as st
from support.reports import METRIC, report, together

from loraxs_search.pareto import Point, dominates, spread_order
from loraxs_search.records import AdapterSize, SearchPlan, TrialReport
from loraxs_search.schedulers import Scheduler, make_scheduler

PLAN = SearchPlan(max_steps=16, report_every=4, reduction_factor=2, scheduler="mo-asha")
SCORES = st.one_of(st.integers(0, 5).map(float), st.floats(-1e6, 1e6), st.just(math.nan))
SIZES = st.sampled_from([1000, 2000, 4000, 9000, 20_000])


def mo_asha(*before: TrialReport, plan: SearchPlan = PLAN, direction: Any = "maximize") -> Scheduler:
    scheduler = make_scheduler(plan, direction)
    scheduler.replay(before, METRIC)
    return scheduler


def sized(latest: TrialReport, sizes: Mapping[str, int]) -> TrialReport:
    """Return a report of a trial that stores so many bytes, as do its peers."""
    size = AdapterSize(1, 1, sizes[latest.trial_id])
    return replace(latest, size=size, peer_bytes={name: sizes[name] for name in latest.peers})


def goes_on(scheduler: Scheduler, trial_id: str, step: int, score: float, stored: int) -> bool:
    return scheduler.report(sized(report(trial_id, step, score), {trial_id: stored}), METRIC) is None


def is_kept(points: Mapping[str, Point], own: str, factor: int) -> bool:
    """Say by the definition whether a trial is among the best 1/factor of those at its rung."""
    if math.isnan(points[own][0]):
        return True
    left = {name: point for name, point in points.items() if not math.isnan(point[0])}
    limit, num_before = max(1.0, len(left) / factor), 0
    while left:
        front = {
            name: point for name, point in left.items() if not any(dominates(other, point) for other in left.values())
        }
        for point in spread_order(sorted(set(front.values()), key=lambda point: point[1])):
            if points[own] == point:
                return num_before < limit
            num_before += sum(other == point for other in front.values())
        left = {name: point for name, point in left.items() if name not in front}
    raise AssertionError(own)


@given(
    st.lists(st.lists(st.tuples(SCORES, SIZES), min_size=1, max_size=4), max_size=15),
    st.sampled_from([2, 3, 4]),
    st.sampled_from(["maximize", "minimize"]),
)
def test_at_a_rung_it_decides_as_the_definition_does(
    packs: list[list[tuple[float, int]]], factor: int, direction: Any
) -> None:
    """Trials come in packs, which are scored together: each is held against all that came so far, its pack included."""
    scheduler = mo_asha(plan=replace(PLAN, reduction_factor=factor), direction=direction)
    sign, known, numbers = (1.0 if direction == "maximize" else -1.0), dict[str, Point](), itertools.count()
    for pack in packs:
        trials = {f"{next(numbers):05d}": trial for trial in pack}
        known |= {name: (sign * score, float(stored)) for name, (score, stored) in trials.items()}
        sizes = {name: stored for name, (_, stored) in trials.items()}
        for latest in together({name: score for name, (score, _) in trials.items()}, 4):
            reason = scheduler.report(sized(latest, sizes), METRIC)
            assert (reason is None) == is_kept(known, latest.trial_id, factor)


@given(st.lists(st.tuples(st.integers(0, 5).map(float), SIZES), min_size=1, max_size=12))
def test_of_trials_that_are_scored_together_the_front_is_kept_and_at_least_the_share(
    trials: list[tuple[float, int]],
) -> None:
    names = [f"{number:05d}" for number in range(len(trials))]
    sizes = dict(zip(names, (stored for _, stored in trials), strict=True))
    reports = together(dict(zip(names, (score for score, _ in trials), strict=True)), 4)
    for order in (reports, reports[::-1]):
        kept = set(names) - mo_asha(*(sized(latest, sizes) for latest in order)).stopped.keys()
        assert len(kept) >= len(names) / 2
        front = [n for n, (s, b) in zip(names, trials, strict=True) if not any(dominates(t, (s, b)) for t in trials)]
        assert len(front) > len(names) / 2 or kept >= set(front)


def test_the_small_end_goes_on_where_asha_would_stop_it() -> None:
    big = [("00000", 0.90, 50_000), ("00001", 0.88, 50_000), ("00002", 0.86, 50_000)]
    for plan, kept in ((PLAN, True), (replace(PLAN, scheduler="asha"), False)):
        scheduler = mo_asha(plan=plan)
        for name, score, stored in big:
            goes_on(scheduler, name, 4, score, stored)
        assert goes_on(scheduler, "00003", 4, 0.70, 2000) == kept
        assert not goes_on(scheduler, "00004", 4, 0.70, 60_000)


def test_the_reason_names_step_score_bytes_and_front() -> None:
    scheduler = mo_asha()
    assert goes_on(scheduler, "a", 4, 0.8, 1000)
    assert not goes_on(scheduler, "b", 4, 0.6, 20_000)
    assert scheduler.stopped == {
        "b": "MO-ASHA stopped it at step 4: 0.6 with 20,000 bytes is in front 2 of score and bytes, and not among the "
        "best 1/2 that reached this step",
    }


def test_a_peer_whose_own_report_says_otherwise_counts_by_its_report() -> None:
    """Its host died before it could report, and another scored it anew."""
    sizes = {"00000": 1000, "00001": 1000}
    scheduler = mo_asha(sized(together({"00000": 0.8, "00001": 0.5}, 4)[0], sizes))
    assert goes_on(scheduler, "00001", 4, 0.9, 1000)
    assert not goes_on(scheduler, "00002", 4, 0.78, 1000)


def test_a_peer_of_which_nobody_knows_what_it_stores_counts_once_it_reports() -> None:
    scheduler = mo_asha(replace(report("00000", 4, 0.5, {"00001": (4, 0.9)}), size=AdapterSize(1, 1, 2000)))
    assert not scheduler.stopped
    assert goes_on(scheduler, "00001", 4, 0.9, 1000)
    assert not goes_on(scheduler, "00002", 4, 0.4, 2000)


def test_a_decision_costs_little_with_many_trials_behind_it() -> None:
    scheduler = mo_asha()
    reports = [
        sized(report(str(number), 4, number * 7919 % 977), {str(number): 1000 * (1 + number % 24)})
        for number in range(4000)
    ]
    began = time.process_time()
    scheduler.replay(reports, METRIC)
    assert time.process_time() - began < 20, "some 200 microseconds each"
