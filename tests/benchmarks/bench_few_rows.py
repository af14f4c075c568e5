"""Few rows of a label: only the head, LoRA-XS of small ranks and LoRA, from the same draws of rows.

    python tests/benchmarks/bench_few_rows.py --data FOLDER --tasks sst2 movie_reviews [--json FILE]

FOLDER and tasks are those of `bench_choices.py`. A draw is so many training rows of each label; another draw has other
rows and another seed. Heads start at the linear probe, whose own score is that of step 0. Nothing is chosen here: every
arm is scored on the same validation rows after a quarter, half and all of its steps. `--json` keeps what was measured:
a second run continues it.
"""

from __future__ import annotations

import json
from pathlib import Path

import numpy as np
import script
from bench_choices import MANY_LABELS, TASKS, Scores, files_of, make_space, measure, text_of

from loraxs_search.home import home, write_atomic
from loraxs_search.records.codec import Split

ARMS = {
    "head": "method=head-only+parameters.head_learning_rate=2e-3",
    "LoRA-XS r1": "parameters.rank=1+parameters.learning_rate=8e-3",
    "LoRA-XS r4": "parameters.rank=4+parameters.learning_rate=8e-3",
    "LoRA-XS r16": "parameters.rank=16+parameters.learning_rate=4e-3",
    "LoRA r8": "method=lora+parameters.rank=8+parameters.learning_rate=1e-3",
}


def draw(task: str, data: Path, per_label: int, seed: int) -> Path:
    """Write so many training rows of each label of a task, always the same ones, and return the file."""
    lines = text_of(files_of(task, data)["train"]).splitlines()
    of_label = dict[str, list[str]]()
    for place in np.random.default_rng(seed).permutation(len(lines)):
        of_label.setdefault(str(json.loads(lines[place])["label"]), []).append(lines[place])
    chosen = [line for _, own in sorted(of_label.items()) for line in own[:per_label]]
    target = home() / "benchmarks" / "few" / f"{task}-{per_label}-{seed}.jsonl"
    write_atomic(target, "".join(f"{line}\n" for line in chosen))
    return target


def main() -> None:
    parser = script.parser(__doc__)
    parser.add_argument("--data", type=Path, required=True)
    parser.add_argument("--tasks", nargs="+", default=["sst2"], choices=[*TASKS, *MANY_LABELS])
    parser.add_argument("--per-label", type=int, nargs="+", default=[8, 16, 64])
    parser.add_argument("--arms", nargs="+", default=list(ARMS), choices=list(ARMS))
    parser.add_argument("--steps", type=int, default=80)
    parser.add_argument("--draws", type=int, default=3)
    parser.add_argument("--rows", type=int, default=400, help="validation rows that are scored, at most")
    arguments = parser.parse_args()
    data = arguments.data.resolve()
    known: dict[str, Scores] = {}
    if arguments.json and arguments.json.exists():
        known = json.loads(arguments.json.read_text())
    at: dict[int, list[Split]] = {arguments.steps // part: ["validation"] for part in (1, 2, 4)}
    for task in arguments.tasks:
        for per_label in arguments.per_label:
            keys = {arm: f"{task} {per_label} {arm} {arguments.steps}" for arm in arguments.arms}
            for seed in range(arguments.draws):
                missing = [arm for arm in keys if len(next(iter(known.get(keys[arm], {"": []}).values()))) == seed]
                place = f"task.data.data_files.train={draw(task, data, per_label, seed)}"
                spaces = {
                    arm: make_space(task, data, f"{ARMS[arm]}+{place}", arguments.steps, arguments.rows)
                    for arm in missing
                }
                seeds = range(seed, seed + 1)
                found = measure(spaces, seeds, at) if spaces else {}
                if "head" in found:
                    probe = measure({"head": spaces["head"]}, seeds, {0: ["validation"]})
                    found["head"] = probe["head"] | found["head"]
                for arm, scores in found.items():
                    before = known.get(keys[arm], {})
                    known[keys[arm]] = {step: before.get(step, []) + own for step, own in scores.items()}
                script.keep_numbers(arguments, known)
            for arm, key in keys.items():
                for step in (step for step in known[key] if step.isdigit()):
                    values = known[key][step][: arguments.draws]
                    score = f"{np.mean(values):.3f} ({np.std(values, ddof=1):.3f})"
                    print(f"{task}, {per_label} rows a label, {arm}, step {step}: {score}", flush=True)


if __name__ == "__main__":
    main()
