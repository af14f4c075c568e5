"""Groups of trials within equal budgets, from studies that were never run."""

from __future__ import annotations

import json
import re
from dataclasses import replace

import pytest
from hypothesis import given
from hypothesis import strategies as st
from optuna.distributions import CategoricalDistribution, FloatDistribution, distribution_to_json
from support.studies import IDENTITY, TASK, Tried, confirm, searched

from loraxs_search.assets import PROBE
from loraxs_search.errors import StudyError, UsageError
from loraxs_search.records.search import SearchPlan
from loraxs_search.records.task import Identity
from loraxs_search.records.trial import Proposal, TrialState
from loraxs_search.reports.comparison import compare
from loraxs_search.reports.importances import MIN_TRIALS, Importances
from loraxs_search.reports.leaderboard import pareto_front
from loraxs_search.studies.folder import StudyFolder


def tried(score: float, stored_bytes: int = 1000, **params):
    return Tried(params, score, stored_bytes, r_parameters=stored_bytes // 10)


XS = [tried(0.70, 500, rate=1), tried(0.80, 1000, rate=2), tried(0.75, 1200, rate=3), tried(0.90, 2000, rate=4)]
LORA = [tried(0.80, 10_000, rate=1), tried(0.85, 20_000, rate=2), tried(0.60, 5_000, rate=3)]


@pytest.fixture
def methods():
    """A study of LoRA-XS with four trials, and one of LoRA with three."""
    return searched("xs", XS), searched("lora", LORA, space="method: lora\n")


# ---- groups ----------------------------------------------------------------------------------------------------------
def test_the_first_trials_of_each_group_are_compared_as_many_as_the_smallest_has(methods):
    comparison = compare("xs", "lora")
    xs, lora = comparison.groups
    assert (comparison.budget, xs.num_trials, lora.num_trials) == (3, 4, 3)
    assert (xs.best.trial, xs.best.score) == ("xs/00001", 0.80), "0.90 came after the budget"
    assert (xs.steps, xs.device_s) == (60, 6.0)
    assert "equal budgets: the first 3 of up to 4 trials of each group" in comparison.notes
    small = compare("xs", "lora", max_bytes=1000)
    xs, lora = small.groups
    assert ([p.trial for p in xs.points], xs.best.score) == (["xs/00000", "xs/00001"], 0.80)
    assert (lora.points, lora.best, lora.front, small.budget) == ((), None, (), 3), "larger ones have used the budget"


def test_stopped_and_failed_trials_count_and_running_ones_do_not():
    stopped = Tried({}, 0.99, state=TrialState.PRUNED)
    running, failed = replace(stopped, state=TrialState.RUNNING), replace(stopped, state=TrialState.FAIL)
    searched("s", [running, stopped, failed, tried(0.5)])
    (group,) = compare("s").groups
    assert (group.num_trials, group.steps, group.best.score, len(group.points)) == (3, 30, 0.5, 1)


def test_trials_are_grouped_by_what_they_had():
    searched("mixed", [tried(0.5, method="lora", rank=8), tried(0.6, method="lora-xs", rank=4), tried(0.7, rank=4)])
    searched("lone", [tried(0.5, rank=8)], space="method: {choice: [lora]}\n")
    searched("other", [tried(0.5, basis="middle", head_init="probe"), tried(0.6, method="elsewhere")])
    StudyFolder.open("lone").write_asset(PROBE, b"an output layer")

    def grouped(*studies: str, **options) -> dict[str, int]:
        return {group.label: group.num_trials for group in compare(*studies, **options).groups}

    assert grouped("mixed", "lone") == {"lora": 2, "lora-xs": 2}, "the method of a space is that of its trials"
    assert grouped("mixed", "other", by="basis") == {"top": 2, "-": 2, "middle": 1}, "left out, it has its default"
    assert grouped("lone", "other", by="head_init") == {"probe": 1, "random": 2}, "without a probe heads begin so"
    assert list(grouped("mixed", "other", by="rank")) == ["4", "8", "-"], "numbers in order, and who takes none"
    assert list(grouped("mixed", by="rank", against="8")) == ["8", "4"]


# ---- seeds and tests -------------------------------------------------------------------------------------------------
LABELS = [0, 1] * 20
BAD = [0] * 40


@pytest.mark.parametrize(
    ("first", "second", "found"),
    [
        # Welch: t = 3.755 with 2.16 degrees of freedom
        (([0.80, 0.70, 0.75],), ([0.85, 0.86, 0.87],), {"by": "seeds", "gain": 0.11, "p_value": 0.0575}),
        (([0.8],), ([0.8],), {"p_value": None}),
        (([0.8], BAD, LABELS), ([0.85], LABELS, LABELS), {"by": "rows", "gain": 0.5, "p_value": 2 * 0.5**20}),
        (([0.8], LABELS, LABELS), ([0.85], BAD, LABELS), {"by": "rows", "gain": -0.5, "p_value": 2 * 0.5**20}),
        (([0.8, 0.7], BAD[:8], LABELS[:8]), ([0.8, 0.7], LABELS[:8], LABELS[:8]), {"by": "seeds"}),
        (([0.8, 0.7], BAD, LABELS), ([0.8, 0.7], BAD, LABELS, "other"), {"by": "seeds"}),
    ],
)
def test_groups_are_compared_by_paired_rows_or_else_by_seeds(methods, first, second, found):
    for folder, own in zip(methods, (first, second), strict=True):
        confirm(folder, "00001", *own)
    one, other = compare("xs", "lora").groups
    assert (one.seed_scores, one.difference) == (tuple(first[0]), None)
    assert one.over_seeds.mean == pytest.approx(sum(first[0]) / len(first[0]))
    for name, value in found.items():
        known = value if isinstance(value, (str, type(None))) else pytest.approx(value, rel=1e-2)
        assert getattr(other.difference, name) == known


def test_where_less_is_better_the_best_has_least():
    task = replace(TASK, metric="f1", report_metric="loss", report_direction="minimize")
    searched("s", [tried(0.5), tried(0.4)], task=task)
    assert (compare("s").groups[0].seed_scores, compare("s").groups[0].best.score) == ((), 0.4)


def test_a_finalist_outside_the_budget_is_not_of_the_group(methods):
    confirm(methods[0], "00003", [0.9], LABELS, LABELS)
    assert compare("xs", "lora").groups[0].tested == ""


@given(st.lists(st.tuples(st.integers(0, 5).map(float), st.integers(1, 9)), max_size=12))
def test_a_front_is_of_points_that_none_beats_and_does_not_depend_on_their_order(points):
    def beats(one, other):
        return one[0] >= other[0] and one[1] <= other[1] and one != other

    front = pareto_front(points, lambda point: point)
    assert set(front) == {point for point in points if not any(beats(other, point) for other in points)}
    assert set(front) == set(pareto_front(points[::-1], lambda point: point))
    assert [size for _, size in front] == sorted(size for _, size in front)


# ---- what is refused, and what is said -------------------------------------------------------------------------------
def test_studies_of_other_tasks_rows_or_bases_are_refused_with_the_values():
    searched("one", [tried(0.5)])
    searched("rows", [tried(0.5)], identity=Identity(IDENTITY.base_digest, "other" * 8))
    searched("base", [tried(0.5)], identity=Identity("other" * 8, IDENTITY.data_fingerprint))
    searched("task", [tried(0.5)], task=replace(TASK, name="another", validation_rows=7))
    searched("new", [], identity=None, finished=False)
    cases = {
        "rows": "data fingerprint is 'datadatadatadata' and 'otherotherothero'.",
        "base": "base digest is 'basebasebasebase' and 'otherotherothero'.",
        "task": "task.name is 't' and 'another'; task.validation_rows is None and 7.",
        "new": "new has not loaded its rows yet",
        "x": "'x'",
    }
    for name, part in cases.items():
        with pytest.raises(StudyError, match=re.escape(part)):
            compare("one", name)
    with pytest.raises(StudyError, match="none of new"):
        compare("new")
    searched("said", [tried(0.5)], task=replace(TASK, operating_points=(0.8,), question="Is it good?"))
    assert compare("one", "said").groups[0].num_trials == 2, "what changes no score is no other task"
    with pytest.raises(UsageError, match="one twice"):
        compare("one", "one")


@pytest.mark.parametrize(
    ("options", "message"),
    [
        ({"by": "rnak"}, "`--by` must be one of: rank, "),
        ({"by": "learning_rate"}, "at most 12 values, but learning_rate has 13 here, such as 0.0."),
        ({"by": "rank", "against": "5"}, "`--against` must be one of: 4, but got '5'."),
    ],
)
def test_what_cannot_be_compared_by_is_refused(options, message):
    searched("s", [tried(0.5, rank=4, learning_rate=number / 10) for number in range(13)])
    with pytest.raises(UsageError) as refused:
        compare("s", **options)
    assert message in refused.value.message


def test_what_limits_a_comparison_is_said():
    searched("a", [tried(0.5)], finished=False)
    searched("b", [tried(0.5)], max_steps=40)
    searched("c", [], plan=SearchPlan(checkpoint="best"))
    with searched("d", [tried(0.5)]).lock():
        comparison = compare("a", "b", "c", "d", by="study")
    assert comparison.studies == {"a": "interrupted", "b": "finished", "c": "finished", "d": "running"}
    assert [note.split(":")[0] for note in comparison.notes] == [
        *("a is interrupted", "d is running", "c has no trial that ended", "1 trial of each group is few"),
        *("trials of these studies train for 20 or 40 steps", "search.checkpoint differs", "2 differences are tested"),
    ]


METHODS = CategoricalDistribution(["lora-xs", "lora"])
SCALE, RATE = FloatDistribution(0, 1), FloatDistribution(1e-4, 1e-2, log=True)
OTHER_RATE = FloatDistribution(1e-5, 1e-3)


def drawn(score, params, state=TrialState.COMPLETE):
    """A trial whose params were drawn from these distributions."""
    of = {"method": METHODS, "scale": SCALE, "learning_rate": RATE}
    distributions = {name: json.loads(distribution_to_json(of.get(name, OTHER_RATE))) for name in params}
    return Tried(params, score, state=state, proposal=Proposal(params, distributions))


def test_what_decides_weighs_most():
    draws = [(n / 20, {"scale": n / 20, "learning_rate": 1e-3 + (n * 7 % 20) * 1e-4}) for n in range(20)]
    found = Importances.of(searched("s", [drawn(*draw) for draw in draws]))
    assert list(found.values) == ["scale", "learning_rate"]
    assert found.values["scale"] > 0.6
    assert sum(found.values.values()) == pytest.approx(1.0)
    assert (found.num_trials, found.quantile, found.why) == (20, 0.25, "")


def test_a_parameter_of_some_trials_and_one_with_two_ranges_keep_their_names():
    trials = []
    for number in range(0, 24, 2):
        params = {"method": "lora-xs", "learning_rate": 1e-3, "scale": number / 24}
        trials += [drawn(number / 24, params), drawn(0.1, {"method": "lora", "learning_rate[1]": 1e-4})]
    found = Importances.of(searched("s", trials))
    assert set(found.values) == {"method", "scale", "learning_rate"}
    assert next(iter(found.values)) == "scale", "among the trials that have one"


def test_only_complete_trials_count_and_too_few_are_none():
    few = [drawn(0.5, {"scale": 0.5})] * (MIN_TRIALS - 1)
    found = Importances.of(searched("s", [*few, drawn(0.5, {"scale": 0.1}, TrialState.PRUNED)]))
    assert (found.values, found.num_trials, found.why) == ({}, 9, "they need 10 complete trials")
