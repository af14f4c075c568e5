"""Is the mean of a recipe's refits a better adapter, and does one temperature calibrate the answers?

    python tests/benchmarks/bench_averages.py --data FOLDER [--tasks sst2 cola mrpc rte movie_reviews] --json FILE

FOLDER holds `glue/TASK/{train,validation,test}.jsonl.gz`. One recipe is trained from `--seeds` seeds: LoRA-XS at one
rank in all linear layers of MiniLM, or in those of the last layers (`--last-k`), which is cheaper. Its adapters are put
into groups of three, again and again in another order, until there are `--groups` groups. A and B are shared, so the
mean of R and of the heads of a group is one adapter of the same size. `--starts` says how heads begin: `probe`, at
logistic regression on the frozen base's features; `same`, at one random draw; `own`, each at a random draw of its own.
The seed always decides the order of the rows. For each group the table has the mean of its single adapters, the one
that validation rows choose, the mean adapter, what validation rows choose among these and the mean, and the mean of the
logits, which is no adapter, for reference. Scores are of the test rows unless a column says otherwise.

A second table has the expected calibration error of the single adapters in 15 bins, and their mean loss, on test rows,
before and after one temperature is fitted on the validation rows.

FILE keeps what is measured: a second call continues from it. Nothing is timed.
"""

from __future__ import annotations

import argparse
import json
import random
import statistics
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import bench_methods
import numpy as np
import numpy.typing as npt
import torch
from torch import Tensor

from loraxs_search.engine.planning import PassExecutor, workers_for
from loraxs_search.packing.capacity import token_budget
from loraxs_search.packing.loaded_base import LoadedBase
from loraxs_search.packing.pack import Pack
from loraxs_search.packing.slot import AdaptableLayers, Slot
from loraxs_search.records import Hyperparameters, Split, TrialSpec
from loraxs_search.search_space import Space, load_space
from loraxs_search.tasks.batch import Batch
from loraxs_search.tasks.encoded import eval_batches
from loraxs_search.tasks.kinds import ForwardRequest, PassOutputs
from loraxs_search.tasks.read import fixed_subset
from loraxs_search.trial import Snapshot

TASKS = ("movie_reviews", "sst2", "cola", "mrpc", "rte")
STARTS = ("probe", "same", "own")
PROBE_ROWS = 2000
GROUP = 3
SCORED: tuple[Split, ...] = ("validation", "test")
NUM_BINS = 15
Logits = npt.NDArray[np.float64]
Labels = npt.NDArray[Any]


def space_of(task: str, data: Path) -> Space:
    """Return a space of a task; of it only the task and the base are used."""
    if task == "movie_reviews":
        return load_space(task)
    budget = bench_methods.Budget(trials=1, steps=4, seeds=0, rows=None, seconds=60)
    return bench_methods.glue_space(task, data, "averages", "lora-xs", bench_methods.LORA_XS, budget)


class Bench:
    """Trains the groups of one task in one pack."""

    def __init__(self, space: Space, arguments: argparse.Namespace) -> None:
        self._arguments = arguments
        self.loaded = loaded = LoadedBase(space.base_model, space.task.for_candidates)
        budget = token_budget(loaded.modules, loaded.dtype, loaded.device)
        executor = PassExecutor(*workers_for(loaded.device))
        self._pack = Pack(loaded.model, loaded.factors, loaded.modules, max_tokens=budget, executor=executor)
        self._data = loaded.prepared(space.task.for_candidates)
        adaptable = AdaptableLayers(loaded.model, loaded.modules)
        first = len(adaptable.layers or ()) - arguments.last_k if arguments.last_k else 0
        self._modules = tuple(name for name in adaptable.sizes if adaptable.lowest([name]) >= first)

    def measure(self, start: str) -> dict[str, Any]:
        """Return scores and logits' calibration of every group of this start."""
        arguments = self._arguments
        slots = [self._slot(seed) for seed in range(arguments.seeds)]
        self._begin(slots, start)
        for step in range(arguments.steps):
            if errors := self._pack.step(slots):
                raise SystemExit(f"trials diverged: {errors}")
            if step % 40 == 39:
                print(f"  {self._data.task.name}, {start}: step {step + 1}", flush=True)
        groups = groups_of(slots, arguments.groups)
        means = [self._mean(number, group) for number, group in enumerate(groups)]
        logits = {split: self._logits([*slots, *means], split) for split in SCORED}
        return {
            "metric": self._data.task.metric,
            "groups": [
                self._group(logits, [slot.name for slot in group], mean.name)
                for group, mean in zip(groups, means, strict=True)
            ],
            "calibration": [
                self._calibrated({split: own[slot.name] for split, own in logits.items()}) for slot in slots
            ],
        }

    # ---- inside ------------------------------------------------------------------------------------------------------
    def _slot(self, seed: int) -> Slot:
        arguments = self._arguments
        hyper = Hyperparameters(
            target_modules=self._modules,
            rank=arguments.rank,
            factor_rank=arguments.rank,
            learning_rate=arguments.rate,
            head_learning_rate=arguments.head_rate,
            max_steps=arguments.steps,
            seed=seed,
        )
        return self._pack.join(TrialSpec(str(seed), {}, hyper), self._data)

    @torch.no_grad()
    def _begin(self, slots: Sequence[Slot], start: str) -> None:
        if start == "own":
            return
        first = self._probe() if start == "probe" else {k: value.clone() for k, value in slots[0].head.items()}
        for slot in slots:
            for name, value in slot.head.items():
                value.copy_(first[name])

    def _mean(self, number: int, group: Sequence[Slot]) -> Slot:
        states = [slot.snapshot() for slot in group]
        names = states[0].parameters
        mean = {name: torch.stack([state.parameters[name] for state in states]).mean(0) for name in names}
        name = f"mean{number}"
        state = Snapshot(name, 0, mean, {}, (), 0.0, 0)
        return self._pack.join(TrialSpec(name, {}, group[0].spec.hyperparameters), self._data, state)

    def _probe(self) -> Mapping[str, Tensor]:
        """Return a head that is logistic regression on what the output layer of the untouched base's head reads."""
        from sklearn.linear_model import LogisticRegression
        from sklearn.model_selection import GridSearchCV
        from sklearn.preprocessing import StandardScaler

        rows = fixed_subset(self._data.num_rows("train"), PROBE_ROWS)
        scaler, strengths = StandardScaler(), {"C": np.logspace(-4, 1, 6)}
        search = GridSearchCV(LogisticRegression(max_iter=2000), strengths, scoring="neg_log_loss", cv=4)
        search.fit(scaler.fit_transform(self._features(rows)), self._data.labels("train")[rows])
        model = search.best_estimator_
        weight, bias = np.asarray(model.coef_), np.asarray(model.intercept_)
        if len(weight) == 1:  # of two labels: the distance of their logits
            weight, bias = np.concatenate([-weight, weight]) / 2, np.concatenate([-bias, bias]) / 2
        weight = weight / scaler.scale_
        bias = bias - weight @ scaler.mean_
        return {"classifier.weight": torch.tensor(weight), "classifier.bias": torch.tensor(bias)}

    @torch.inference_mode()
    def _features(self, rows: npt.NDArray[np.int64]) -> npt.NDArray[np.float32]:
        self._pack.clear()
        model, found = self.loaded.model, list[Tensor]()
        hook = model.get_submodule("classifier").register_forward_pre_hook(lambda _, args: found.append(args[0]))
        batches = eval_batches(self._data.lengths("train")[rows], 3072)
        for batch in batches:
            model(**self._data.collate("train", rows[batch]).to(self.loaded.device).inputs)
        hook.remove()
        order = np.argsort(np.concatenate(batches))
        return torch.cat(found).float().cpu().numpy()[order]

    def _logits(self, slots: Sequence[Slot], split: Split) -> dict[str, Logits]:
        rows, found, size = self._scored(split), dict[str, Logits](), self._arguments.seeds
        for some in (slots[i : i + size] for i in range(0, len(slots), size)):
            answers = self._pack.answer(some, {slot.name: ForwardRequest(split, rows, _outputs) for slot in some})
            found |= {name: outputs.double().numpy() for name, (outputs,) in answers.items()}
        return found

    def _scored(self, split: Split) -> npt.NDArray[np.int64]:
        return fixed_subset(self._data.num_rows(split), self._arguments.rows)

    def _labels(self, split: Split) -> npt.NDArray[Any]:
        labels: npt.NDArray[Any] = self._data.labels(split)[self._scored(split)]
        return labels

    def _score(self, logits: Logits, split: Split) -> float:
        measured = self._data.kind.measure(logits.argmax(-1), self._labels(split))
        return measured[self._data.task.metric]

    def _group(self, logits: Mapping[Split, Mapping[str, Logits]], singles: Sequence[str], mean: str) -> dict[str, Any]:
        def of(make: Any) -> dict[str, Any]:
            return {split: make(split) for split in logits}

        together = {split: np.mean([own[name] for name in singles], axis=0) for split, own in logits.items()}
        return {
            "singles": of(lambda split: [self._score(logits[split][name], split) for name in singles]),
            "mean": of(lambda split: self._score(logits[split][mean], split)),
            "mean_loss": of(lambda split: float(row_losses(logits[split][mean], self._labels(split)).mean())),
            "logits": of(lambda split: self._score(together[split], split)),
        }

    def _calibrated(self, logits: Mapping[Split, Logits]) -> dict[str, float]:
        labels = {split: self._labels(split) for split in logits}
        temperature = fitted_temperature(logits["validation"], labels["validation"])
        found = {"temperature": temperature}
        for split in logits:
            for when, scale in (("before", 1.0), ("after", temperature)):
                found[f"{split}_ece_{when}"] = calibration_error(logits[split] / scale, labels[split])
                found[f"{split}_loss_{when}"] = float(row_losses(logits[split] / scale, labels[split]).mean())
        return found


def groups_of(slots: Sequence[Slot], count: int) -> list[list[Slot]]:
    """Return groups of three: all slots once, then all in another order, and so on."""
    order, groups = list(slots), list[list[Slot]]()
    for seed in range(count):
        groups += [order[i : i + GROUP] for i in range(0, len(order) - GROUP + 1, GROUP)]
        random.Random(seed).shuffle(order)
    return groups[:count]


@dataclass(frozen=True)
class _Outputs:
    """Reduces rows to their logits; equal for all trials."""

    def __call__(self, outputs: PassOutputs, _: Batch) -> tuple[Tensor, ...]:
        return (outputs.read,)


_outputs = _Outputs()


# ---- calibration -----------------------------------------------------------------------------------------------------
def log_softmax(logits: Logits) -> Logits:
    """Return the logarithms of the probabilities."""
    shifted = logits - logits.max(-1, keepdims=True)
    result: Logits = shifted - np.log(np.exp(shifted).sum(-1, keepdims=True))
    return result


def row_losses(logits: Logits, labels: Labels) -> Logits:
    """Return the cross-entropy of each row, (N,)."""
    losses: Logits = -log_softmax(logits)[np.arange(len(labels)), labels]
    return losses


def calibration_error(logits: Logits, labels: Labels) -> float:
    """Return the expected calibration error of the likeliest label.

    In each bin of probabilities, their mean is compared with the share of right answers. The result is the mean of
    these distances, weighted by rows.
    """
    probabilities = np.exp(log_softmax(logits))
    sure, right = probabilities.max(-1), probabilities.argmax(-1) == labels
    bins = np.minimum((sure * NUM_BINS).astype(np.int64), NUM_BINS - 1)
    distances = np.bincount(bins, weights=right - sure, minlength=NUM_BINS)
    return float(np.abs(distances).sum() / len(labels))


def fitted_temperature(logits: Logits, labels: Labels) -> float:
    """Return the temperature at which the labels are likeliest, with Platt's targets: no label is certain."""
    from scipy.optimize import minimize_scalar

    num_rows, num_labels = logits.shape
    targets = np.full(logits.shape, 1 / (num_rows + num_labels))
    targets[np.arange(num_rows), labels] = (num_rows + 1) / (num_rows + num_labels)

    def loss(log_temperature: float) -> float:
        return -float((targets * log_softmax(logits / np.exp(log_temperature))).sum())

    return float(np.exp(minimize_scalar(loss, bounds=(-3.0, 3.0), method="bounded").x))


# ---- tables ----------------------------------------------------------------------------------------------------------
def averages(results: Mapping[str, Any]) -> Iterator[str]:
    """Yield the table of averages, one line for each task and start."""
    yield (
        "| task, start | one seed: validation, test | chosen of the seeds | mean adapter: validation, test "
        "| chosen with the mean | gain | mean of logits |"
    )
    yield "|---|--:|--:|--:|--:|--:|--:|"
    for key, found in results.items():
        rows = [row_of(group) for group in found["groups"]]
        mean = [statistics.mean(column) for column in zip(*rows, strict=True)]
        gains = [row[5] - row[2] for row in rows]
        error = statistics.stdev(gains) / len(gains) ** 0.5 if len(gains) > 1 else 0.0
        v1, t1, chosen, vm, tm, with_mean, logits = mean
        yield (
            f"| {key}, {found['metric']} | {v1:.3f}, {t1:.3f} | {chosen:.3f} | {vm:.3f}, {tm:.3f} | {with_mean:.3f} "
            f"| {statistics.mean(gains):+.4f} ({error:.4f}) | {logits:.3f} |"
        )


def row_of(group: Mapping[str, Any]) -> tuple[float, ...]:
    """Return a group's numbers: singles, their best by validation, mean adapter, chosen with it, mean logits."""
    validation, test = group["singles"]["validation"], group["singles"]["test"]
    best = int(np.argmax(validation))
    better = group["mean"]["validation"] > validation[best]
    return (
        statistics.mean(validation),
        statistics.mean(test),
        test[best],
        group["mean"]["validation"],
        group["mean"]["test"],
        group["mean"]["test"] if better else test[best],
        group["logits"]["test"],
    )


def calibrations(results: Mapping[str, Any]) -> Iterator[str]:
    """Yield the table of calibration, one line for each task and start."""
    yield "| task, start | temperature | ECE on test rows: before, after | adapters with less | loss: before, after |"
    yield "|---|--:|--:|--:|--:|"
    for key, found in results.items():
        rows = found["calibration"]
        mean = {name: statistics.mean(row[name] for row in rows) for name in rows[0]}
        better = sum(row["test_ece_after"] < row["test_ece_before"] for row in rows)
        yield (
            f"| {key} | {mean['temperature']:.2f} | {mean['test_ece_before']:.3f}, {mean['test_ece_after']:.3f} "
            f"| {better} of {len(rows)} | {mean['test_loss_before']:.3f}, {mean['test_loss_after']:.3f} |"
        )


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--data", type=Path, required=True)
    parser.add_argument("--tasks", nargs="+", default=TASKS, choices=TASKS)
    parser.add_argument("--starts", nargs="+", default=STARTS, choices=STARTS)
    parser.add_argument("--groups", type=int, default=4)
    parser.add_argument("--seeds", type=int, default=6)
    parser.add_argument("--rows", type=int, default=1000, help="of a split that are scored, at most")
    parser.add_argument("--steps", type=int, default=160)
    parser.add_argument("--rank", type=int, default=16)
    parser.add_argument("--last-k", type=int, default=0, help="adapt the last K layers only; 0 adapts all")
    parser.add_argument("--rate", type=float, default=8e-3)
    parser.add_argument("--head-rate", type=float, default=4e-3)
    parser.add_argument("--json", type=Path, required=True)
    arguments = parser.parse_args()
    results: dict[str, Any] = json.loads(arguments.json.read_text()) if arguments.json.exists() else {}
    for start in arguments.starts:
        for task in arguments.tasks:
            key = f"{task}, {start}"
            if key not in results:
                results[key] = Bench(space_of(task, arguments.data.resolve()), arguments).measure(start)
                arguments.json.write_text(json.dumps(results, indent=1))
    for table in (averages, calibrations):
        print("\n".join(table(results)))


if __name__ == "__main__":
    main()
