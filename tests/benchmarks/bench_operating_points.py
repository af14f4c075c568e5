"""Do operating points keep what they promise, and how many rows do they answer?

    python tests/benchmarks/bench_operating_points.py --data FOLDER [--tasks sst2 cola] [--json FILE]

FOLDER is that of `bench_choices.py`, whose tasks and recipe these are. One adapter of each task answers all validation
and test rows. Then, again and again (`--resamples`), all these rows are divided anew into as many validation and test
rows: validation rows choose thresholds, test rows say what they keep. Printed of each point: the mean accuracy kept on
test rows, the mean share of them that is answered, and in how many resamples the test rows' accuracy is at least the
promise, or no threshold promises it. Test rows are a sample, too, so that their luck counts against the promise. The
last columns are those of the lowest threshold whose accuracy on validation rows reaches the point, without a bound.
`--steps` trains longer. `--quick` shows that it runs.
"""

from __future__ import annotations

from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np
import script
from bench_choices import TASKS, make_space
from optuna.trial import FixedTrial

from loraxs_search.assets import keep
from loraxs_search.operating_points import Answered, calibration_error, measure
from loraxs_search.packing.host import TrialHost
from loraxs_search.records.codec import Split
from loraxs_search.records.trial import TrialSpec
from loraxs_search.tasks.kinds import kind_of

POINTS = (0.9, 0.95, 0.99)
SPLITS: tuple[Split, Split] = ("validation", "test")


def answers(task: str, data: Path, steps: int) -> tuple[Answered, Answered]:
    """Train an adapter, and return its answers to all validation and all test rows."""
    space = make_space(task, data, "search.precision=float32", steps, 1000)
    host = TrialHost(space.base_model, space.task)
    try:
        info, params = host.info(), space.suggest(FixedTrial({}))
        hyper = space.hyperparameters(params, info.modules, 0)
        if content := host.linear_probe(space.task).content:
            hyper = replace(hyper, linear_probe=keep(content))
        spec = TrialSpec(task, params, hyper)
        _, state = host.advance(spec, steps, None)
        found = list[Answered]()
        for split in SPLITS:
            said = host.answer(spec, state, range(info.data.num_rows[split]), space.task, split)
            assert said.confidences is not None, kind_of(space.task).name
            found.append((np.array(said.confidences), np.equal(said.predictions, said.labels)))
        return found[0], found[1]
    finally:
        host.close()


def without_bound(point: float, validation: Answered, test: Answered) -> tuple[float | None, float]:
    """Return accuracy and coverage on test rows of the lowest threshold that is accurate on validation rows."""
    order = np.argsort(-validation[0], kind="stable")
    accuracy = np.cumsum(validation[1][order]) / np.arange(1, len(order) + 1)
    if not (fits := np.flatnonzero(accuracy >= point)).size:
        return None, 0.0
    kept = test[1][test[0] >= validation[0][order[fits[-1]]]]
    return (float(kept.mean()) if len(kept) else None), len(kept) / len(test[0])


def resampled(validation: Answered, test: Answered, resamples: int) -> list[dict[str, Any]]:
    """Return of each point what resamples keep, answer and promise rightly, with a bound and without."""
    confidences, right = (np.concatenate(both) for both in zip(validation, test, strict=True))
    random, count = np.random.default_rng(0), len(validation[0])
    kept: dict[tuple[float, bool], list[tuple[float | None, float]]] = {}
    for _ in range(resamples):
        order = random.permutation(len(right))
        chosen_on, measured_on = ((confidences[own], right[own]) for own in (order[:count], order[count:]))
        for found in measure(POINTS, chosen_on, measured_on):
            kept.setdefault((found.point, True), []).append((found.test_accuracy, found.coverage or 0.0))
            plain = without_bound(found.point, chosen_on, measured_on)
            kept.setdefault((found.point, False), []).append(plain)
    rows = []
    for point in POINTS:
        row: dict[str, Any] = {"point": point}
        for name, is_bounded in (("", True), ("without bound, ", False)):
            accuracies = [accuracy for accuracy, _ in kept[point, is_bounded] if accuracy is not None]
            holds = [accuracy is None or accuracy >= point for accuracy, _ in kept[point, is_bounded]]
            row[f"{name}kept"] = float(np.mean(accuracies)) if accuracies else None
            row[f"{name}coverage"] = float(np.mean([coverage for _, coverage in kept[point, is_bounded]]))
            row[f"{name}holds"] = float(np.mean(holds))
        rows.append(row)
    return rows


def main() -> None:
    parser = script.parser(__doc__)
    parser.add_argument("--data", type=Path, required=True)
    tasks = [name for name, (use, _) in TASKS.items() if use != "stsb"]
    parser.add_argument("--tasks", nargs="+", default=tasks, choices=tasks)
    parser.add_argument("--steps", type=int, default=160)
    parser.add_argument("--resamples", type=int, default=200)
    parser.add_argument("--quick", action="store_true")
    arguments = parser.parse_args()
    if arguments.quick:
        arguments.steps, arguments.resamples = 8, 5
    found: dict[str, Any] = {}
    for task in arguments.tasks:
        validation, test = answers(task, arguments.data.resolve(), arguments.steps)
        found[task] = {"rows": [len(validation[0]), len(test[0])], "accuracy": float(test[1].mean())}
        found[task] |= {"calibration_error": calibration_error(test)}
        found[task]["points"] = resampled(validation, test, arguments.resamples)
        accuracy, error = found[task]["accuracy"], found[task]["calibration_error"]
        sizes = f"{len(validation[0]):,} validation and {len(test[0]):,} test rows"
        print(f"{task}, {sizes}: accuracy {accuracy:.3f}, calibration error {error:.3f}")
        for row in found[task]["points"]:
            print("  " + ", ".join(f"{n} {'-' if x is None else format(x, '.3f')}" for n, x in row.items()), flush=True)
        script.keep_numbers(arguments, found)


if __name__ == "__main__":
    main()
