"""What a byte buys: the best of each method in 8, 16 and 32 KiB of learnt numbers, all rounded to eight bits alike.

    python tests/benchmarks/bench_equal_bytes.py --data FOLDER --tasks sst2 mrpc --json FILE

FOLDER and tasks are those of `bench_choices.py`. Methods are LoRA-XS, LoRA, VeRA and only the head. The plan for each
task, fixed before any row of a test split is scored:

1. *Rate.* Four rates a method, seed 0, at the first of its sets of layers that fits a budget, in 16 KiB at most.
2. *Form.* At that rate, seed 0: each of its sets of layers, at the largest rank that a budget allows.
3. *Score.* The form with the best score on validation rows among those that a budget allows, three seeds.

`--base mpnet` is all-mpnet-base-v2, which needs the packages that `loraxs-search spaces bases` names. `--budgets` are
other numbers of KiB, each of them planned by itself but for the rate.

A trial has `--steps` of batch 16 and heads that start at a probe. Every trial is scored on validation rows after two
thirds and all of its steps, which shows whether the curve is flat, and on test rows at its end; nothing is chosen by
test rows. A learnt number is a byte; each tensor of an adapter and each row of a head has a scale of four, and biases
have four. What a seed or the base's weights give back is not counted. `--json` keeps what was measured: a second run
continues it. `--figure` draws scores over bytes, with 95 % intervals of the seeds.
"""

from __future__ import annotations

import json
from collections.abc import Callable, Mapping, Sequence
from itertools import product
from pathlib import Path
from typing import Any

import numpy as np
import script
from bench_choices import MANY_LABELS, MINILM, TASKS, Scores, make_space, measure, packs

from loraxs_search.base_model.layers import linear_modules
from loraxs_search.base_model.locate import KNOWN_PACKAGES, locate
from loraxs_search.methods._base import Method
from loraxs_search.records.codec import Split
from loraxs_search.records.task import LinearModule
from loraxs_search.search_space.parameters import resolve_modules
from loraxs_search.search_space.space import Space
from loraxs_search.tasks.kinds import kind_of

MPNET = "sentence-transformers/all-mpnet-base-v2"
FIRST, SEEDS, ROWS = 16 * 1024, 3, 1000
RATES: Mapping[str, tuple[float, ...]] = {
    "lora-xs": (2.0e-3, 4.0e-3, 8.0e-3, 1.6e-2),
    "lora": (1.25e-3, 2.5e-3, 5.0e-3, 1.0e-2),
    "vera": (4.0e-3, 8.0e-3, 1.6e-2, 3.2e-2),
    "head-only": (1.25e-3, 2.5e-3, 5.0e-3, 1.0e-2),
}
LAYERS: Mapping[str, tuple[str, ...]] = {
    "lora-xs": ("all-linear", "attention", "all-linear@last-3", "query,value", "value"),
    "lora": ("query,value", "value", "attention", "all-linear@last-1", "all-linear@last-2", "all-linear@last-4"),
    "vera": ("query,value", "value", "attention", "all-linear"),
}
RANK = {"lora-xs": "rank", "lora": "rank", "vera": "r"}
# Where less than 5 KiB is left beside the head, which LoRA of rank 1 in all value layers takes; on MiniLM.
FEWER_LAYERS: Mapping[str, tuple[str, ...]] = {"lora": ("value@last-4", "value@last-2", "value@last-1")}
# Of twice the width and depth, LoRA of rank 1 in all value layers is 18 KB.
MPNET_LAYERS: Mapping[str, tuple[str, ...]] = {
    "lora-xs": ("all-linear", "attention", "all-linear@last-3", "q,v", "v"),
    "lora": ("v@last-4", "v@last-8", "v", "attention@last-2", "all-linear@last-1", "all-linear@last-2"),
    "vera": ("q,v", "v", "attention", "all-linear"),
}
# Section of a space, and the sets of layers of each method.
BASES: Mapping[str, tuple[str, Mapping[str, tuple[str, ...]]]] = {
    "minilm": (MINILM, LAYERS),
    "mpnet": (f"base_model: {{id: {MPNET}, package: {KNOWN_PACKAGES[MPNET].name}}}\n", MPNET_LAYERS),
}
MOST = {"lora-xs": 384, "lora": 384, "vera": 256}  # VeRA's authors use 256 for the largest models
INK = "#6b7684"
DRAWN = {
    "lora-xs": ("LoRA-XS", "#3b82d6"),
    "lora": ("LoRA", "#cf5a44"),
    "vera": ("VeRA", "#d6a03b"),
    "head-only": ("only the head", "#98a1ab"),
}
TENSORS = {"lora-xs": 1, "lora": 2, "vera": 2}  # of a layer

Curve = dict[int, list[float]]  # scores of each seed, by the bytes that are learnt


class Plan:
    """The trials of a task.

    Args:
        budgets: In KiB.
        quick: Whether a few steps will do, which shows that it runs.
    """

    def __init__(self, task: str, data: Path, base: str, steps: int, budgets: Sequence[int], *, quick: bool) -> None:
        self.task, self.data, self.base = task, data, base
        self.steps, self.seeds, self.rows = (6, 2, 50) if quick else (steps, SEEDS, ROWS)
        self.budgets = [1024 * budget for budget in budgets]
        self.num_rates = 1 if quick else len(RATES["lora"])
        self.known: dict[str, Scores] = {}
        self._spaces: dict[str, Space] = {}

    def space(self, arm: str) -> Space:
        if arm not in self._spaces:
            self._spaces[arm] = make_space(self.task, self.data, arm, self.steps, self.rows, BASES[self.base][0])
        return self._spaces[arm]

    def forms(self, method: str) -> dict[tuple[str, int], int]:
        """Return the learnt bytes of each form, which is layers and rank, that is the largest in some budget."""
        every = BASES[self.base][1].get(method, ())
        space = self.space(arm(method, next(iter(every), ""), 1, RATES[method][0]))
        model = kind_of(space.task).model
        modules = linear_modules(locate(space.base_model), model)
        head = (model.num_outputs or 0) * (modules[0].in_features + 4 + 4)
        found = {} if method in LAYERS else {("", 0): head}
        fewer = product(self.budgets, FEWER_LAYERS.get(method, ()))  # last: no rate is chosen with these
        for budget, layers in (*product(self.budgets, every), *fewer):
            if layers not in every and (self.base != "minilm" or budget - head > 5 * 1024):
                continue
            names = set(resolve_modules(layers.replace(",", "+"), modules))
            own, trained = [module for module in modules if module.name in names], space.method(method)

            def size(rank: int, own: Sequence[LinearModule] = own, trained: Method = trained) -> int:
                numbers = trained.size(trained.with_defaults({RANK[method]: rank}), own, {}, {}).r_parameters
                return head + numbers + 4 * TENSORS[method] * len(own)

            low, high = 0, MOST[method]
            while low < high:  # the largest rank that fits
                middle = (low + high + 1) // 2
                low, high = (middle, high) if size(middle) <= budget else (low, middle - 1)
            if low:
                found[layers, low] = size(low)
        return found

    def train(self, arms: list[str], seeds: int, keep: Callable[[dict[str, Scores]], None]) -> None:
        """Train what is missing of these arms."""
        at: dict[int, list[Split]] = {2 * self.steps // 3: ["validation"], self.steps: ["validation", "test"]}
        measured = {it: len(self.known.get(self.key(it), {}).get(str(2 * self.steps // 3), ())) for it in arms}
        for together, missing in packs({it: self.space(it) for it in arms}, measured, seeds):
            for it, found in measure(together, missing, at, ["int8"]).items():
                before = self.known.get(self.key(it), {})
                self.known[self.key(it)] = {step: before.get(step, []) + own for step, own in found.items()}
            keep(self.known)

    def key(self, it: str) -> str:
        return f"{self.task} {it} {self.steps}" + f" {self.base}" * (self.base != "minilm")

    def scores(self, it: str, split: str) -> list[float]:
        """Return an arm's scores at the end, or on validation rows after two thirds of the steps."""
        return self.known[self.key(it)][f"{self.steps}, {split}" if split else str(2 * self.steps // 3)]

    def best(self, arms: list[str]) -> str:
        sign = 1 if self.space(arms[0]).task.direction == "maximize" else -1
        return max(arms, key=lambda it: sign * self.scores(it, "validation")[0])


def arm(method: str, layers: str, rank: int, rate: float) -> str:
    if method not in LAYERS:
        return f"method={method}+parameters.head_learning_rate={rate:g}"
    place = f"parameters.target_modules=[{layers}]+parameters.{RANK[method]}={rank}"
    return f"method={method}+{place}+parameters.learning_rate={rate:g}"


def main() -> None:
    parser = script.parser(__doc__)
    parser.add_argument("--data", type=Path, required=True)
    parser.add_argument("--tasks", nargs="+", default=list(TASKS), choices=[*TASKS, *MANY_LABELS])
    parser.add_argument("--methods", nargs="+", default=list(RATES), choices=list(RATES))
    parser.add_argument("--base", default="minilm", choices=list(BASES))
    parser.add_argument("--steps", type=int, default=480)
    parser.add_argument("--budgets", type=int, nargs="+", default=[8, 16, 32], help="KiB")
    parser.add_argument("--figure", type=Path, help="an .svg file to draw")
    parser.add_argument("--quick", action="store_true")
    arguments, panels = parser.parse_args(), dict[str, dict[str, Curve]]()
    for task in arguments.tasks:
        given = arguments.base, arguments.steps, arguments.budgets
        plan = Plan(task, arguments.data.resolve(), *given, quick=arguments.quick)
        if arguments.json and arguments.json.exists():
            plan.known = json.loads(arguments.json.read_text())
        forms = {method: plan.forms(method) for method in arguments.methods}
        chosen: dict[tuple[str, int], str] = {}
        for method, own in forms.items():
            first = max(own, key=lambda form: (form[0] == next(iter(own))[0], own[form] <= FIRST, own[form]))
            rates = {arm(method, *first, rate): rate for rate in RATES[method][: plan.num_rates]}
            plan.train(list(rates), 1, lambda known: script.keep_numbers(arguments, known))
            rate = rates[plan.best(list(rates))]
            arms = {arm(method, *form, rate): size for form, size in own.items()}
            plan.train(list(arms), 1, lambda known: script.keep_numbers(arguments, known))
            for budget in plan.budgets:
                if fitting := [it for it, size in arms.items() if size <= budget]:
                    chosen[method, budget] = plan.best(fitting)
            every = list(dict.fromkeys(it for (name, _), it in chosen.items() if name == method))
            plan.train(every, plan.seeds, lambda known: script.keep_numbers(arguments, known))
            for budget in plan.budgets:
                if it := chosen.get((method, budget)):
                    show(plan, budget, it, arms[it], chosen.get(("lora-xs", budget), it))
                    curve = panels.setdefault(f"{task}, {plan.space(it).task.metric}", {}).setdefault(method, {})
                    curve[arms[it]] = plan.scores(it, "test")[: plan.seeds]
    if arguments.figure:
        draw(arguments.figure, panels)


def draw(file: Path, panels: Mapping[str, Mapping[str, Curve]]) -> None:
    """Draw a panel for each task."""
    import matplotlib
    from matplotlib.figure import Figure

    inked: Any = dict.fromkeys(("text.color", "axes.labelcolor", "axes.edgecolor", "xtick.color", "ytick.color"), INK)
    with matplotlib.rc_context({**inked, "svg.hashsalt": "equal bytes", "svg.fonttype": "none", "font.size": 9}):
        figure = Figure((3.4 * len(panels), 2.8), layout="constrained")
        for place, (title, curves) in enumerate(panels.items(), 1):
            axes = figure.add_subplot(1, len(panels), place)
            for method, curve in curves.items():
                sizes = np.array(sorted(curve)) / 1024
                means = [np.mean(curve[size]) for size in sorted(curve)]
                reach = [script.half_interval(curve[size]) for size in sorted(curve)]
                label, colour = DRAWN[method]
                axes.errorbar(sizes, means, reach, label=label, color=colour, marker="o", ms=4, capsize=3)
            axes.set_title(title, fontsize=9)
            axes.set_xscale("log", base=2)
            axes.set_xticks([1, 2, 4, 8, 16, 32], labels=["1", "2", "4", "8", "16", "32"])
            axes.set_xlabel("KiB of learnt numbers")
            axes.grid(alpha=0.25)
            axes.legend(frameon=False)
        figure.savefig(file, transparent=True, metadata={"Date": None})


def show(plan: Plan, budget: int, it: str, size: int, reference: str) -> None:
    """Print a method's scores in a budget, and the difference to LoRA-XS, paired by seed."""
    values, before = plan.scores(it, "test")[: plan.seeds], plan.scores(it, "")[: plan.seeds]
    after = plan.scores(it, "validation")[: plan.seeds]
    line = f"{plan.task}, {budget} bytes, {it}: {size} bytes, test {np.mean(values):.4f} ({np.std(values, ddof=1):.4f})"
    line += f", validation {np.mean(before):.4f} to {np.mean(after):.4f}"
    if it != reference:
        gains = np.subtract(values, plan.scores(reference, "test")[: plan.seeds])
        reach = script.half_interval(gains)
        line += f", to LoRA-XS {gains.mean():+.4f} ({gains.mean() - reach:+.4f} to {gains.mean() + reach:+.4f})"
    print(line, flush=True)


if __name__ == "__main__":
    main()
