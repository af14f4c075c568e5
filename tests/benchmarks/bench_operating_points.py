"""Do operating points keep what they promise, and how many rows do they answer?

    python tests/benchmarks/bench_operating_points.py --data FOLDER [--tasks sst2 cola] [--json FILE]

FOLDER is that of `bench_choices.py`, whose tasks and recipe these are. One adapter of each task answers all validation
and test rows. Then, again and again (`--resamples`), as many validation rows are drawn from all of these, with
replacement, and choose thresholds. What a threshold promises holds if so many of the answers to all rows above it are
right, or if there is none: all rows stand for those to come. Printed of each point: the mean accuracy kept, the mean
share of rows that is answered, and the share of resamples in which the promise holds, with the bound and without: then
the lowest threshold is chosen whose accuracy on validation rows reaches the point. *On test rows* is the same of a
division into as many validation and test rows: their accuracy varies, too, which counts against the promise.
`--answers FILE` keeps what adapters answered, and trains none that it has. `--steps` trains longer. `--quick` shows
that it runs.
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


def without_bound(point: float, validation: Answered) -> float | None:
    """Return the lowest threshold whose accuracy on validation rows reaches the point; None if there is none."""
    order = np.argsort(-validation[0], kind="stable")
    accuracy = np.cumsum(validation[1][order]) / np.arange(1, len(order) + 1)
    fits = np.flatnonzero(accuracy >= point)
    return float(validation[0][order[fits[-1]]]) if len(fits) else None


def resampled(validation: Answered, test: Answered, resamples: int) -> list[dict[str, Any]]:
    """Return of each point what resamples keep, answer and promise rightly, by how the threshold is chosen."""
    confidences, right = (np.concatenate(both) for both in zip(validation, test, strict=True))
    random, count = np.random.default_rng(0), len(validation[0])
    found: dict[tuple[float, str], list[tuple[float, float]]] = {}  # accuracy and coverage
    for _ in range(resamples):
        drawn, order = random.integers(0, len(right), count), random.permutation(len(right))
        for name, own, others in (
            ("", drawn, order),
            ("without bound, ", drawn, order),
            ("on test rows, ", order[:count], order[count:]),
        ):
            chosen_on, rows = ((confidences[some], right[some]) for some in (own, others))
            for it in measure(POINTS, chosen_on, rows):
                least = without_bound(it.point, chosen_on) if name.startswith("without") else it.threshold
                answered = rows[0] >= (np.inf if least is None else least)
                accuracy = float(rows[1][answered].mean()) if answered.any() else np.nan
                found.setdefault((it.point, name), []).append((accuracy, float(answered.mean())))
    made = []
    for point in POINTS:
        row: dict[str, Any] = {"point": point}
        for name in ("", "without bound, ", "on test rows, "):
            accuracies, coverage = np.array(found[point, name]).T
            kept = accuracies[np.isfinite(accuracies)]
            row[f"{name}kept"] = float(kept.mean()) if len(kept) else None
            row[f"{name}coverage"] = float(coverage.mean())
            row[f"{name}holds"] = float(np.mean(np.isnan(accuracies) | (accuracies >= point)))
        made.append(row)
    return made


def main() -> None:
    parser = script.parser(__doc__)
    parser.add_argument("--data", type=Path, required=True)
    tasks = [name for name, (use, _) in TASKS.items() if use != "stsb"]
    parser.add_argument("--tasks", nargs="+", default=tasks, choices=tasks)
    parser.add_argument("--steps", type=int, default=160)
    parser.add_argument("--resamples", type=int, default=200)
    parser.add_argument("--answers", type=Path, help="an .npz file")
    parser.add_argument("--quick", action="store_true")
    arguments = parser.parse_args()
    if arguments.quick:
        arguments.steps, arguments.resamples = 8, 5
    found: dict[str, Any] = {}
    known = dict(np.load(arguments.answers)) if arguments.answers and arguments.answers.exists() else {}
    for task in arguments.tasks:
        if f"{task} 0" not in known:
            own = answers(task, arguments.data.resolve(), arguments.steps)
            known |= {f"{task} {number}": values for number, values in enumerate(part for two in own for part in two)}
            if arguments.answers:
                np.savez(arguments.answers, **known)
        validation, test = ((known[f"{task} {number}"], known[f"{task} {number + 1}"]) for number in (0, 2))
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
