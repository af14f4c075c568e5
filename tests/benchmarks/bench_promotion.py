"""Is the announced score right, and how often does luck become champion? Simulated with the project's own rule.

    python tests/benchmarks/bench_promotion.py [--searches 4000] [--chains 1000] [--seed 0] [--json FILE]
    python tests/benchmarks/bench_promotion.py --quick

All adapters of a simulated search are equally good: 80 % of all rows right, and two of them agree on 83 % (a row has a
difficulty of its own). There are 1,000 validation and 1,000 test rows. So a finalist's test score should be 80 % in the
mean, and replacing a champion is an error. Rule *test rows choose*: the best trials are scored on the test rows, the
best there is announced and held against the champion on the same rows. Rule *validation rows choose*: the best trials
and two refits of each are scored on validation rows; the best there is scored on the test rows, alone.

- bias: announced score of the finalist above the truth, in points, over all finalists;
- new champion's bias: the same over those that were promoted, which luck has helped to be;
- error: how often an equally good finalist replaces the champion.

A chain is 20 searches one after another on the same rows, from no champion. Its drift is the last champion's announced
score above the truth.

On few test rows two equally good adapters meet once: how often is the difference significant, and is one promoted?
"""

from __future__ import annotations

import statistics
import time
from collections.abc import Callable, Sequence
from dataclasses import dataclass, replace
from typing import Any

import numpy as np
import script

from loraxs_search.records.search import Candidate, Decision, PromotionRule
from loraxs_search.records.task import DataSource, Task
from loraxs_search.registry.evidence import ScoredRows, p_value
from loraxs_search.registry.finalist import choose
from loraxs_search.registry.promotion import PromotionTest, Scored
from loraxs_search.tasks.metrics import METRICS

TRUTH, AGREEMENT, ROWS = 0.80, 0.83, 1000
SEEDS, CHAIN = 2, 20
TASK = Task(
    *("simulated", "sequence-classification", DataSource(), "text", "label", "accuracy"),
    direction="maximize",
    metrics=("accuracy",),
    labels=("a", "b"),
)


@dataclass
class World:
    """Rows, each with its chance of being answered rightly by any adapter."""

    random: np.random.Generator
    num_rows: int = ROWS

    def __post_init__(self) -> None:
        # Beta(a, b) of mean TRUTH: two answers agree with probability 1 - 2 E[p] + 2 E[p^2].
        variance = (AGREEMENT - 1) / 2 + TRUTH - TRUTH**2
        total = TRUTH * (1 - TRUTH) / variance - 1
        self.validation, self.test = self.random.beta(TRUTH * total, (1 - TRUTH) * total, (2, self.num_rows))
        self.labels = self.random.integers(0, 2, self.num_rows)
        self.made = 0

    def adapters(self, count: int, stored_bytes: int = 1000, worse: float = 0.0) -> list[Scored]:
        """Return equally good adapters, answers to both splits drawn; `worse` takes that much from their truth."""
        keeps = 1 - worse / TRUTH
        right = self.random.random((count, self.num_rows)) < self.test * keeps
        validation = (self.random.random((count, self.num_rows)) < self.validation * keeps).mean(1)
        made = []
        for own, score_there in zip(right, validation.tolist(), strict=True):
            self.made += 1
            name, scores = f"{self.made:05d}", ({"accuracy": float(own.mean())}, {"accuracy": score_there})
            rows = ScoredRows(np.where(own, self.labels, 1 - self.labels), self.labels)
            made.append(Scored(Candidate(name, name, TASK.name, *scores, stored_bytes, "data", "base"), rows))
        return made


def score(adapter: Scored) -> float:
    """Return the announced score."""
    return adapter.candidate.test_metrics["accuracy"]


# ---- the two rules ---------------------------------------------------------------------------------------------------
class ValidationRowsChoose:
    """The rule as it is."""

    def __init__(self, margin: float = 0.0) -> None:
        self.rule = PromotionRule(margin=margin, require="constant")
        self.past: list[Decision] = []
        self.versions: dict[int, Scored] = {}
        self.champion: Scored | None = None
        self._version = 0

    def finalist(self, world: World, num_trials: int) -> Scored:
        """Return the finalist of a search of equally good trials and their refits."""
        found = world.adapters(num_trials * (1 + SEEDS))
        chosen = choose(self.rule, TASK, [adapter.candidate for adapter in found])[0]
        return next(adapter for adapter in found if adapter.candidate == chosen)

    def promoted(self, finalist: Scored, champion: Scored) -> bool:
        """Whether a finalist replaces a champion at the first look at these rows."""
        return PromotionTest(self.rule, TASK, finalist).decide(champion).promoted

    def meet(self, finalist: Scored, seen: Sequence[str] = ()) -> bool:
        """Decide between a finalist and the champion of the chain; whether the first replaces the second."""
        test = PromotionTest(self.rule, TASK, finalist)
        reference = test.reference(self.past, self.champion, self._version)
        if reference is not None:
            reference = replace(reference, rows=self.versions[reference.version].rows)
        decision = test.decide(self.champion, self.past, seen=seen, reference=reference)
        if decision.promoted:
            self._version, self.champion = self._version + 1, finalist
            self.versions[self._version] = finalist
            decision = replace(decision, version=self._version)
        self.past.append(decision)
        return decision.promoted


class TestRowsChoose(ValidationRowsChoose):
    """The rule before: the same test rows choose, announce and decide, however often."""

    __test__ = False  # it is no test case

    def finalist(self, world: World, num_trials: int) -> Scored:
        return max(world.adapters(num_trials), key=score)

    def meet(self, finalist: Scored, seen: Sequence[str] = ()) -> bool:
        if self.champion is not None and not self.promoted(finalist, self.champion):
            return False
        self.champion = finalist
        return True


Rule = Callable[..., ValidationRowsChoose]
RULES: dict[str, Rule] = {"test rows choose": TestRowsChoose, "validation rows choose": ValidationRowsChoose}


# ---- what is measured ------------------------------------------------------------------------------------------------
def one_search(rule: Rule, num_trials: int, num_searches: int, seed: int) -> dict[str, float]:
    """Return bias and error over searches on rows of their own, each against a champion as good as its trials."""
    biases, of_champions = [], []
    for number in range(num_searches):
        world, judge = World(np.random.default_rng((seed, number))), rule()
        finalist, (champion,) = judge.finalist(world, num_trials), world.adapters(1)
        biases.append(100 * (score(finalist) - TRUTH))
        if judge.promoted(finalist, champion):
            of_champions.append(biases[-1])
    return {
        "bias": statistics.fmean(biases),
        "bias_se": statistics.stdev(biases) / num_searches**0.5,
        "champions_bias": statistics.fmean(of_champions) if of_champions else 0.0,
        "error": len(of_champions) / num_searches,
    }


def chain(rule: Rule, num_trials: int, num_chains: int, seed: int) -> dict[str, float]:
    """Return drift and false promotions over chains of searches on the same rows."""
    drifts, promotions = [], []
    for number in range(num_chains):
        world, judge = World(np.random.default_rng((seed, number))), rule()
        made = [judge.meet(judge.finalist(world, num_trials)) for _ in range(CHAIN)]
        assert judge.champion is not None
        drifts.append(100 * (score(judge.champion) - TRUTH))
        promotions.append(sum(made) - 1)
    return {
        "drift": statistics.fmean(drifts),
        "drift_se": statistics.stdev(drifts) / num_chains**0.5,
        "false_promotions": statistics.fmean(promotions),
    }


def few_rows(num_pairs: int, seed: int) -> dict[str, dict[str, float]]:
    """Return how often an adapter replaces an equally good one on few test rows, and how often `p_value` is <= 0.05."""
    found: dict[str, dict[str, float]] = {}
    for metric, sign in (("accuracy", 1.0), ("macro_f1", 1.0), ("mse", -1.0)):
        rule, task = PromotionRule(metric=metric), TASK
        if metric == "mse":
            task = replace(TASK, kind="regression", labels=(), metric="mse", direction="minimize", metrics=("mse",))
        for num_rows in (1, 3, 5, 10, 20, 50):
            random, significant, promoted = np.random.default_rng((seed, num_rows)), 0, 0
            for _ in range(num_pairs):
                if metric == "mse":
                    labels = random.normal(size=num_rows)
                    answers = [labels + random.normal(size=num_rows) for _ in range(2)]
                else:
                    labels = random.integers(0, 2, num_rows).astype(np.float64)
                    answers = [np.where(random.random(num_rows) < 0.7, labels, 1 - labels) for _ in range(2)]
                pair, scored = [], []
                for name, own in zip("ab", answers, strict=True):
                    scores = {metric: float(METRICS[metric].score(own, labels))}
                    candidate = Candidate(name, name, TASK.name, scores, scores, 1000, "data", "base")
                    scored.append(ScoredRows(own, labels))
                    pair.append(Scored(candidate, scored[-1]))
                significant += (p_value(METRICS[metric], sign, *scored) or 0) <= 0.05
                promoted += PromotionTest(rule, task, pair[0]).decide(pair[1]).promoted
            found[f"{metric}, {num_rows} rows"] = {"p<=0.05": significant / num_pairs, "error": promoted / num_pairs}
    return found


def main() -> None:
    parser = script.parser(__doc__)
    parser.add_argument("--searches", type=int, default=4000)
    parser.add_argument("--chains", type=int, default=1000)
    parser.add_argument("--seed", type=int, default=0)
    parser.add_argument("--quick", action="store_true", help="200 searches and 40 chains")
    arguments = parser.parse_args()
    started = time.perf_counter()
    sizes = (200, 40) if arguments.quick else (arguments.searches, arguments.chains)
    found: dict[str, Any] = {"equal adapters, few test rows": few_rows(sizes[0] // 4, arguments.seed)}
    for name, rule in RULES.items():
        found[name] = {f"{n} candidates": one_search(rule, n, sizes[0], arguments.seed) for n in (1, 3, 8)}
        found[name]["20 searches"] = chain(rule, 3, sizes[1], arguments.seed + 1)
    for title, rows in found.items():
        print(f"\n{title}")
        for name, values in rows.items():
            print(f"  {name:<14}", "  ".join(f"{key} {value:.4g}" for key, value in values.items()))
    print(f"\n{time.perf_counter() - started:.0f} s")
    script.keep_numbers(arguments, found)


if __name__ == "__main__":
    main()
